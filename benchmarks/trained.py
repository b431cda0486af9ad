"""Arms that train an encoder, each fit in a process of its own, so that its peak memory is its own.

Ours goes through the project's own functions; the rivals through Hugging Face's Trainer, as the
documents do it. Adapters, theirs too, answer through the engine that would serve them here.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from django.conf import settings
from transformers import set_seed

import benchmarks.home  # noqa: F401  Django first

# isort: split
from adapters_app import evaluation
from adapters_app.fitting import FitStep, Fitted, examples, fit
from adapters_app.nli import anchors as general_anchors
from adapters_app.nli import guard
from adapters_app.nli.artifact import Artifact
from adapters_app.nli.base_model import Base, load_base
from adapters_app.nli.calibration import Calibrator, Identity
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.encoding import Pair
from adapters_app.nli.engines import Engine, Unsupported
from adapters_app.nli.finetuning import (
    adapter_of,
    train_cross_encoder,
    trainable,
    with_adapter,
)
from adapters_app.nli.own_process import forget_peak, in_own_process, peak_mb
from adapters_app.nli.predict import Predictor, TorchEngine
from adapters_app.nli.train import Anchors, towards_base, train
from adapters_app.reporting import training_weights
from adapters_app.snapshots import SnapshotRow
from corrections.labels import LABELS, Label
from corrections.models import Correction

# Full fine-tuning, but for its learning rate, which is tuned.
FULL_EPOCHS, FULL_BATCH, FULL_WARMUP_SHARE = 5, 16, 0.1


@dataclass(frozen=True)
class Task:
    """One fit: which arm, on which verdicts, and the pairs its model shall answer."""

    base: str
    device: str
    arm: str
    settings: Mapping[str, Any]
    seed: int
    rows: Sequence[SnapshotRow]
    asked: Sequence[Pair]
    # Shares of what was learnt to answer with (only ours can do with less than all).
    shares: Sequence[float] = (1.0,)


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of a fit. `probabilities`: share of what was learnt → (asked, 3), as served;
    `uncalibrated`: without the calibrator, where there is one."""

    probabilities: dict[float, np.ndarray]
    uncalibrated: dict[float, np.ndarray]
    parameters: int
    artifact_bytes: int
    seconds: float
    idle_mb: float | None  # resident memory with the base loaded; None where not Linux
    peak_mb: float | None  # the highest during the fit
    facts: dict[str, Any]


Answers = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True, eq=False)
class _Model:
    """A trained model: who answers with which share of what was learnt."""

    # (share of what was learnt, n pairs) → (n, 3) as served, and without the calibrator
    answer: Callable[[float, Sequence[Pair]], Answers]
    parameters: int
    artifact_bytes: int
    facts: dict[str, Any] = field(default_factory=dict)


def fitted(task: Task) -> Trained:
    """`train_and_answer` in a process of its own.

    Raises:
        ChildProcessError: the process ended without a result; it has said why itself.
    """
    return in_own_process(train_and_answer, task)


def train_and_answer(task: Task) -> Trained:
    """Fit the arm and have its model answer; seconds and memory are those of the fit alone.

    A fit counts everything it needs: siblings, anchors and calibration too. Loading the base does
    not count, since a trainer's process has it anyway; its memory does.
    """
    base = load_base(task.base, device=task.device)
    forget_peak()
    idle = peak_mb()
    started = time.perf_counter()
    model = ARMS[task.arm](base, task.rows, task.settings, task.seed)
    seconds, peak = time.perf_counter() - started, peak_mb()
    answers = {share: model.answer(share, task.asked) for share in task.shares}
    return Trained(
        probabilities={share: served for share, (served, _) in answers.items()},
        uncalibrated={share: raw for share, (_, raw) in answers.items() if raw is not None},
        parameters=model.parameters,
        artifact_bytes=model.artifact_bytes,
        seconds=seconds,
        idle_mb=idle,
        peak_mb=peak,
        facts=model.facts,
    )


# --- Ours -----------------------------------------------------------------------------------------


def _ours(
    base: Base, rows: Sequence[SnapshotRow], settings: Mapping[str, Any], seed: int
) -> _Model:
    config = replace(TrainConfig.from_mapping(settings), seed=seed)
    fitted = fit(base, rows, config, on_step=_go_on, on_wait=_go_on)
    calibrator = _calibrator(base, fitted.released, fitted.logits, rows)

    def answer(share: float, pairs: Sequence[Pair]) -> Answers:
        released, of_it = fitted.released, calibrator
        if share != 1:
            released = towards_base(released, base, share)
            of_it = _calibrator(base, released, _out_of_fold(base, fitted, rows, share), rows)
        logits = _logits(base, released, pairs)
        return of_it.predict_proba(logits), Identity().predict_proba(logits)

    return _Model(
        answer,
        fitted.trainable_parameters,
        sum(tensor.nbytes for tensor in fitted.released.tensors.values()),
        {"chosen_epoch": fitted.chosen_epoch, "calibrator": calibrator.method},
    )


