"""The story of one run, in the process that trains: from accepted verdicts to a judged version.

Loads torch; only management commands that work on a model import it.
"""

import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import cache

from adapters_app import (
    evaluation,
    registry,
    reporting,
    scratch,
    snapshots,
    storage,
    training,
)
from adapters_app.evaluation import Contestant
from adapters_app.fitting import FitStep, Fitted, blind, fit
from adapters_app.models import (
    AdapterVersion,
    CalibrationEvaluation,
    ShadowEvaluation,
    Snapshot,
    TrainingRun,
    name_of,
)
from adapters_app.nli import anchors, artifact, guard
from adapters_app.nli.artifact import Artifact
from adapters_app.nli.base_model import Base, load_base
from adapters_app.nli.calibration import MIN_ROWS as CALIBRATION_ROWS
from adapters_app.nli.calibration import Identity
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.guard import GuardSet
from adapters_app.nli.predict import Predictor
from adapters_app.registry import Incumbent
from adapters_app.snapshots import SnapshotRow
from adapters_app.training import Lease
from corrections import history
from corrections.labels import LABELS

T = TypeVar("T")
GENERAL_ANSWERS_S = 90 * 24 * 3600  # answers to general pairs are kept so long
# In a version's metrics: its siblings left out the claims that they judge, see `fitting.blind`.
BLIND_TO_CLAIMS = "blind_to_claims"
PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy")


class CannotTrain(ValueError):
    """This data or this machine does not allow the run; the message says what to do."""


class Stopped(Exception):
    """The process was told to end, or ran out of time to. The run goes back to the queue."""


class Progress:
    """Tells the run's row how far it is, and learns from it whether to go on."""

    def __init__(self, lease: Lease, should_stop: Callable[[], bool]) -> None:
        self._lease = lease
        self._should_stop = should_stop
        self._fits_started = 0.0

    def stage(self, name: str, log: str) -> None:
        """Enter a stage.

        Raises:
            Stopped, LeaseLost, CancelRequested.
        """
        self._look()
        training.heartbeat(self._lease, stage=name, log=log)

    def tick(self, _done: int = 0) -> None:
        """Between two batches: renew the lease, look whether to stop."""
        self._look()
        training.heartbeat(self._lease)

    def step(self, at: FitStep) -> None:
        """The fits together are at this optimiser step."""
        self._look()
        now = time.monotonic()
        self._fits_started = self._fits_started or now
        elapsed = now - self._fits_started
        training.heartbeat(
            self._lease,
            step=at.done,
            total_steps=at.total,
            eta_seconds=round(elapsed / at.done * (at.total - at.done), 1),
            loss=at.loss,
        )

    def outlast(self, act: Callable[[], T]) -> T:
        """`act()`, waiting for a database that is away; see `training.outlast`."""
        return training.outlast(self._lease, act)

    def _look(self) -> None:
        if self._should_stop():
            raise Stopped


@dataclass(frozen=True, eq=False)
class Stored:
    """Digests of what was put into artifact storage."""

    released: str
    siblings: list[str]
    size: int


@dataclass(frozen=True, eq=False)
class Work:
    """What every step of a run needs."""

    lease: Lease
    run: TrainingRun
    base: Base
    snapshot: Snapshot
    rows: list[SnapshotRow]
    progress: Progress
    guard_set: GuardSet = field(default_factory=guard.load)


def carry_out(lease: Lease, *, should_stop: Callable[[], bool]) -> None:
    """Do what the run asks for, and register what came of it.

    Raises:
        Stopped, CancelRequested, LeaseLost: it was ended from outside.
        CannotTrain and the errors of `nli`, `storage` and `snapshots`: with a sentence for users.
    """
    progress = Progress(lease, should_stop)
    runs = TrainingRun.objects.select_related("version__snapshot")
    run = progress.outlast(lambda: runs.get(pk=lease.run_id))
    _check_disk()
    work = _prepare(lease, run, progress)
    if run.version is not None:
        shadow_evaluate(work, run.version)
    else:
        train_version(work)


