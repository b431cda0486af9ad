"""benchmarks/labels.py and benchmarks/curve.py: what is spoilt, ranked and back-tested."""

import numpy as np
import pytest

from adapters_app.nli.learning_curve import Range
from benchmarks import curve, labels
from benchmarks.labels import CARELESS, Answers, Case

RNG = np.random.default_rng(2)


def test_a_tenth_of_the_labels_is_exchanged_for_another():
    truth = RNG.integers(0, 3, 5000)
    given, _ = labels.spoilt(Case("any", 5000, "flips-10", 0), truth, truth)
    assert (given != truth).mean() == pytest.approx(0.1, abs=0.015)
    assert set(np.unique((given - truth)[given != truth] % 3)) == {1, 2}
    clean, _ = labels.spoilt(Case("any", 5000, "none", 0), truth, truth)
    assert (clean == truth).all()


def test_only_the_last_annotator_repeats_what_the_model_said():
    truth, shown = RNG.integers(0, 3, 400), RNG.integers(0, 3, 400)
    given, who = labels.spoilt(Case("any", 400, "stamps", 0), truth, shown)
    assert (given[who == CARELESS] == shown[who == CARELESS]).all()
    assert (given[who != CARELESS] == truth[who != CARELESS]).all()


def test_a_ranking_that_knows_the_truth_finds_every_flip():
    truth = RNG.integers(0, 3, 300)
    wrong = RNG.random(300) < 0.15
    given = np.where(wrong, (truth + 1) % 3, truth)
    found = labels.ranking(np.eye(3)[truth] * 0.9 + 0.03, given, wrong)
    assert found == {"auroc": 1.0, "found": 1.0}


def test_one_who_confirms_everything_is_ranked_last_and_one_who_reads_is_not():
    truth = RNG.integers(0, 3, 300)
    probabilities = np.full((300, 3), 0.2)
    probabilities[np.arange(300), truth] = 0.6
    shown = np.where(RNG.random(300) < 0.45, truth, (truth + 1) % 3)
    who = RNG.integers(0, 4, 300)
    stamped = np.where(who == CARELESS, shown, truth)
    for given, share in ((stamped, 1.0), (truth, 0.25)):
        answers = Answers(probabilities, given, truth, shown, who, np.arange(300) // 5)
        assert labels.ranked_last(answers, simulations=40) == pytest.approx(share, abs=0.3)


def test_a_projection_is_judged_by_what_became():
    hit, miss = (curve.scored("flat", Range(0.5, 0.4, 0.6), became) for became in (0.55, 0.7))
    assert (hit["flat_covers"], hit["flat_score"]) == (True, pytest.approx(0.2))
    assert (miss["flat_covers"], miss["flat_score"]) == (False, pytest.approx(1.2))


def test_an_interval_for_what_is_measured_with_an_error_is_wider():
    found = curve.widened(Range(0.5, 0.4, 0.7), 0.0)
    assert (found.low, found.high) == (pytest.approx(0.4), pytest.approx(0.7))
    sure = curve.widened(Range(0.5, 0.5, 0.5), 0.1)  # 80 % of a normal: 1.28 standard errors
    assert (sure.low, sure.high) == (
        pytest.approx(0.3718, abs=1e-3),
        pytest.approx(0.6282, abs=1e-3),
    )
    assert curve.widened(Range(0.5, 0.4, 0.6), 0.1).high == pytest.approx(0.6626, abs=1e-3)


def test_a_curve_is_held_to_its_limits_by_each_truth():
    """Nine in ten covered is what is asked for, nine in ten missed is not."""
    hit = {"projected_covers": True, "projected_score": 0.1, "flat_covers": False}
    row = {"stream": "s", "measure": "accuracy", "became": 0.5, "projected": [0.4, 0.5, 0.6]}
    hit = {**row, **hit, "flat_score": 0.2}
    miss = {**hit, "projected_covers": False, "projected_score": 0.3}
    found = [{**each, "truth": curve.OUT_OF_FOLD} for each in [hit] * 8 + [miss] * 2]
    found += [{**each, "truth": curve.HELD_OUT} for each in [hit] * 2 + [miss] * 8]
    report = curve.told(found)
    assert [claim.kept for claim in report.claims] == [True, True, False, False]
    assert report.figures["back-tests"] == found
