"""How much more? The projection on curves whose end is known, and the command on a tiny base."""

from dataclasses import replace

import numpy as np
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone
from sklearn.metrics import accuracy_score, f1_score

from adapters_app import curves, snapshots, storage
from adapters_app.models import LearningCurve, Snapshot
from adapters_app.nli import learning_curve
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.learning_curve import Measured, Projection, Range
from corrections.labels import LABELS
from tests.verdicts import accept

pytest_plugins = ("tests.serving",)

SIZES = np.array([0, 60, 120, 180, 240])
ERROR = np.full((5, 5), 0.02**2) + np.eye(5) * 0.012**2


def power_law(n, *, start=0.4, top=0.7, bend=80, rate=0.8):
    return top - (top - start) * (1 + np.asarray(n) / bend) ** -rate


def seen(values, *, error=0.004) -> Measured:
    return Measured(np.asarray(values, dtype=float), np.eye(len(values)) * error**2)


def test_figures_and_their_errors_are_those_of_the_rows():
    rng = np.random.default_rng(3)
    labels, groups = rng.integers(0, 3, 600), np.arange(600) // 3
    weights = rng.uniform(1, 5, 600)
    predicted = np.stack([np.where(rng.random(600) < p, labels, 0) for p in (0.3, 0.6)])
    found = learning_curve.measure(predicted, labels, groups, weights)
    for i, columns in enumerate(predicted):
        assert found["accuracy"].values[i] == pytest.approx(
            accuracy_score(labels, columns, sample_weight=weights)
        )
        assert found["macro_f1"].values[i] == pytest.approx(
            f1_score(labels, columns, average="macro", sample_weight=weights)
        )
    error = np.sqrt(found["accuracy"].covariance[0, 0])
    assert 0.015 < error < 0.03  # √(p q / n) is 0.02, the weights add a little
    assert found["accuracy"].covariance[0, 1] > 0  # what is hard is hard at both sizes


def test_a_power_law_is_continued():
    curve = Projection(SIZES, seen(power_law(SIZES)))
    ahead = curve.at(960)
    assert ahead.low < power_law(960) < ahead.high
    assert ahead.median == pytest.approx(power_law(960), abs=0.05)
    needed = curve.needed(float(power_law(420)), now=240)
    assert needed.verdicts.low < 420 < needed.verdicts.high
    assert needed.chance > 0.8


@pytest.mark.parametrize("count", [100, 1_000, 5_000, 20_000, 100_000])
@pytest.mark.parametrize("points", [4, 10])
def test_however_much_is_known_the_seed_decides_nothing(count: int, points: int):
    """Of 100,000 draws from the prior 131 were left at 1,000 verdicts, and 16 at 20,000."""
    sizes = np.linspace(0, 0.8 * count, points + 1)
    alike = 0.6 + 0.4 * np.eye(points + 1)
    luck = np.random.default_rng(count).normal(0, 0.01, points + 1)
    measured = Measured(power_law(sizes, bend=100, rate=0.6) + luck, 0.2 / count * alike)
    curves_ = [Projection(sizes, measured, seed=seed) for seed in range(3)]
    assert min(curve.effective_draws for curve in curves_) >= 1000
    for ask in (count, 4 * count):
        told = [curve.at(ask) for curve in curves_]
        width = np.mean([each.high - each.low for each in told])
        for end in ("median", "low", "high"):
            assert np.ptp([getattr(each, end) for each in told]) < 0.1 * width
    target = curves.next_step(curves_[0].at(count).median)
    needed = [curve.needed(target, now=count) for curve in curves_]
    assert np.ptp([each.chance for each in needed]) < 0.03


@pytest.mark.parametrize(
    "values",
    [
        [0.6, 0.35, 0.5, 0.55, 0.58],  # learning first makes it worse
        [0.4, 0.75, 0.8, 0.81, 0.82],
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.3, 0.9, 0.1, 0.95, 0.2],  # no power law at all
    ],
)
def test_odd_curves_are_continued_too(values: list[float]):
    curve = Projection(np.array([0, 200, 400, 600, 800]), seen(values, error=0.01))
    ahead = curve.at(4000)
    assert curve.effective_draws >= 1000
    assert 0 <= ahead.low <= ahead.median <= ahead.high <= 1


def test_the_interval_covers_curves_of_other_families():
    """Truths that are no power law, seen with errors that rows share."""
    rng = np.random.default_rng(5)
    covered, ours, flat = 0, [], []
    for trial in range(30):
        start, gain = rng.uniform(0.35, 0.5), rng.uniform(-0.02, 0.3)
        grown = [lambda n: 1 - np.exp(-n / 150), lambda n: np.log1p(n / 40) / np.log1p(20)][
            trial % 2
        ]
        measured = Measured(rng.multivariate_normal(start + gain * grown(SIZES), ERROR), ERROR)
        truth = start + gain * grown(480)
        found = Projection(SIZES, measured).at(480)
        covered += found.low <= truth <= found.high
        ours.append(learning_curve.interval_score(found, truth))
        flat.append(learning_curve.interval_score(learning_curve.flat(measured), truth))
    assert covered >= 0.7 * 30
    assert np.mean(ours) < np.mean(flat)