def train_version(work: Work) -> AdapterVersion:
    """snapshot → base → siblings and released fit → calibrate → store → evaluate → register."""
    config = _config_of(work.run)
    _check_rows(work.rows, config)

    work.progress.stage("base", "The base answers every pair first, so that a loss is seen.")
    base = _base_contestant(work)
    base_figures = evaluation.figures_on(base.probabilities(), work.rows)

    work.progress.stage("fitting", "Training five siblings, each blind to a fold, and the adapter.")
    fitted = fit(
        work.base, work.rows, config, on_step=work.progress.step, on_wait=work.progress.tick
    )

    work.progress.stage("calibration", "Fitting the calibrator on out-of-fold answers.")
    general = _answers_elsewhere(work, fitted.released)
    calibrator, calibration = evaluation.calibrate(fitted.logits, work.rows, general=general)
    probabilities = evaluation.cross_fitted(calibrator, fitted.logits, work.rows)
    figures = _metrics(work, config, fitted, probabilities, base_figures)

    work.progress.stage("storing", "Storing the adapter and its five siblings.")
    stored = _store(work, config, fitted, figures)
    cache.set(_general_key(work, stored.released), general, timeout=GENERAL_ANSWERS_S)

    work.progress.stage("shadow", "Comparing with what serves, out of fold.")
    serving = work.progress.outlast(registry.incumbent)
    candidate = Contestant(
        logits=fitted.logits,
        general_logits=general,
        calibrator=calibrator,
        digest=stored.released,
        crossed=probabilities,
    )
    measured = evaluation.measure(
        snapshot=work.snapshot,
        rows=work.rows,
        candidate=candidate,
        incumbent=_incumbent(work, base, serving.version, serving.calibration),
        base=base,
        served=(serving.version, serving.calibration),
        guard_set=work.guard_set,
        seed=config.seed,
        earlier=work.progress.outlast(lambda: registry.comparisons_with(serving)),
    )

    work.progress.stage("registering", f"Verdict: {measured.verdict}.")
    version = registry.NewVersion(
        snapshot=work.snapshot,
        base_name=work.run.base_name,
        base_fingerprint=work.base.fingerprint,
        artifact_digest=stored.released,
        sibling_digests=stored.siblings,
        artifact_bytes=stored.size,
        trainable_parameters=fitted.trainable_parameters,
        config=config.to_dict(),
        metrics=figures,
    )
    return work.progress.outlast(
        lambda: registry.register(
            work.lease, version=version, calibration=calibration, evaluation=measured
        )
    )


def shadow_evaluate(work: Work, version: AdapterVersion) -> ShadowEvaluation:
    """Measure an existing version on the accepted verdicts of now, against what serves now or
    what the run names."""
    _check_fits(work.base, version)
    against = work.progress.outlast(lambda: registry.incumbent(work.run.against))
    if against.version is not None:
        _check_fits(work.base, against.version)
        _check_differs(version, against.version)
    name = name_of(against.version)
    work.progress.stage("base", "The base answers every pair.")
    base = _base_contestant(work)
    work.progress.stage("shadow", f"{version.name} against {name}, out of fold.")
    calibration = work.progress.outlast(lambda: registry.present_calibration(version))
    candidate = _contestant_of(work, version, calibration)
    incumbent = _incumbent(work, base, against.version, against.calibration)
    measured = evaluation.measure(
        snapshot=work.snapshot,
        rows=work.rows,
        candidate=candidate,
        incumbent=incumbent,
        base=base,
        served=(against.version, against.calibration),
        guard_set=work.guard_set,
        # Not the whole config: settings may have been renamed since this version was trained.
        seed=int(version.config.get("seed", TrainConfig().seed)),
        registered=(version, calibration),
        earlier=work.progress.outlast(lambda: registry.comparisons_with(against)),
        later=_later(work, version, calibration, against, incumbent, candidate),
        incumbent_served=against.serves,
    )
    work.progress.stage("registering", f"Verdict: {measured.verdict}.")
    return work.progress.outlast(
        lambda: registry.record_evaluation(
            work.lease, version=version, calibration=calibration, evaluation=measured
        )
    )


