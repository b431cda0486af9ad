"""What people send of their own accord is weighted by what audits say of it."""

import random

import numpy as np
import pytest

from adapters_app.nli.config import TrainConfig
from adapters_app.reporting import LIMIT, confirmation_weight, sample_weights, training_weights
from adapters_app.snapshots import SnapshotRow
from corrections.models import Correction

Sampling, Verdict = Correction.Sampling, Correction.Verdict


def row(
    *,
    right: bool,
    sampling: str = Sampling.USER,
    probability: float | None = None,
    version: int | None = None,
):
    return SnapshotRow(
        correction_id=1,
        pair_digest="",
        premise="p",
        hypothesis="h",
        label="supports",
        predicted_label="supports" if right else "refutes",
        predicted_confidence=0.5,
        verdict=Verdict.CONFIRMED if right else Verdict.CORRECTED,
        fold=0,
        group_id=1,
        sampling=sampling,
        sampling_probability=probability,
        domain="",
        annotator="tina",
        reviewed_at="",
        predicted_version=version,
        predicted_digest="" if version is None else f"digest {version}",
    )


def people(
    n: int,
    *,
    accuracy: float,
    corrects: float,
    confirms: float,
    audits: float,
    version: int | None = None,
):
    """Verdicts on n answers: some drawn, of the others those that somebody cared to send."""
    draw = random.Random(5)
    rows = []
    for _ in range(n):
        right = draw.random() < accuracy
        if draw.random() < audits:
            drawn = {"sampling": Sampling.AUDIT, "probability": audits}
            rows.append(row(right=right, version=version, **drawn))
        elif draw.random() < (confirms if right else corrects):
            rows.append(row(right=right, version=version))
    return rows


def test_confirmations_count_for_those_nobody_sent():
    rows = people(20_000, accuracy=0.4, corrects=0.6, confirms=0.2, audits=0.1)
    assert confirmation_weight(rows) == pytest.approx(0.6 / 0.2, rel=0.1)
    weights = training_weights(rows)
    right = np.array([each.verdict == Verdict.CONFIRMED for each in rows])
    sent = np.array([each.sampling == Sampling.USER for each in rows])
    assert right[sent].mean() < 0.2
    # What is learnt from has as many right answers as there are.
    assert np.average(right[sent], weights=weights[sent]) == pytest.approx(0.4, abs=0.02)
    assert set(weights[~sent]) == {1.0}
    assert set(weights[sent & ~right]) == {1.0}


def test_people_who_confirm_more_than_they_correct_are_weighed_down():
    rows = people(20_000, accuracy=0.6, corrects=0.2, confirms=0.4, audits=0.1)
    assert confirmation_weight(rows) == pytest.approx(0.2 / 0.4, rel=0.1)


@pytest.mark.parametrize(
    "audits",
    [(0.0, 0.1), (0.1, 0.0), (0.1, 0.1), (0.02, 0.2)],
    ids=["begun late", "ended", "throughout", "more later"],
)
def test_odds_of_one_version_are_not_held_against_those_of_another(audits: tuple[float, float]):
    """All versions taken for one, audits begun late gave LIMIT, and those ended 0.7."""
    habits = {"corrects": 0.6, "confirms": 0.2}
    rows = [
        verdict
        for version, (accuracy, share) in enumerate(zip((0.4, 0.75), audits, strict=True), 1)
        for verdict in people(30_000, accuracy=accuracy, audits=share, version=version, **habits)
    ]
    assert confirmation_weight(rows) == pytest.approx(3.0, rel=0.12)


def test_where_no_version_has_both_kinds_all_are_taken_for_one():
    sent = [*(row(right=True, version=1) for _ in range(100))]
    sent += [row(right=False, version=1) for _ in range(200)]
    drawn = [
        row(right=right, sampling=Sampling.AUDIT, probability=0.1, version=2)
        for right in (True, False) * 200
    ]
    assert confirmation_weight([*sent, *drawn]) == pytest.approx(2.0, rel=0.05)
    # A handful that do have both say too little to stand for the others.
    few = [row(right=True, version=2)] * 5
    assert confirmation_weight([*sent, *drawn, *few]) == pytest.approx(1.9, rel=0.05)


def test_one_row_that_stands_for_thousands_is_one():
    """Taken for ninety it said that nearly all answers were wrong: 0.2 instead of 2.6."""
    rows = people(900, accuracy=0.6, corrects=0.6, confirms=0.2, audits=0.1)
    rare = row(right=False, sampling=Sampling.AUDIT, probability=1e-4)
    assert confirmation_weight(rows) > 2
    assert 0.75 < confirmation_weight([*rows, rare]) < 1


def test_answers_drawn_more_often_count_less():
    """Right answers were drawn four times as often: what was drawn is not what there is."""
    drawn = [
        *(row(right=True, sampling=Sampling.DISAGREEMENT, probability=0.4) for _ in range(400)),
        *(row(right=False, sampling=Sampling.AUDIT, probability=0.1) for _ in range(100)),
    ]
    sent = [*(row(right=True) for _ in range(100)), *(row(right=False) for _ in range(200))]
    assert confirmation_weight([*drawn, *sent]) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(right=True), row(right=False)],
        [row(right=True, sampling=Sampling.AUDIT, probability=0.1)] * 9,
        # Corrections alone: there is nothing that could count for more.
        [row(right=False)] * 50 + [row(right=False, sampling=Sampling.AUDIT, probability=0.1)] * 20,
        [row(right=True, sampling=Sampling.COMPLETE, probability=1.0)] * 9 + [row(right=False)] * 9,
    ],
)
def test_nothing_is_weighted_where_nothing_is_known(rows):
    assert confirmation_weight(rows) == 1
    assert (training_weights(rows) == 1).all()


def test_few_audits_move_little_and_many_not_without_limit():
    sent = [row(right=True)] * 10 + [row(right=False)] * 90
    audit = row(right=True, sampling=Sampling.AUDIT, probability=0.1)
    assert 1 < confirmation_weight([*sent, audit]) < 2
    assert confirmation_weight([*sent, *[audit] * 900]) == LIMIT


def test_the_documents_recipe_weighs_nothing():
    assert TrainConfig().reporting_weights
    assert not TrainConfig.from_mapping({"preset": "seed"}).reporting_weights


def test_all_verdicts_together_are_a_sample_once_enough_were_drawn():
    rows = people(20_000, accuracy=0.4, corrects=0.6, confirms=0.2, audits=0.1)
    right = np.array([each.verdict == Verdict.CONFIRMED for each in rows])
    assert np.average(right, weights=sample_weights(rows)) == pytest.approx(0.4, abs=0.02)
    drawn = [each for each in rows if each.sampling == Sampling.AUDIT]
    sent = [each for each in rows if each.sampling == Sampling.USER]
    assert sample_weights(sent + drawn[:9]) is None
    assert sample_weights(sent + drawn[:10]) is not None


def test_a_complete_set_and_live_answers_are_pooled_by_their_numbers_of_rows():
    live = [
        row(right=right, sampling=sampling, probability=probability)
        for right in (True, False)
        for sampling, probability in [(Sampling.AUDIT, 0.01), (Sampling.DISAGREEMENT, 0.5)] * 10
    ]
    complete = [row(right=True, sampling=Sampling.COMPLETE, probability=1.0)] * 60
    weights = sample_weights([*live, *complete])
    assert weights[:40].sum() == pytest.approx(40)
    assert weights[0] == pytest.approx(50 * weights[1])  # 1 / 0.01 against 1 / 0.5
    assert weights[40:] == pytest.approx(1)