def test_growth_that_is_nearly_over_is_not_continued_for_long():
    """While any top was as likely as another the ratio was 1.6."""
    rng = np.random.default_rng(7)
    sizes, ours, flat = SIZES[1:], [], []

    def grown(n):
        return 0.5 - 0.15 * np.exp(-n / 80)

    error = np.full((4, 4), 0.02**2) + np.eye(4) * 0.02**2
    for _ in range(40):
        measured = Measured(rng.multivariate_normal(grown(sizes), error), error)
        found = Projection(sizes, measured).at(480)
        ours.append(learning_curve.interval_score(found, grown(480)))
        flat.append(learning_curve.interval_score(learning_curve.flat(measured), grown(480)))
    assert np.mean(ours) < 1.4 * np.mean(flat)


def test_the_interval_score_punishes_width_and_misses():
    assert learning_curve.interval_score(Range(0.5, 0.4, 0.6), 0.5) == pytest.approx(0.2)
    assert learning_curve.interval_score(Range(0.5, 0.4, 0.6), 0.65) == pytest.approx(0.7)


def sentence(values, target, *, error=0.002):
    found = curves.projection("accuracy", SIZES, seen(values, error=error), now=300, target=target)
    return found["sentence"]


def test_what_is_said_is_no_more_than_is_known():
    growing = power_law(SIZES)
    reach = float(power_law(600))
    assert sentence(growing, reach).startswith("About ")
    assert "more verdicts to reach an accuracy of" in sentence(growing, reach)
    assert "is about reached" in sentence(growing, 0.5)
    flat = [0.40, 0.455, 0.46, 0.46, 0.46]
    assert "More of this kind will not get to an accuracy of 90.0 %" in sentence(flat, 0.9)
    assert "cannot be told" in sentence([0.40, 0.42, 0.43, 0.44, 0.45], 0.52, error=0.03)


@pytest.mark.parametrize(("value", "target"), [(0.52, 0.55), (0.54, 0.6), (0.53, 0.55), (0.99, 1)])
def test_without_a_target_the_next_step_is_asked_about(value, target):
    assert curves.next_step(value) == target


@pytest.mark.django_db
def test_sizes_count_what_siblings_learn_from():
    """Of three pages about each claim, one on each fold, a sibling may learn nothing."""
    accept(27, pages=9, folds=3)
    rows = snapshots.load(snapshots.freeze())
    groups = {row.group_id for row in rows}
    assert curves.learnt(rows, groups, TrainConfig()) == [18, 18, 18]
    alike = [replace(row, hypothesis=f"claim {n // 9}") for n, row in enumerate(rows)]
    assert curves.learnt(alike, groups, TrainConfig()) == [0, 0, 0]


# --- The command ----------------------------------------------------------------------------------

QUICK = TrainConfig(
    epochs=2, min_steps=0, batch_size=16, learning_rate=0.03, anchor_weight=0, max_length=64
)


def test_a_curve_is_measured_on_nested_parts_and_stored(on_tiny, trainer, monkeypatch):
    accept(180, pages=30)
    learnt = []
    train = curves.fitting.train

    def spy(base, examples, config, **rest):
        learnt.append({example.premise for example in examples})
        return train(base, examples, config, **rest)

    monkeypatch.setattr(curves.fitting, "train", spy)
    told = []
    curve = curves.draw(
        by=trainer, points=2, config=QUICK, on_point=lambda *point: told.append(point)
    )
    assert curve == LearningCurve.objects.get()
    assert [point["verdicts"] for point in curve.points] == [0, 72, 144]
    assert [size for size, _ in told] == [72, 144]
    assert len(learnt) == 10
    small, large = set.union(*learnt[:5]), set.union(*learnt[5:])
    assert small < large
    # The word that gives the label away is learnt: the curve rises from the base.
    assert curve.points[2]["accuracy"]["value"] > curve.points[0]["accuracy"]["value"]
    ahead = curve.projections["macro_f1"]["ahead"]
    assert (ahead[0]["verdicts"], ahead[-1]["verdicts"]) == (0, 720)
    assert all(row["low"] <= row["median"] <= row["high"] for row in ahead)


def test_a_snapshot_pruned_while_a_curve_is_measured_is_stored_again(on_tiny, trainer, monkeypatch):
    accept(180, pages=30)
    monkeypatch.setattr(
        curves, "_answers", lambda _base, rows, *_: np.arange(len(rows)) % len(LABELS)
    )

    def hours_later(*_):
        Snapshot.objects.update(frozen_at=timezone.now() - 2 * storage.ORPHAN_AGE)
        snapshots.prune()

    curve = curves.draw(by=trainer, points=2, config=QUICK, on_point=hours_later)
    curve.refresh_from_db()
    assert len(snapshots.load(curve.snapshot)) == 180


@pytest.mark.parametrize(
    ("verdicts", "asked", "reason"),
    [
        ({"count": 90, "pages": 30}, {}, "needs 100 accepted verdicts"),
        ({"count": 150, "pages": 10}, {}, "from 20 sources; there are 150 from 10"),
        ({"count": 150, "pages": 30, "folds": 1}, {}, "would learn from 0 verdicts"),
        ({"count": 150, "pages": 30}, {"points": 1}, "at least 2 sizes"),
        ({"count": 150, "pages": 30}, {"target": 60.0}, "between 0 and 1"),
    ],
)
def test_too_little_for_a_curve_is_said_before_any_training(on_tiny, db, verdicts, asked, reason):
    accept(**verdicts)
    with pytest.raises(CommandError, match=reason):
        call_command("learning_curve", **asked)
    assert not LearningCurve.objects.exists()
