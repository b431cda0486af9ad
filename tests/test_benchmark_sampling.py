"""Figures from two lots: their intervals hold the truth, and disagreements narrow the gain's."""

import numpy as np
import pytest

from benchmarks import sampling
from benchmarks.populations import Population, synthetic

BOTH = sampling.Lots(sampling.AUDITS, sampling.DISAGREEMENTS)


@pytest.fixture(scope="module")
def population() -> Population:
    return synthetic("few", np.full(1000, 5))


def test_the_lots_draw_with_the_chance_they_record(population: Population) -> None:
    rng = np.random.default_rng(0)
    live = population.draw(200_000, 0.05, rng)
    drawn = BOTH.draw(live, rng)
    for differ, chance in ((True, 0.525), (False, 0.05)):
        of_case = sampling.disagree(drawn) == differ
        every = int((sampling.disagree(live) == differ).sum())
        assert set(drawn.weights[of_case]) == {1 / chance}
        assert of_case.sum() / every == pytest.approx(chance, abs=0.005)


def test_the_interval_of_live_accuracy_holds_the_truth_only_with_the_probabilities(
    population: Population,
) -> None:
    truth = sampling.true_accuracy(population, sampling.GAIN)
    weighted, ignored = (
        sampling.measure(
            sampling.accuracy, truth, BOTH, population, answers=800, trials=1000, weighted=known
        )
        for known in (True, False)
    )
    assert 0.93 <= weighted.covered <= 0.97
    assert weighted.bias == pytest.approx(0, abs=0.005)
    assert ignored.covered < 0.5


def test_disagreements_narrow_the_interval_of_the_gain(population: Population) -> None:
    """As many verdicts from both lots as from audits alone; and the narrower one still holds."""
    share = float((population.a.argmax(1) != population.b.argmax(1)).mean())
    both, alone = (
        sampling.measure(sampling.gain, sampling.GAIN, lots, population, answers=800, trials=60)
        for lots in (BOTH, BOTH.alone(share))
    )
    assert both.rows == pytest.approx(alone.rows, rel=0.05)
    assert both.width < 0.85 * alone.width
    assert both.covered >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / 60)
