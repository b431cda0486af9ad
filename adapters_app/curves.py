"""How much more? The accepted verdicts' own learning curve, and where it leads.

Siblings learn from nested parts of the snapshot's sources, the smallest part first, and are judged
out of fold on all rows of known probability. It trains, so it loads torch.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

import numpy as np
from django.contrib.auth.models import User

from adapters_app import evaluation, fitting, snapshots
from adapters_app.evaluation import Judged, finite
from adapters_app.fitting import FitStep
from adapters_app.models import LearningCurve
from adapters_app.nli import learning_curve
from adapters_app.nli.base_model import Base
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.learning_curve import HORIZON, OUT_OF_REACH, Measured, Needed, Projection
from adapters_app.nli.predict import Predictor
from adapters_app.recipe import CannotTrain, configured_base
from adapters_app.snapshots import SnapshotRow
from adapters_app.templatetags.figures import percent
from corrections.models import FOLDS

POINTS = 4
# Below these the curve's own errors hide where it goes.
MIN_ROWS, MIN_GROUPS = 100, 20
MIN_LEARNT = 20  # verdicts a sibling learns from at the smallest size
# Targets people have not named: the next of these steps at least 2 points away.
STEP, AWAY = 0.05, 0.02
DRAWN = 40  # sizes at which the continued curve is kept
NAMES = {"accuracy": "an accuracy", "macro_f1": "a macro-F1"}


def draw(
    *,
    by: User,
    points: int = POINTS,
    target: float | None = None,
    config: TrainConfig | None = None,
    on_point: Callable[[int, float], None] = lambda _verdicts, _accuracy: None,
) -> LearningCurve:
    """Measure the curve of the verdicts accepted now at `points` sizes, continue and store it.

    `target` is the accuracy and macro-F1 asked about; without it, the next step of 5 points each.
    `on_point` is told the size and the accuracy as each is measured. Takes about half of
    points + 1 times as long as a run's five siblings.

    Raises:
        CannotTrain: too little data for a curve, or a target outside (0, 1).
        BaseModelError, StoreUnavailable, TrainingDiverged, OutOfMemory.
    """
    started = time.monotonic()
    config = config or TrainConfig()
    snapshot = snapshots.freeze()
    rows = snapshots.load(snapshot)
    known = evaluation.judged(rows)
    _check_asked(points, target)
    parts = nested(rows, points, config.seed)
    _check_data(rows, known, parts[0], config)
    base = configured_base()
    sizes = [0, *(round(mean(learnt(rows, part, config))) for part in parts)]
    answers = [Predictor(base).logits([row.pair for row in rows]).argmax(1)]
    for size, part in zip(sizes[1:], parts, strict=True):
        answers.append(_answers(base, rows, part, config))
        on_point(size, float(np.average(answers[-1][known.index] == known.labels)))
    predicted = np.stack(answers)[:, known.index]
    measured = learning_curve.measure(predicted, known.labels, known.groups, known.weights)
    return LearningCurve.objects.create(
        snapshot=snapshots.keep(snapshot, rows),
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        config=config.to_dict(),
        rows=len(known.rows),
        groups=len(np.unique(known.groups)),
        points=_points(sizes, measured),
        projections={
            name: projection(name, sizes, found, now=len(rows), target=target)
            for name, found in measured.items()
        },
        seconds=time.monotonic() - started,
        created_by=by,
    )


def projection(
    name: str, sizes: Sequence[int], measured: Measured, *, now: int, target: float | None
) -> dict[str, Any]:
    """One measure's entry of `LearningCurve.projections`; `now` verdicts are there."""
    curve = Projection(np.array(sizes), measured)
    present = curve.at(now)
    aim = target if target is not None else next_step(present.median)
    needed = curve.needed(aim, now=now)
    ahead = np.unique(np.linspace(0, HORIZON * now, DRAWN).astype(int))
    return finite(
        {
            "target": aim,
            "now": asdict(present),
            "chance": needed.chance,
            "needed": asdict(needed.verdicts),
            "sentence": _sentence(NAMES[name], aim, present.median, needed, curve, now),
            "ahead": [{"verdicts": int(n), **asdict(curve.at(n))} for n in ahead],
        }
    )


def next_step(value: float) -> float:
    """The next multiple of 5 points that is at least 2 points above; at most 1."""
    return min(1.0, round(math.ceil((value + AWAY) / STEP - 1e-9) * STEP, 2))