def calibrate_again(
    version: AdapterVersion, *, by: User, on_batch: Callable[[int], None] | None = None
) -> CalibrationEvaluation:
    """Fit a new calibrator for a version on the accepted verdicts of now, out of fold.

    Verdicts on claims that a sibling has learnt, on whatever page, are left out: it is surer of
    them than of what will be asked.

    Raises:
        CannotTrain: too few rows of known probability, or the base is another.
    """
    base = configured_base()
    _check_fits(base, version)
    snapshot = snapshots.freeze()
    accepted = snapshots.load(snapshot)
    unseen = _unseen_by(version, accepted)
    rows = [row for row, each in zip(accepted, unseen, strict=True) if each]
    sample = evaluation.representative(rows)
    if len(sample.rows) < CALIBRATION_ROWS:
        learnt = len(accepted) - len(rows)
        raise CannotTrain(
            f"{len(sample.rows)} accepted verdicts stand for what is asked, on claims that "
            f"{version.name} has not learnt ({learnt} are left out); a calibrator needs "
            f"{CALIBRATION_ROWS}. Verdicts of known sampling probability do, and with "
            f"{reporting.MIN_DRAWN} drawn ones all others too."
        )
    logits = _sibling_logits(base, version.sibling_digests, rows, on_batch)
    present = registry.present_calibration(version)
    among = _among(_fitted_on(version, present), rows)
    released = Predictor(base, _read(base, version.artifact_digest))
    general = released.logits(guard.load().pairs, on_batch=on_batch)
    _, fitted = evaluation.calibrate(
        logits, rows, general=general, replaces=present, replaces_among=among
    )
    fitted = replace(fitted, snapshot=snapshots.keep(snapshot, accepted))
    return registry.record_calibration(version, fitted, by=by)


def _metrics(
    work: Work,
    config: TrainConfig,
    fitted: Fitted,
    probabilities: np.ndarray,
    base_figures: dict[str, Any],
) -> dict[str, Any]:
    learnt = [row for row in work.rows if row.trains(config)]
    return evaluation.finite(
        {
            "base": base_figures,
            "epochs": fitted.epochs,
            "chosen_epoch": fitted.chosen_epoch,
            BLIND_TO_CLAIMS: True,
            "confirmation_weight": reporting.confirmation_weight(learnt)
            if config.reporting_weights
            else 1.0,
            "out_of_fold": evaluation.figures_on(probabilities, work.rows),
            "suspicious": evaluation.suspicious(probabilities, work.rows),
            "annotators": evaluation.annotators(probabilities, work.rows, _own_labels(work)),
        }
    )


def _own_labels(work: Work) -> dict[int, str]:
    ids = [row.correction_id for row in work.rows]
    return work.progress.outlast(lambda: history.own_labels(ids))


# --- answering ------------------------------------------------------------------------------------


def _base_contestant(work: Work) -> Contestant:
    predictor = Predictor(work.base)
    pairs = [row.pair for row in work.rows]
    return Contestant(
        logits=predictor.logits(pairs, on_batch=work.progress.tick),
        general_logits=_general_logits(work, ""),
        calibrator=Identity(),
    )


def _incumbent(
    work: Work,
    base: Contestant,
    version: AdapterVersion | None,
    calibration: CalibrationEvaluation | None,
) -> Contestant:
    """What a version is compared with, asked in the same way: its siblings fold by fold, or the
    base."""
    if version is not None:
        return _contestant_of(work, version, calibration)
    return Contestant(
        logits=base.logits,
        general_logits=base.general_logits,
        calibrator=evaluation.stored_calibrator(calibration),
    )


def _contestant_of(
    work: Work, version: AdapterVersion, calibration: CalibrationEvaluation | None
) -> Contestant:
    logits = _sibling_logits(work.base, version.sibling_digests, work.rows, work.progress.tick)
    calibrator = evaluation.stored_calibrator(calibration)
    return Contestant(
        logits=logits,
        general_logits=_general_logits(work, version.artifact_digest),
        calibrator=calibrator,
        digest=version.artifact_digest,
        unseen=_unseen_by(version, work.rows),
        crossed=evaluation.cross_fitted(
            calibrator,
            logits,
            work.rows,
            among=_among(_fitted_on(version, calibration), work.rows),
        ),
    )


