"""Carrying out `nli.study` on a file of labelled pairs or on the accepted verdicts, and storing it.

It trains, so it loads torch; what the stored rows say together is `findings`'.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction

from adapters_app import snapshots
from adapters_app.evaluation import finite
from adapters_app.models import Study, StudyFit
from adapters_app.nli import study
from adapters_app.nli.study import (
    Key,
    Models,
    Outcome,
    Result,
    Search,
    StudyConfig,
    StudyRow,
    TooLittleData,
)
from adapters_app.nli.train_base import read_rows
from adapters_app.recipe import CannotTrain, configured_base
from adapters_app.snapshots import SnapshotRow
from corrections.labels import Label

VERDICTS = "accepted verdicts"
INSTALLED = "all-MiniLM-L6-v2"


def conduct(
    *,
    by: User,
    data: Path | None = None,
    limit: int | None = None,
    config: StudyConfig | None = None,
    encoder: Path | None = None,
    on_result: Callable[[Result], None] = lambda _result: None,
) -> Study:
    """Train and measure both ways on both tasks, and store what came of it.

    Without `data`, a file of labelled pairs or a directory of such files, the verdicts accepted now
    are learnt from, and measured on where their sampling probability is known. `limit` takes whole
    groups at random, up to that many rows. `encoder` is a directory with another sentence encoder
    than the installed all-MiniLM-L6-v2. Every fit is stored as soon as it is done; a study of the
    same data, base and configuration that was cut short is gone on with.

    Raises:
        CannotTrain: too little data, or a file that cannot be read.
        BaseModelError, StoreUnavailable, SnapshotCorrupt, TrainingDiverged, ChildProcessError.
    """
    started = time.monotonic()
    config = config or StudyConfig()
    frozen: list[SnapshotRow] = []
    if data:
        files, snapshot = _files(data), None
        name, rows = ", ".join(file.name for file in files), _of_files(files)
    else:
        snapshot = snapshots.freeze()
        frozen = snapshots.load(snapshot)
        name, rows = VERDICTS, _of_snapshot(frozen)
    if limit:
        rows = _some_groups(rows, limit)
    base = configured_base()
    models = Models(
        base=settings.LYRA_BASE_MODEL,
        revision=settings.LYRA_BASE_REVISION,
        device=str(base.device),
        threads=settings.LYRA_TORCH_THREADS,
        encoder=encoder,
    )
    stored = _unfinished(
        Study(
            data=name,
            data_digest=_digest(rows),
            snapshot=snapshot,
            rows=len(rows),
            groups=len({row.group for row in rows}),
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            config=config.to_dict()
            | {
                "encoder": str(encoder.resolve()) if encoder else INSTALLED,
                "device": models.device,
                "threads": models.threads,
            },
            seconds=0,
            created_by=by,
        )
    )
    before = stored.seconds
    known = {_key(fit): _known(fit) for fit in stored.fits.all()} if stored.pk else {}
    try:
        for result in study.conduct(rows, models, config, known):
            if not result.known:
                stored.seconds = before + time.monotonic() - started
                if stored.snapshot and not stored.pk:  # nothing has named it for the first fit
                    stored.snapshot = snapshots.keep(stored.snapshot, frozen)
                _store(stored, result)
            on_result(result)
    except TooLittleData as error:
        raise CannotTrain(str(error)) from error
    stored.finished = True
    stored.save(update_fields=["finished"])
    return stored


def _unfinished(wanted: Study) -> Study:
    """The study of the same that was cut short, or this one."""
    begun = Study.objects.filter(
        finished=False,
        data_digest=wanted.data_digest,
        snapshot=wanted.snapshot,
        base_fingerprint=wanted.base_fingerprint,
    )
    return next((study for study in begun if study.config == wanted.config), wanted)


@transaction.atomic
def _store(stored: Study, result: Result) -> None:
    stored.save(update_fields=["seconds"] if stored.pk else None)
    # Another process may carry out the same study: the first result of a fit stays.
    StudyFit.objects.bulk_create([_row(stored, result)], ignore_conflicts=True)


def _key(fit: StudyFit) -> Key:
    return fit.task, fit.method, fit.setting, fit.split, fit.seed


def _known(fit: StudyFit) -> tuple[Outcome, Search]:
    outcome = Outcome(
        measures=fit.measures,
        trainable_parameters=fit.trainable_parameters,
        artifact_bytes=fit.artifact_bytes,
        seconds=fit.seconds,
        idle_mb=fit.idle_mb,
        peak_mb=fit.peak_mb,
    )
    return outcome, {row["learning_rate"]: row["value"] for row in fit.search}


def _files(data: Path) -> list[Path]:
    """The file, or all of a directory's; at least one."""
    found = sorted(data.glob("*.jsonl*")) if data.is_dir() else [data]
    if not found or not found[0].is_file():
        raise CannotTrain(f"{data}: there is no file of labelled pairs (.jsonl or .jsonl.gz).")
    return found


def _of_files(files: Iterable[Path]) -> list[StudyRow]:
    try:
        read = [row for file in files for row in read_rows(file)]
    except (OSError, ValueError) as error:
        raise CannotTrain(str(error)) from error
    return [
        StudyRow(
            premise=row.example.premise,
            hypothesis=row.example.hypothesis,
            label=row.example.label,
            group=row.group or row.example.premise,
            category=row.source,
        )
        for row in read
    ]


def _of_snapshot(frozen: Sequence[SnapshotRow]) -> list[StudyRow]:
    return [
        StudyRow(
            premise=row.premise,
            hypothesis=row.hypothesis,
            label=Label(row.label),
            group=str(row.group_id),
            category=row.domain or "no domain",
            weight=row.weight if row.known else None,
        )
        for row in frozen
    ]


def _some_groups(rows: Sequence[StudyRow], limit: int) -> list[StudyRow]:
    """Whole groups in random order while they fit into `limit` rows, in the rows' order."""
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row.group] = sizes.get(row.group, 0) + 1
    order = sorted(sizes)
    random.Random(0).shuffle(order)  # noqa: S311  a reproducible choice, not a secret
    taken, count = set(), 0
    for group in order:
        if count + sizes[group] <= limit:
            taken.add(group)
            count += sizes[group]
    return [row for row in rows if row.group in taken]


def _digest(rows: Iterable[StudyRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        line = [*row.pair, row.label.value, row.group, row.category, row.weight]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def _row(stored: Study, result: Result) -> StudyFit:
    job, outcome = result.job, result.outcome
    return StudyFit(
        study=stored,
        task=job.task,
        method=job.method,
        setting=job.setting,
        split=job.split,
        seed=job.seed,
        learning_rate=job.learning_rate,
        learnt=len(job.learn),
        measured=len(job.asked),
        measures=finite(outcome.measures),
        search=[{"learning_rate": rate, "value": value} for rate, value in result.search.items()],
        trainable_parameters=outcome.trainable_parameters,
        artifact_bytes=outcome.artifact_bytes,
        seconds=outcome.seconds,
        idle_mb=outcome.idle_mb,
        peak_mb=outcome.peak_mb,
    )
