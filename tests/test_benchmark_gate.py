"""The gate's back-tests: their trials have the truth they claim, and broken limits are told."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gate
from benchmarks.populations import Population, Trial, retrained, synthetic


@pytest.fixture(scope="module")
def population() -> Population:
    return synthetic("few", np.full(400, 5))


def gain_of(trial: Trial) -> float:
    right = [each.argmax(1) == trial.labels for each in (trial.incumbent, trial.candidate)]
    return float(np.average(right[1].astype(float) - right[0], weights=trial.weights))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gain", [-0.05, 0.0, 0.1])
def test_a_trial_has_the_gain_that_was_asked_for(
    population: Population, gain: float, weighted: bool
) -> None:
    trial = population.draw(60_000, gain, np.random.default_rng(0), weighted=weighted)
    assert gain_of(trial) == pytest.approx(gain, abs=0.012)
    assert len(trial) == pytest.approx(60_000, rel=0.02)


def test_models_that_differ_less_cannot_play_a_larger_gain(population: Population) -> None:
    with pytest.raises(ValueError, match="few: the models differ by"):
        population.draw(100, 0.5, np.random.default_rng(0))


def test_pages_stay_apart_when_trials_are_joined(population: Population) -> None:
    trials = [population.draw(50, 0.05, np.random.default_rng(seed)) for seed in (0, 1)]
    joined = trials[0].and_then(trials[1])
    assert len(joined) == 100
    assert len(np.unique(joined.groups)) == sum(len(np.unique(each.groups)) for each in trials)


def test_retrained_candidates_are_equals_that_are_more_like_each_other() -> None:
    trials = retrained(2, np.random.default_rng(0), alike=0.9, pages=6000)
    assert [gain_of(trial) for trial in trials] == pytest.approx([0, 0], abs=0.015)
    one, other = (trial.candidate.argmax(1) for trial in trials)
    assert (one == other).mean() > (one == trials[0].incumbent.argmax(1)).mean() + 0.05


def test_a_large_gain_is_seen_and_few_verdicts_settle_nothing(population: Population) -> None:
    seen = gate.rates(population.draw, 600, population.gain, 15)
    assert seen.better >= 0.8
    assert gate.rates(population.draw, 100, population.gain, 5).inconclusive == 1


def test_models_that_hardly_differ_are_judged_as_equals_and_named(population: Population) -> None:
    """An adapter that learnt next to nothing: what it cannot play is left out, not an error."""
    almost = np.where(
        (np.arange(len(population.labels)) % 50 == 0)[:, None], population.b, population.a
    )
    alike = replace(population, name="alike", b=almost)
    assert abs(alike.gain) < 0.05
    report = gate.back_test([alike], 4)
    claims = {claim.what for claim in report.claims}
    assert "alike: “better” of equals" in claims
    assert not any("alike: recommended at -5" in what for what in claims)
    assert "least width with every row five times, as a multiple" in claims
    shown = [
        str(cell) for table in report.tables for column in table.columns for cell in column.cells
    ]
    assert sum("they differ by +" in cell for cell in shown) >= 4


def test_a_broken_limit_fails_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, broken = gate.Claim("kept", 0.04, high=0.05), gate.Claim("coverage", 0.91, low=0.93)
    assert gate.tell(gate.Report(claims=[kept]), tmp_path / "gate.json") == 0
    assert gate.tell(gate.Report(claims=[kept, broken]), tmp_path / "gate.json") == 1
    assert "BROKEN" in capsys.readouterr().out
    stored = json.loads((tmp_path / "gate.json").read_text())["claims"]
    assert stored[1] == {"what": "coverage", "value": 0.91, "low": 0.93}


def test_a_label_made_worse_is_answered_worse_by_as_much_and_found(population: Population) -> None:
    trial = population.draw(3000, 0.0, np.random.default_rng(0))
    worse = gate.worse_at(trial, 1, 0.2, seed=0)
    before, after = (
        (each.candidate.argmax(1) == 1)[trial.labels == 1].mean() for each in (trial, worse)
    )
    assert before - after == pytest.approx(0.2, abs=0.03)
    others = trial.labels != 1
    assert np.array_equal(worse.candidate[others], trial.candidate[others])
    assert "1" in gate.lost_slices(worse)
    assert not gate.lost_slices(trial)
