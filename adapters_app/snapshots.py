"""Freezing accepted verdicts into an immutable, hashed training set, reading and pruning it."""

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.db import transaction
from django.utils import timezone

from adapters_app.models import Snapshot, SnapshotQuerySet
from adapters_app.nli.config import TrainConfig
from adapters_app.storage import ORPHAN_AGE, reaching_store
from corrections.folds import normalise
from corrections.labels import Label
from corrections.models import MIN_PROBABILITY, Correction

READ_ROWS = 2000  # rows fetched from the database at a time


class SnapshotCorrupt(ValueError):
    """The stored rows are missing, or not the ones that were frozen."""


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One verdict as it was when frozen; names and types of the JSON Lines."""

    correction_id: int
    pair_digest: str
    premise: str
    hypothesis: str
    label: str
    predicted_label: str
    predicted_confidence: float
    verdict: str
    fold: int
    group_id: int
    sampling: str
    sampling_probability: float | None
    domain: str
    annotator: str
    reviewed_at: str  # ISO 8601
    # Who predicted; snapshots frozen before these were kept lack them.
    predicted_version: int | None = None
    predicted_digest: str = ""

    @property
    def pair(self) -> tuple[str, str]:
        return self.premise, self.hypothesis

    @property
    def claim(self) -> str:
        """What is judged, whatever text it is judged by: rows of one claim are mostly alike."""
        return normalise(self.hypothesis)

    @property
    def known(self) -> bool:
        """Whether figures may be computed on it: its chance of being seen is on record."""
        return self.sampling_probability is not None

    @property
    def weight(self) -> float:
        """Inverse sampling probability; 1 where that is unknown."""
        return 1.0 / self.sampling_probability if self.sampling_probability else 1.0

    def trains(self, config: TrainConfig) -> bool:
        """Whether a run with these filters learns from it; filters or not, it is judged on."""
        return _trains(config, self.verdict, self.predicted_confidence)


@dataclass(frozen=True)
class Selection:
    """Which accepted verdicts a snapshot holds, and why others are not in it."""

    ids: list[int] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    # (label, verdict, predicted confidence) of each id
    facts: list[tuple[str, str, float]] = field(default_factory=list)
    # id → sampling probability, where it is not the verdict's own
    probabilities: dict[int, float] = field(default_factory=dict)

    def training_labels(self, config: TrainConfig) -> dict[str, int]:
        """Rows per label that a run with these filters would learn from."""
        return Counter(
            label for label, verdict, sure in self.facts if _trains(config, verdict, sure)
        )


def select() -> Selection:
    """Choose one accepted verdict per normalised pair; pairs people disagree on are left out.

    A live answer that was drawn several times stands for all those that its draws stand for.
    """
    accepted = Correction.objects.accepted().filter(quarantine="")
    columns = ("sampling_probability", "id", "correct_label", "verdict", "predicted_confidence")
    by_pair: dict[str, list[tuple[Any, ...]]] = {}
    found = accepted.values_list("pair_digest", "sampling", *columns)
    for digest, sampling, *rest in found.iterator(READ_ROWS):
        by_pair.setdefault(digest, []).append((sampling in Correction.DRAWN, *rest))
    chosen: list[tuple[Any, ...]] = []
    left_out = {"duplicates": 0, "in conflict": 0}
    probabilities = {}
    for verdicts in by_pair.values():
        if len({label for _, _, _, label, _, _ in verdicts}) > 1:
            left_out["in conflict"] += len(verdicts)
            continue
        # The one that figures can be computed on, else the newest.
        best = max(verdicts, key=lambda row: (row[1] is not None, row[2]))
        chosen.append(best)
        left_out["duplicates"] += len(verdicts) - 1
        draws = [probability for drawn, probability, *_ in verdicts if drawn]
        if best[0] and len(draws) > 1:
            stands_for = sum(1 / probability for probability in draws)
            probabilities[best[2]] = max(1 / stands_for, MIN_PROBABILITY)
    chosen.sort(key=lambda row: row[2])
    return Selection(
        [row[2] for row in chosen], left_out, [row[3:] for row in chosen], probabilities
    )


@reaching_store()
def freeze() -> Snapshot:
    """Store the accepted verdicts of now as an immutable file under its SHA-256, and its row.

    The same verdicts give the same row. Whatever names it has to do so within ORPHAN_AGE, or
    `keep` it first.

    Raises:
        OSError: artifact storage cannot be written.
    """
    selection = select()
    return _stored(_read(selection), selection.left_out)


@reaching_store()
def keep(snapshot: Snapshot, rows: Sequence[SnapshotRow]) -> Snapshot:
    """The snapshot, stored again if it was pruned during hours of work on its rows.

    Raises:
        OSError: artifact storage cannot be written.
    """
    if Snapshot.objects.filter(pk=snapshot.pk).update(frozen_at=timezone.now()):
        return snapshot
    return _stored(rows, snapshot.left_out)


@reaching_store()
def load(snapshot: Snapshot) -> list[SnapshotRow]:
    """Rows of a snapshot by correction id, verified by its digest.

    Raises:
        SnapshotCorrupt: the file is missing or altered.
        OSError: artifact storage cannot be read.
    """
    try:
        with storages["artifacts"].open(snapshot.storage_name) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise SnapshotCorrupt(
            f"Snapshot {snapshot.digest[:12]} is missing from artifact storage."
        ) from error
    if hashlib.sha256(content).hexdigest() != snapshot.digest:
        raise SnapshotCorrupt(
            f"Snapshot {snapshot.digest[:12]} was altered in artifact storage; restore it from a "
            "backup."
        )
    return [SnapshotRow(**json.loads(line)) for line in content.splitlines()]


@reaching_store()
def prune(*, dry_run: bool = False) -> dict[str, list[int]]:
    """Delete old snapshots that nothing needs; {storage name: ended runs that named it}.

    Runs may start meanwhile: what they freeze is not old any more, or stored anew. A row goes
    before its file, so that what is cut off leaves an orphan for `storage.prune_orphans`.

    Raises:
        OSError: artifact storage cannot be written.
    """
    pruned = {}
    for snapshot in list(_prunable()):
        runs = list(snapshot.trainingrun_set.order_by("pk").values_list("pk", flat=True))
        if not dry_run:
            if not _forget(snapshot):
                continue
            storages["artifacts"].delete(snapshot.storage_name)
        pruned[snapshot.storage_name] = runs
    return pruned


def fingerprint(rows: Iterable[SnapshotRow]) -> str:
    """SHA-256 over ids, pairs and labels: which rows two models were compared on."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.correction_id} {row.pair_digest} {row.label}\n".encode())
    return digest.hexdigest()


