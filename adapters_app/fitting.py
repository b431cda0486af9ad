"""The six trainings of a run: five fold-blind siblings and the released fit, side by side.

Six fits on one thread each use two cores half as well again as one fit after another on both: the
matrices of a small encoder are too small to share. Every fit has random generators of its own, so
what comes out does not depend on who ran beside it.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adapters_app import evaluation
from adapters_app.nli import anchors as general_anchors
from adapters_app.nli.artifact import Artifact
from adapters_app.nli.base_model import Base
from adapters_app.nli.calibration import Identity, TemperatureScaling
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.data import Example
from adapters_app.nli.encoding import Pair
from adapters_app.nli.hajek import group_sums, ratio_error
from adapters_app.nli.probabilities import log_losses
from adapters_app.nli.train import Anchors, Step, TrainResult, below_adapter, passes_over, train
from adapters_app.reporting import training_weights
from adapters_app.snapshots import SnapshotRow
from corrections.labels import LABELS, Label
from corrections.models import FOLDS

LOOK_EVERY_S = 0.25  # how soon a request to stop reaches the fits


@dataclass(frozen=True, eq=False)
class Fitted:
    """What came of the six trainings, after the epoch chosen out of fold."""

    siblings: list[Artifact]
    released: Artifact
    logits: np.ndarray  # (rows, 3), each row by the sibling that never saw its fold
    chosen_epoch: int
    epochs: list[dict[str, Any]]
    trainable_parameters: int


@dataclass(frozen=True)
class FitStep:
    """How far all fits are together: optimiser steps done, their total, the latest loss."""

    done: int
    total: int
    loss: float


class _Ended(Exception):
    """Another fit failed, or the run was told to stop."""


def fit(
    base: Base,
    rows: Sequence[SnapshotRow],
    config: TrainConfig,
    *,
    on_step: Callable[[FitStep], None],
    on_wait: Callable[[], None],
) -> Fitted:
    """Train sibling k blind to fold k, and the released fit on all rows; choose the epoch.

    `on_step` and `on_wait` are called in this thread, a few times a second; either may raise to
    stop every fit.

    Raises:
        TrainingDiverged, OutOfMemory, and whatever the callbacks raise.
    """
    held = _held(rows)
    jobs = [
        (examples(rows, config), []),  # the longest first
        *_jobs_of_siblings(rows, rows, held, config),
    ]
    passes = passes_over(len(jobs[0][0]), config)
    released, *others = _side_by_side(base, jobs, config, passes, on_step=on_step, on_wait=on_wait)
    siblings = dict(zip(held, others, strict=True))
    logits, epochs, chosen = _judged(siblings, held, rows, config)
    # The released fit took the same path for all epochs; it is released as it was after this one.
    last = released.epochs[chosen - 1].artifact
    return Fitted(
        # A sibling of an empty fold is the released fit itself: same rows, same seed.
        siblings=[
            siblings[k].epochs[chosen - 1].artifact if k in siblings else last for k in range(FOLDS)
        ],
        released=last,
        logits=logits,
        chosen_epoch=chosen,
        epochs=epochs,
        trainable_parameters=released.trainable_parameters,
    )


def out_of_fold(
    base: Base,
    rows: Sequence[SnapshotRow],
    config: TrainConfig,
    *,
    groups: Collection[int],
    on_step: Callable[[FitStep], None],
    on_wait: Callable[[], None],
) -> np.ndarray:
    """(rows, 3): each row by a sibling that learnt from those of `groups`, blind to the row's fold.

    Nothing is released. The epoch is chosen out of fold on all rows, as in `fit`.

    Raises:
        ValueError: outside some fold these groups have no row to learn from.
        TrainingDiverged, OutOfMemory, and whatever the callbacks raise.
    """
    learnt = [row for row in rows if row.group_id in groups]
    held = _held(rows)
    jobs = _jobs_of_siblings(learnt, rows, held, config)
    passes = passes_over(len(examples(learnt, config)), config)
    siblings = _side_by_side(base, jobs, config, passes, on_step=on_step, on_wait=on_wait)
    logits, _, _ = _judged(dict(zip(held, siblings, strict=True)), held, rows, config)
    return logits


def blind(rows: Sequence[SnapshotRow], held: Sequence[SnapshotRow]) -> list[SnapshotRow]:
    """Those of `rows` that a sibling may learn from which judges `held`: neither of their folds nor
    about their claims.

    One claim is judged by texts of many pages, and mostly alike: who has learnt that it is refuted
    recognises it on a page that it never saw, as nobody will recognise the claims to come.
    """
    folds = {row.fold for row in held}
    claims = {row.claim for row in held}
    return [row for row in rows if row.fold not in folds and row.claim not in claims]


def examples(rows: Sequence[SnapshotRow], config: TrainConfig) -> list[Example]:
    """What a fit learns from: rows that pass the filters, weighted as `config` says."""
    learnt = [row for row in rows if row.trains(config)]
    weights = row_weights(learnt, config)
    return [
        Example(row.premise, row.hypothesis, Label(row.label), float(weight))
        for row, weight in zip(learnt, weights, strict=True)
    ]


def row_weights(rows: Sequence[SnapshotRow], config: TrainConfig) -> np.ndarray:
    """(n,) how much each row counts in training."""
    return training_weights(rows) if config.reporting_weights else np.ones(len(rows))


def _held(rows: Sequence[SnapshotRow]) -> dict[int, np.ndarray]:
    """Positions of the rows of each fold that has any."""
    folds = np.array([row.fold for row in rows])
    return {k: np.flatnonzero(folds == k) for k in range(FOLDS) if (folds == k).any()}


def _jobs_of_siblings(
    learnt: Sequence[SnapshotRow],
    rows: Sequence[SnapshotRow],
    held: dict[int, np.ndarray],
    config: TrainConfig,
) -> list[tuple[list[Example], list[Pair]]]:
    """For each fold of `rows`: what its sibling learns from, and the pairs that it judges."""
    parts = [[rows[i] for i in positions] for positions in held.values()]
    return [(examples(blind(learnt, part), config), [row.pair for row in part]) for part in parts]


def _judged(
    siblings: dict[int, TrainResult],
    held: dict[int, np.ndarray],
    rows: Sequence[SnapshotRow],
    config: TrainConfig,
) -> tuple[np.ndarray, list[dict[str, Any]], int]:
    """Logits (rows, 3) out of fold after the chosen epoch, figures of all epochs, its number.

    It is chosen by the loss of all rows, weighted as in training: those of known probability, on
    which alone figures stand, are too few to choose by.
    """
    logits = _pooled_logits(siblings, held, len(rows), config.epochs)
    losses, weights = _calibrated_losses(logits, rows, config), row_weights(rows, config)
    epochs = [
        {
            "epoch": e + 1,
            "train_loss": float(np.mean([r.epochs[e].train_loss for r in siblings.values()])),
            "choice_log_loss": float(np.average(losses[e], weights=weights)),
            "choice_rows": len(rows),
            "out_of_fold": evaluation.figures_on(Identity().predict_proba(answers), rows),
        }
        for e, answers in enumerate(logits)
    ]
    chosen = latest_as_good(losses, weights, np.array([row.group_id for row in rows]))
    return logits[chosen], epochs, chosen + 1


def latest_as_good(losses: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> int:
    """The last epoch within one standard error of the best, from 0; `losses` (epochs, n).

    The rule of Breiman et al. (1984, §3.4.3), by groups (n,). The rate falls to zero over all
    epochs: what is taken earlier is taken in mid-course, and mere luck must not take it.
    """
    best = int(np.argmin(np.average(losses, axis=1, weights=weights)))
    for epoch in range(len(losses) - 1, best, -1):
        total, size = group_sums(losses[epoch] - losses[best], weights, groups)
        worse = total.sum() / size.sum()
        # Of one group nothing says how much chance there is in it.
        if len(size) < 2 or worse <= ratio_error(total, size, worse):
            return epoch
    return best


def _side_by_side(
    base: Base,
    jobs: Sequence[tuple[list[Example], list[Pair]]],
    config: TrainConfig,
    passes: float,
    *,
    on_step: Callable[[FitStep], None],
    on_wait: Callable[[], None],
) -> list[TrainResult]:
    """One training per job (examples, pairs to answer after each epoch), in the order given.

    All go over their examples equally often: a sibling says what the released fit is worth.
    """
    anchors = Anchors.answered_by(base, general_anchors.load(), on_batch=lambda _: on_wait())
    known = {*anchors.pairs, *(example.pair for examples, _ in jobs for example in examples)}
    lower = below_adapter(base, sorted(known), config, on_batch=lambda _: on_wait())
    threads = torch.get_num_threads()
    # A GPU is one device: fits would only wait for one another there.
    workers = min(len(jobs), threads) if base.device.type == "cpu" else 1
    latest: dict[int, Step] = {}
    ended = threading.Event()

    def one(number: int) -> TrainResult:
        def look(step: Step) -> None:
            latest[number] = step
            if ended.is_set():
                raise _Ended

        examples, pairs = jobs[number]
        return train(
            base,
            examples,
            config,
            evaluate=pairs,
            anchors=anchors,
            lower=lower,
            on_step=look,
            passes=passes,
        )

    def share_threads() -> None:
        torch.set_num_threads(max(1, threads // workers))

    with ThreadPoolExecutor(workers, initializer=share_threads) as pool:
        futures = [pool.submit(one, number) for number in range(len(jobs))]
        try:
            _watch(futures, latest, on_step, on_wait)
        finally:
            ended.set()
            for future in futures:
                future.cancel()
    torch.set_num_threads(threads)
    return [future.result() for future in futures]


def _watch(
    futures: Sequence[Future[TrainResult]],
    latest: dict[int, Step],
    on_step: Callable[[FitStep], None],
    on_wait: Callable[[], None],
) -> None:
    """Report until all fits are done; raise what the first of them raised."""
    reported = 0
    while True:
        finished, running = wait(futures, timeout=LOOK_EVERY_S, return_when=FIRST_EXCEPTION)
        steps = list(latest.values())
        done = sum(step.step for step in steps)
        if done > reported:
            # Fits that wait for a thread are taken to be as long as those that run.
            mean = sum(step.total for step in steps) / len(steps)
            recent = float(np.mean([step.loss for step in steps]))
            on_step(FitStep(done, round(mean * len(futures)), recent))
            reported = done
        else:
            on_wait()
        for future in finished:
            future.result()
        if not running:
            return


def _pooled_logits(
    siblings: dict[int, TrainResult], held: dict[int, np.ndarray], rows: int, epochs: int
) -> np.ndarray:
    """(epochs, rows, 3): each row answered by the sibling blind to its fold, after each epoch."""
    pooled = np.zeros((epochs, rows, len(LABELS)), dtype=np.float32)
    for k, result in siblings.items():
        for e, epoch in enumerate(result.epochs):
            pooled[e, held[k]] = epoch.eval_logits
    return pooled


def _calibrated_losses(
    logits: np.ndarray, rows: Sequence[SnapshotRow], config: TrainConfig
) -> np.ndarray:
    """(epochs, rows) log loss, nats, each epoch after a temperature of its own: how sure of itself
    an epoch is will be set right by calibration."""
    labels, weights = evaluation.label_columns(rows), row_weights(rows, config)
    return np.stack(
        [
            log_losses(
                TemperatureScaling().fit(answers, labels, weights).predict_proba(answers), labels
            )
            for answers in logits
        ]
    )