def _fitted_on(
    version: AdapterVersion, calibration: CalibrationEvaluation | None
) -> list[SnapshotRow]:
    """Rows that a version's calibrator was fitted on; its first one, on those it learnt from."""
    named = calibration.snapshot if calibration is not None else None
    return snapshots.load(named or version.snapshot)


def _among(some: Sequence[SnapshotRow], rows: Sequence[SnapshotRow]) -> np.ndarray:
    """(rows,) whether a row is one of `some`."""
    ids = {row.correction_id for row in some}
    return np.array([row.correction_id in ids for row in rows], dtype=bool)


def _unseen_by(version: AdapterVersion, rows: Sequence[SnapshotRow]) -> np.ndarray:
    """`_unseen` by the siblings of a version."""
    by_claim = version.metrics.get(BLIND_TO_CLAIMS, False)
    return _unseen(snapshots.load(version.snapshot), rows, by_claim=by_claim)


def _unseen(
    learnt: Sequence[SnapshotRow], rows: Sequence[SnapshotRow], *, by_claim: bool
) -> np.ndarray:
    """(rows,) whether the sibling that judges a row, of those that learnt from `learnt`, has learnt
    nothing about its claim. Of pages it never does: their folds are for ever.

    `by_claim`: they left out the claims of their folds, as all did but the first versions.
    """
    known = {}
    for fold in {row.fold for row in rows}:
        others = [row for row in learnt if row.fold != fold]
        held = [row for row in learnt if row.fold == fold]
        known[fold] = {row.claim for row in (blind(learnt, held) if by_claim else others)}
    return np.array([row.claim not in known[row.fold] for row in rows], dtype=bool)


def _sibling_logits(
    base: Base,
    digests: Sequence[str],
    rows: Sequence[SnapshotRow],
    on_batch: Callable[[int], None] | None,
) -> np.ndarray:
    """(rows, 3): each row by the sibling that never saw its fold."""
    logits = np.zeros((len(rows), len(LABELS)), dtype=np.float32)
    for k, digest in enumerate(digests):
        held = [i for i, row in enumerate(rows) if row.fold == k]
        if held:
            predictor = Predictor(base, _read(base, digest))
            logits[held] = predictor.logits([rows[i].pair for i in held], on_batch=on_batch)
    return logits


def _general_logits(work: Work, digest: str) -> np.ndarray:
    """(pairs, 3): a released adapter's answers to `guard.unlabelled()`, or the base's (no digest).

    They never change, and every run needs those of the base and of what serves: they are kept.
    """
    key = _general_key(work, digest)
    logits: np.ndarray | None = cache.get(key)
    if logits is None:
        logits = _answers_elsewhere(work, _read(work.base, digest) if digest else None)
        cache.set(key, logits, timeout=GENERAL_ANSWERS_S)
    return logits


def _general_key(work: Work, digest: str) -> str:
    return f"general:{work.base.fingerprint}:{digest}:{work.guard_set.digest}:{torch.__version__}"


def _answers_elsewhere(work: Work, adapter: Artifact | None) -> np.ndarray:
    """(pairs, 3): an adapter's or the base's raw answers to `guard.unlabelled()`."""
    predictor = Predictor(work.base, adapter)
    return predictor.logits(guard.unlabelled().pairs, on_batch=work.progress.tick)