def _stored(rows: Sequence[SnapshotRow], left_out: dict[str, int]) -> Snapshot:
    content = b"".join(_line(row) for row in rows)
    digest = hashlib.sha256(content).hexdigest()
    same = Snapshot.objects.filter(digest=digest)
    # Renewed before it is read: from here on nobody prunes it.
    present = same.get() if same.update(frozen_at=timezone.now()) else None
    facts = {
        "file_mark": secrets.token_hex(4),
        "rows": len(rows),
        "groups": len({row.group_id for row in rows}),
        "label_counts": {label.value: 0 for label in Label} | Counter(row.label for row in rows),
        "verdict_counts": Counter(row.verdict for row in rows),
        "left_out": left_out,
    }
    snapshot = present or Snapshot(digest=digest, **facts)
    store = storages["artifacts"]
    if not store.exists(snapshot.storage_name):
        store.save(snapshot.storage_name, ContentFile(content))
    # Somebody else may have frozen the same meanwhile; then our file is an orphan.
    return present or Snapshot.objects.get_or_create(digest=digest, defaults=facts)[0]


def _prunable() -> SnapshotQuerySet:
    return Snapshot.objects.unneeded().filter(frozen_at__lt=timezone.now() - ORPHAN_AGE)


@transaction.atomic
def _forget(snapshot: Snapshot) -> bool:
    """Delete the row, and what ended runs say of it; False where it has come into use."""
    # Locked: whoever freezes the same verdicts now waits, and then finds no row.
    locked = _prunable().select_for_update().filter(pk=snapshot.pk).first()
    if locked is None:
        return False
    locked.trainingrun_set.update(snapshot=None)
    locked.delete()
    return True


def _read(selection: Selection) -> list[SnapshotRow]:
    ids, probabilities = selection.ids, selection.probabilities
    rows: list[SnapshotRow] = []
    for start in range(0, len(ids), READ_ROWS):
        # Again only accepted ones: a verdict may have been reopened since it was selected.
        part = Correction.objects.accepted().filter(pk__in=ids[start : start + READ_ROWS])
        for correction in part.select_related("group"):
            row = _row(correction)
            known = probabilities.get(row.correction_id, row.sampling_probability)
            rows.append(replace(row, sampling_probability=known))
    return sorted(rows, key=lambda row: row.correction_id)


def _row(correction: Correction) -> SnapshotRow:
    direct = {f.name for f in fields(SnapshotRow)} & {f.name for f in Correction._meta.fields}
    values = {name: getattr(correction, name) for name in direct}
    values |= {
        "correction_id": correction.pk,
        "label": correction.correct_label,
        "fold": correction.group.fold,
        "group_id": correction.group_id,
        "reviewed_at": correction.reviewed_at.isoformat() if correction.reviewed_at else "",
    }
    return SnapshotRow(**values)


def _line(row: SnapshotRow) -> bytes:
    values = asdict(row)
    if row.predicted_version is None and not row.predicted_digest:
        # As lines were before they said who predicted: the same verdicts keep their digest.
        del values["predicted_version"], values["predicted_digest"]
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode() + b"\n"


def _trains(config: TrainConfig, verdict: str, predicted_confidence: float) -> bool:
    if config.corrections_only and verdict != Correction.Verdict.CORRECTED:
        return False
    return predicted_confidence >= config.min_confidence