def _released(
    base: Base, rows: Sequence[SnapshotRow], settings: Mapping[str, Any], seed: int
) -> _Model:
    """The released fit alone, uncalibrated: a sixth of a run, to look at many recipes."""
    config = replace(TrainConfig.from_mapping(settings), seed=seed)
    fitted = train(
        base,
        examples(rows, config),
        config,
        anchors=Anchors.answered_by(base, general_anchors.load()),
    )
    last = fitted.epochs[-1].artifact
    return _Model(
        lambda share, pairs: _uncalibrated(base, towards_base(last, base, share), pairs),
        fitted.trainable_parameters,
        sum(tensor.nbytes for tensor in last.tensors.values()),
    )


def _uncalibrated(base: Base, artifact: Artifact, pairs: Sequence[Pair]) -> Answers:
    return Identity().predict_proba(_logits(base, artifact, pairs)), None


def _logits(base: Base, artifact: Artifact, pairs: Sequence[Pair]) -> np.ndarray:
    """(n, 3), by the engine that would serve this base on this machine."""
    return _engine(base).predictor(artifact).logits(pairs)


@functools.cache
def _engine(base: Base) -> Engine:
    slow = TorchEngine(base)
    if base.device.type != "cpu":
        return slow
    try:
        from adapters_app.nli import openvino_engine  # noqa: PLC0415  may not be installed

        return openvino_engine.start(
            base.name,
            revision="",
            references=settings.LYRA_REFERENCES,
            ask=lambda files: slow.reference(files.digest),
            threads=settings.LYRA_TORCH_THREADS,
        )
    except (ImportError, Unsupported):
        return slow


def _go_on(_step: FitStep | None = None) -> None:
    """Nobody asks a benchmark to stop."""


def _calibrator(
    base: Base, released: Artifact, logits: np.ndarray, rows: Sequence[SnapshotRow]
) -> Calibrator:
    general = Predictor(base, released).logits(guard.load().pairs)
    return evaluation.calibrate(logits, rows, general=general)[0]


def _out_of_fold(
    base: Base, fitted: Fitted, rows: Sequence[SnapshotRow], share: float
) -> np.ndarray:
    """(rows, 3): each row by the sibling that never saw its fold, with a share of its learning."""
    logits = np.empty((len(rows), len(LABELS)), dtype=np.float32)
    for fold, sibling in enumerate(fitted.siblings):
        held = [i for i, row in enumerate(rows) if row.fold == fold]
        less = Predictor(base, towards_base(sibling, base, share))
        logits[held] = less.logits([rows[i].pair for i in held])
    return logits


# --- Rivals ---------------------------------------------------------------------------------------


def _seeds(
    base: Base, rows: Sequence[SnapshotRow], settings: Mapping[str, Any], seed: int
) -> _Model:
    """The documents' script: r 8, alpha 16, 3 epochs, 2e-4, batches of 8, 100 steps of warm-up."""
    set_seed(seed)
    model = with_adapter(base.own_copy(), base.target_modules)
    if settings["corrections_only"]:
        rows = [row for row in rows if row.verdict == Correction.Verdict.CORRECTED]
    train_cross_encoder(
        base,
        model,
        *_learnt(rows),
        seed=seed,
        num_train_epochs=3,
        per_device_train_batch_size=8,
        learning_rate=2e-4,
        warmup_steps=100,
    )
    artifact = adapter_of(base, model)
    return _Model(
        lambda _all, pairs: _uncalibrated(base, artifact, pairs),
        sum(parameter.numel() for parameter in trainable(model)),
        sum(tensor.nbytes for tensor in artifact.tensors.values()),
        {"trained_on": len(rows)},
    )


def _full(
    base: Base, rows: Sequence[SnapshotRow], settings: Mapping[str, Any], seed: int
) -> _Model:
    """Every weight, on the same rows, which count as they do for ours."""
    set_seed(seed)
    model = base.own_copy().requires_grad_(True)
    train_cross_encoder(
        base,
        model,
        *_learnt(rows),
        seed=seed,
        weights=training_weights(rows).tolist(),
        num_train_epochs=FULL_EPOCHS,
        per_device_train_batch_size=FULL_BATCH,
        learning_rate=settings["learning_rate"],
        warmup_steps=FULL_WARMUP_SHARE,
    )
    tuned = replace(base, model=model.eval().requires_grad_(False))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    answers = Predictor(tuned).probabilities
    return _Model(lambda _all, pairs: (answers(pairs), None), parameters, size)


ARMS: dict[str, Callable[[Base, Sequence[SnapshotRow], Mapping[str, Any], int], _Model]] = {
    "seeds-corrections": _seeds,
    "seeds": _seeds,
    "full": _full,
    "ours": _ours,
    "ours-released": _released,
}


def _learnt(rows: Sequence[SnapshotRow]) -> tuple[list[Pair], list[Label]]:
    return [row.pair for row in rows], [Label(row.label) for row in rows]