def _later(
    work: Work,
    version: AdapterVersion,
    calibration: CalibrationEvaluation | None,
    against: Incumbent,
    incumbent: Contestant,
    candidate: Contestant,
) -> dict[str, Any]:
    """The released artifact's own figures on pairs its snapshot did not hold.

    With a bet on its gain over what it is compared with, on pages and claims that neither of the
    two, nor the calibrator of either, learnt from.
    """
    trained_on = snapshots.load(version.snapshot)
    pairs = {row.pair_digest for row in trained_on}
    known = np.array([row.pair_digest in pairs for row in work.rows], dtype=bool)
    rows = _chosen(work.rows, ~known)
    if not rows:
        return {"n": 0}
    released = _predictor_of(work, version, calibration)
    probabilities = released.probabilities([row.pair for row in rows])
    unseen = _new_to(trained_on, rows) & _new_to(_fitted_on(version, calibration), rows)
    fresh = unseen
    if against.version is not None:
        fresh = unseen & _new_to(snapshots.load(against.version.snapshot), rows)
        fresh &= _new_to(_fitted_on(against.version, against.calibration), rows)
    news = _chosen(rows, fresh)
    other = _predictor_of(work, against.version, against.calibration)
    return evaluation.figures_on(probabilities, rows) | {
        "new_pages": evaluation.figures_on(probabilities[unseen], _chosen(rows, unseen)),
        "confirmation": evaluation.confirmation(
            other.probabilities([row.pair for row in news]),
            probabilities[fresh],
            news,
            most=evaluation.most_disagreements(incumbent, candidate, work.rows, known),
        ),
    }


def _new_to(learnt: Sequence[SnapshotRow], rows: Sequence[SnapshotRow]) -> np.ndarray:
    """(rows,) whether a row's page and claim are none of those that were learnt from."""
    pages, claims = {row.group_id for row in learnt}, {row.claim for row in learnt}
    return np.array(
        [row.group_id not in pages and row.claim not in claims for row in rows], dtype=bool
    )


def _chosen(rows: Sequence[SnapshotRow], mask: np.ndarray) -> list[SnapshotRow]:
    return [row for row, wanted in zip(rows, mask, strict=True) if wanted]


def _predictor_of(
    work: Work, version: AdapterVersion | None, calibration: CalibrationEvaluation | None
) -> Predictor:
    """What a version answers with, as served; None is the base."""
    adapter = _read(work.base, version.artifact_digest) if version is not None else None
    return Predictor(work.base, adapter, evaluation.stored_calibrator(calibration))


def _read(base: Base, digest: str) -> Artifact:
    return artifact.read(storage.fetch(digest), base=base, digest=digest)


# --- storing --------------------------------------------------------------------------------------


def _store(work: Work, config: TrainConfig, fitted: Fitted, figures: dict[str, Any]) -> Stored:
    with scratch.directory() as directory:
        siblings = [
            _put(directory, work, config, sibling, figures, role=f"sibling blind to fold {k}")
            for k, sibling in enumerate(fitted.siblings)
        ]
        released = _put(directory, work, config, fitted.released, figures, role="released")
    return Stored(released, siblings, storage.size(released))