def _sentence(
    name: str, target: float, present: float, needed: Needed, curve: Projection, now: int
) -> str:
    """What can be said about `target`, and no more than that."""
    if needed.verdicts.median <= now:
        return (
            f"{name.capitalize()} of {percent(target)} is about reached (now {percent(present)})."
        )
    if needed.chance < OUT_OF_REACH:
        far = curve.at(HORIZON * now)
        return (
            f"More of this kind will not get to {name} of {percent(target)}: {HORIZON} times as "
            f"many would bring {percent(far.low)} to {percent(far.high)} (now {percent(present)})."
        )
    if math.isinf(needed.verdicts.median):
        return (
            f"Whether {name} of {percent(target)} can be reached with {HORIZON} times as many "
            f"verdicts cannot be told: the chance is about {percent(needed.chance, 0)} (now "
            f"{percent(present)})."
        )
    few, many = (max(0.0, end - now) for end in (needed.verdicts.low, needed.verdicts.high))
    at_most = "more than can be foreseen" if math.isinf(many) else f"{_rounded(many)}"
    return (
        f"About {_rounded(needed.verdicts.median - now)} more verdicts to reach {name} of "
        f"{percent(target)} (now {percent(present)}; 80 % interval {_rounded(few)} to {at_most})."
    )


def _rounded(verdicts: float) -> int:
    """To two digits: more would be a pretence."""
    return int(float(f"{verdicts:.2g}"))


def nested(rows: Sequence[SnapshotRow], points: int, seed: int) -> list[set[int]]:
    """Groups of ever larger parts, each within the next, the last all of them.

    Groups are dealt from all folds in turn, so that a small part leaves no sibling without data.
    """
    by_fold: list[list[int]] = [[] for _ in range(FOLDS)]
    for group, fold in sorted({(row.group_id, row.fold) for row in rows}):
        by_fold[fold].append(group)
    draw = random.Random(seed)  # noqa: S311  a reproducible choice, not a secret
    for groups in by_fold:
        draw.shuffle(groups)
    # The share of its fold that is dealt when a group's turn comes.
    turn = {
        group: (place + 1) / len(groups) for groups in by_fold for place, group in enumerate(groups)
    }
    return [
        {group for group, share in turn.items() if share <= (k + 1) / points + 1e-9}
        for k in range(points)
    ]


def learnt(rows: Sequence[SnapshotRow], groups: set[int], config: TrainConfig) -> list[int]:
    """Verdicts that each sibling learns from."""
    part = [row for row in rows if row.group_id in groups and row.trains(config)]
    return [
        len(fitting.blind(part, [row for row in rows if row.fold == fold]))
        for fold in {row.fold for row in rows}
    ]


def _check_asked(points: int, target: float | None) -> None:
    if points < 2:
        raise CannotTrain(f"A curve takes at least 2 sizes, not {points}.")
    if target is not None and not 0 < target < 1:
        raise CannotTrain(f"A target lies between 0 and 1; {target} does not.")


def _check_data(
    rows: Sequence[SnapshotRow], known: Judged, smallest: set[int], config: TrainConfig
) -> None:
    groups = len(np.unique(known.groups))
    if len(known.rows) < MIN_ROWS or groups < MIN_GROUPS:
        raise CannotTrain(
            f"A learning curve needs {MIN_ROWS} accepted verdicts of known sampling probability "
            f"from {MIN_GROUPS} sources; there are {len(known.rows)} from {groups}."
        )
    least = min(learnt(rows, smallest, config))
    if least < MIN_LEARNT:
        raise CannotTrain(
            f"At the smallest size a sibling would learn from {least} verdicts; it needs "
            f"{MIN_LEARNT}. Ask for fewer sizes, or accept verdicts about more pages and claims."
        )


def _answers(
    base: Base, rows: Sequence[SnapshotRow], part: set[int], config: TrainConfig
) -> np.ndarray:
    """(rows,) predicted columns out of fold, before calibration. A temperature changes none; what
    offsets per label would cost elsewhere only a released adapter tells, and here is none."""
    logits = fitting.out_of_fold(
        base, rows, config, groups=part, on_step=_go_on, on_wait=lambda: None
    )
    return logits.argmax(1)


def _go_on(_step: FitStep) -> None:
    """It holds no lease: whoever started it ends it."""


def _points(sizes: Sequence[int], measured: dict[str, Measured]) -> list[dict[str, Any]]:
    return [
        {"verdicts": size}
        | {
            name: {
                "value": float(found.values[i]),
                "error": float(np.sqrt(found.covariance[i, i])),
            }
            for name, found in measured.items()
        }
        for i, size in enumerate(sizes)
    ]