def _put(
    directory: Path,
    work: Work,
    config: TrainConfig,
    adapter: Artifact,
    figures: dict[str, Any],
    *,
    role: str,
) -> str:
    work.progress.tick()
    manifest = {
        "role": role,
        "config": config.to_dict(),
        "base_name": work.run.base_name,
        "snapshot": work.snapshot.digest,
        "anchors": anchors.digest(),
        "versions": {name: installed(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "metrics": {name: figures[name] for name in ("base", "out_of_fold", "chosen_epoch")},
    }
    card = _card(work, config, figures, role)
    digest = artifact.write(directory, adapter, manifest, card, base_name=work.run.base_name)
    return storage.put(directory / digest)


def _card(work: Work, config: TrainConfig, figures: dict[str, Any], role: str) -> str:
    """The model card that travels with the artifact."""
    chosen, base = figures["out_of_fold"], figures["base"]
    if chosen["n"]:
        measured = (
            f"Accuracy out of fold {chosen['accuracy']:.3f} (base {base['accuracy']:.3f}), "
            f"log loss {chosen['log_loss']:.3f} (base {base['log_loss']:.3f}), "
            f"on {chosen['n']} verdicts of known sampling probability."
        )
    else:
        measured = "Not measured: no verdict has a known sampling probability."
    return "\n".join(
        [
            f"# NLI adapter ({role})",
            "",
            f"LoRA (rank {config.rank}, alpha {config.alpha:g}) for `{work.run.base_name}`,",
            f"fingerprint `{work.base.fingerprint}`, trained by run {work.run.pk}.",
            "",
            f"- Data: snapshot `{work.snapshot.digest}`,",
            f"  {work.snapshot.rows} verdicts from {work.snapshot.groups} sources.",
            f"- Epochs: {figures['chosen_epoch']} of at most {config.epochs}, chosen out of fold.",
            f"- {measured}",
            "",
            "The figures speak of the recipe on this data: each verdict was judged by a model that",
            "never saw its page. Use it only with the base named above.",
            "",
        ]
    )


# --- checks ---------------------------------------------------------------------------------------


def configured_base() -> Base:
    """The base that the settings name, on the device they name.

    Raises:
        BaseModelError: it cannot be loaded; the message says why.
    """
    if settings.LYRA_TORCH_THREADS:
        torch.set_num_threads(settings.LYRA_TORCH_THREADS)
    device = settings.LYRA_DEVICE
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_base(
        settings.LYRA_BASE_MODEL,
        revision=settings.LYRA_BASE_REVISION,
        allow_download=settings.LYRA_BASE_ALLOW_DOWNLOAD,
        device=device,
    )


def _prepare(lease: Lease, run: TrainingRun, progress: Progress) -> Work:
    progress.stage("snapshot", "Freezing the accepted verdicts.")
    snapshot = progress.outlast(snapshots.freeze)
    progress.outlast(lambda: training.froze(lease, snapshot))
    rows = snapshots.load(snapshot)
    progress.stage("loading", f"{len(rows)} verdicts frozen. Loading {run.base_name}.")
    base = configured_base()
    progress.outlast(lambda: training.measured_base(lease, fingerprint=base.fingerprint))
    served = progress.outlast(registry.serving).version
    if served is not None and not run.against:
        _check_fits(base, served)
    return Work(lease, run, base, snapshot, rows, progress)


def _config_of(run: TrainingRun) -> TrainConfig:
    try:
        return TrainConfig.from_mapping(run.config)
    except ValueError as error:
        raise CannotTrain(
            f"This run was requested from another release ({error}). Request the training again."
        ) from error


def _check_rows(rows: Sequence[SnapshotRow], config: TrainConfig) -> None:
    """What request() found may have been reviewed away since; siblings need more than one fold."""
    facts = [(row.label, row.verdict, row.predicted_confidence) for row in rows]
    try:
        training.check_data(snapshots.Selection(facts=facts), config)
    except training.TrainingRefused as refusal:
        raise CannotTrain(str(refusal)) from refusal
    folds = {row.fold for row in rows if row.trains(config)}
    if len(folds) < 2:
        raise CannotTrain(
            "All accepted verdicts come from pages of one fold, so nothing is left to judge an "
            "adapter on. Accept verdicts about more pages."
        )
    for fold in {row.fold for row in rows}:
        apart = blind(rows, [row for row in rows if row.fold == fold])
        if not any(row.trains(config) for row in apart):
            raise CannotTrain(
                "The accepted verdicts are about so few claims (hypotheses) that nothing is left "
                "to judge an adapter on which it has not learnt. Accept verdicts about more claims."
            )


def _check_fits(base: Base, version: AdapterVersion) -> None:
    if version.base_fingerprint != base.fingerprint:
        raise CannotTrain(
            f"{version.name} was trained on another base ({version.base_name}, fingerprint "
            f"{version.base_fingerprint[:12]}) than the one that is set up ({base.name}, "
            f"{base.fingerprint[:12]}). Where it serves, roll back to the base first."
        )


def _check_differs(version: AdapterVersion, other: AdapterVersion) -> None:
    if version.artifact_digest == other.artifact_digest:
        raise CannotTrain(training.same_artifact(version, other))


def _check_disk() -> None:
    free = shutil.disk_usage(settings.LYRA_HOME).free // 2**20
    if free < settings.LYRA_MIN_FREE_MIB:
        raise CannotTrain(
            f"Only {free} MiB are free under LYRA_HOME; a run needs {settings.LYRA_MIN_FREE_MIB} "
            "(LYRA_MIN_FREE_MIB). Free some, for example with `manage.py prune_artifacts`."
        )
