"""Which rows carry figures, and how much each counts."""

from dataclasses import replace

import numpy as np
import pytest

from adapters_app import evaluation
from adapters_app.models import AdapterVersion, CalibrationEvaluation, ShadowEvaluation
from adapters_app.nli import guard, metrics
from adapters_app.nli.betting import bet_on_gain
from adapters_app.nli.calibration import (
    BiasCorrectedTemperature,
    Identity,
    TemperatureScaling,
)
from adapters_app.snapshots import SnapshotRow
from corrections.labels import LABELS


def row(number: int, sampling: str, probability: float | None, *, right: bool = True):
    """A verdict on a page of its own, on an answer `supports`."""
    return SnapshotRow(
        correction_id=number,
        pair_digest=f"{number:064}",
        premise=f"premise {number}",
        hypothesis=f"hypothesis {number}",
        label="supports" if right else "refutes",
        predicted_label="supports",
        predicted_confidence=0.7,
        verdict="confirmed" if right else "corrected",
        fold=number % 5,
        group_id=number,
        sampling=sampling,
        sampling_probability=probability,
        domain="",
        annotator="curt",
        reviewed_at=f"2026-01-01T00:00:{number % 60:02}",
    )


def mixed(audit: float) -> list[SnapshotRow]:
    """A labelled set of 100, 60 of them right, and 20 verdicts on live answers, all wrong."""
    labelled = [row(n, "complete", 1.0, right=n < 60) for n in range(100)]
    drawn = [row(n, "audit", audit, right=False) for n in range(100, 110)]
    drawn += [row(n, "disagreement", 5 * audit, right=False) for n in range(110, 120)]
    return [*labelled, *drawn, row(120, "user", None, right=False)]


def accuracy(rows: list[SnapshotRow]) -> float:
    return evaluation.figures_on(np.tile([0.8, 0.1, 0.1], (len(rows), 1)), rows)["accuracy"]


@pytest.mark.parametrize("audit", [0.2, 0.02])
def test_a_labelled_set_and_live_answers_count_by_their_verdicts(audit: float) -> None:
    """Whatever the traffic: plain weights would let 20 verdicts outvote 100, .04 or .38."""
    assert accuracy(mixed(audit)) == pytest.approx(60 / 120)


def test_within_live_answers_each_stands_for_those_that_were_not_drawn() -> None:
    weights = evaluation.judged(mixed(0.1)).weights
    assert weights[:100] == pytest.approx(1)
    assert weights[100] / weights[-1] == pytest.approx(5)
    assert weights[100:].sum() == pytest.approx(20)
    assert len(weights) == 120  # what was reported by choice has none


def test_rows_that_one_of_two_models_has_learnt_about_are_left_out_of_their_comparison() -> None:
    rows = [replace(row(n, "complete", 1.0), hypothesis=f"h{n}") for n in range(40)]
    logits = np.zeros((40, 3), dtype=np.float32)
    general = np.zeros((len(guard.unlabelled()), 3), dtype=np.float32)
    model = evaluation.Contestant(logits, general, Identity())
    found = evaluation.measure(
        snapshot=None,
        rows=rows,
        candidate=replace(model, digest="b", unseen=np.arange(40) >= 10),
        incumbent=replace(model, digest="a", unseen=np.arange(40) < 30),
        base=model,
        served=(None, None),
        guard_set=guard.load(),
        seed=0,
    )
    assert found.rows == 20
    assert "20 verdicts are left out: one of the models has learnt from other verdicts" in " ".join(
        found.advice
    )


def test_where_every_claim_was_learnt_that_is_said() -> None:
    """… not that probabilities are unknown: these are known."""
    rows = [row(n, "complete", 1.0) for n in range(20)]
    general = np.zeros((len(guard.unlabelled()), 3), dtype=np.float32)
    model = evaluation.Contestant(np.zeros((20, 3), dtype=np.float32), general, Identity())
    found = evaluation.measure(
        snapshot=None,
        rows=rows,
        candidate=replace(model, digest="b", unseen=np.zeros(20, dtype=bool)),
        incumbent=model,
        base=model,
        served=(None, None),
        guard_set=guard.load(),
        seed=0,
    )
    assert (found.rows, found.verdict) == (0, "inconclusive")
    assert found.advice == [evaluation.ALL_CLAIMS_LEARNT]


def test_the_most_disagreements_on_a_page_are_those_of_known_rows() -> None:
    """Page 7 has three, page 8 four, of which two are of rows that do not count."""
    rows = [replace(row(n, "complete", 1.0), group_id=7 if n < 5 else 8) for n in range(10)]
    one, other = np.zeros((10, 3)), np.zeros((10, 3))
    other[[0, 1, 2, 5, 6, 8, 9], 1] = 1
    models = [evaluation.Contestant(logits, logits, Identity()) for logits in (one, other)]
    assert evaluation.most_disagreements(*models, rows, np.arange(10) < 8) == 3
    assert evaluation.most_disagreements(*models, rows, np.ones(10, dtype=bool)) == 4
    assert evaluation.most_disagreements(models[0], models[0], rows, np.arange(10) < 8) == 1


def test_lost_and_gained_answers_are_read_by_turns() -> None:
    """0 to 5 are lost, 6 and 7 gained, 8 and 9 wrong either way, 10 unchanged."""
    lost, gained = np.arange(11) < 6, (np.arange(11) >= 6) & (np.arange(11) < 8)
    order = evaluation._by_turns(np.arange(10), lost, gained)
    assert order == [0, 6, 1, 7, 2, 3, 4, 5, 8, 9]


def measured(*, gained: int, lost: int, rows: int = 240, served=(None, None), **how):
    """A candidate that is right where the base is not on `gained` rows, and wrong on `lost`."""
    before = np.tile([3.0, 0.0, 0.0], (rows, 1))  # the base says `supports`
    after = before.copy()
    after[: gained + lost] = [0.0, 3.0, 0.0]
    general = np.zeros((len(guard.unlabelled()), 3), dtype=np.float32)
    base = evaluation.Contestant(before, general, Identity())
    return evaluation.measure(
        snapshot=None,
        rows=[row(n, "complete", 1.0, right=n >= gained) for n in range(rows)],
        candidate=evaluation.Contestant(after, general, Identity(), digest="b"),
        incumbent=base,
        base=base,
        served=served,
        guard_set=guard.load(),
        seed=0,
        **how,
    )


def test_advice_names_what_a_candidate_was_compared_with() -> None:
    chosen = AdapterVersion(number=3)
    found = measured(gained=0, lost=30, served=(chosen, None), incumbent_served=False)
    assert found.incumbent_served is False
    assert "Its probabilities are worse than those of v3 (Brier score)." in found.advice
    assert found.advice[-1] == (
        "This is no evidence for a promotion: v3 did not serve when it was measured."
    )
    served = measured(gained=0, lost=30)
    assert "Its probabilities are worse than those of the base (Brier score)." in served.advice
    assert "no evidence" not in " ".join(served.advice)
    assert served.incumbent_served


def test_losses_that_add_up_since_the_base_are_told() -> None:
    """20 lost before; of the candidate's own step, 8 lost and 4 gained, nobody can tell."""
    guard_set, groups = guard.load(), np.unique(guard.load().groups)

    def answering(wrong: np.ndarray) -> evaluation.Contestant:
        right = 3.0 * np.eye(3)[guard_set.labels]
        right[np.isin(guard_set.groups, wrong)] *= -1
        return evaluation.Contestant(right, right, Identity())

    base, before = answering(groups[:0]), answering(groups[:20])
    after = answering(np.concatenate([groups[4:20], groups[20:28]]))
    found = evaluation.compare_on_guard(after, before, base, guard_set)
    assert not found["fails"]
    assert metrics.guard_fails(found["p_loss_since_base"])
    rows = np.eye(3)[np.arange(30) % 3]
    alike = metrics.compare(rows, rows, np.arange(30) % 3, np.arange(30))
    how = {"identical": False, "learnt": 0, "incumbent": "v1"}
    assert "v1 had lost some of it" in " ".join(evaluation._advice(alike, alike, found, **how))
    own_step = evaluation.compare_on_guard(before, before, before, guard_set)
    assert "since the base" not in " ".join(evaluation._advice(alike, alike, own_step, **how))


def looks(*numbers: int, rows: int = 240) -> list[ShadowEvaluation]:
    """Comparisons of versions of these numbers with what serves."""
    return [
        ShadowEvaluation(candidate_id=n, rows=rows, effective_groups=rows, rows_fingerprint="a")
        for n in numbers
    ]


def test_an_equal_that_luck_favours_is_not_better_at_the_fifth_attempt() -> None:
    first = measured(gained=30, lost=14)
    assert (first.verdict, first.figures["attempt"]) == ("better", 1)
    assert first.figures["against_incumbent"]["accuracy"]["confidence"] == 0.95
    assert "comparison with" not in " ".join(first.advice)
    fifth = measured(gained=30, lost=14, earlier=looks(1, 2, 3, 4))
    assert (fifth.verdict, fifth.figures["attempt"]) == ("not_worse", 5)
    difference = fifth.figures["against_incumbent"]["accuracy"]
    assert difference["confidence"] == pytest.approx(0.9975)
    assert difference["low"] < 0 < first.figures["against_incumbent"]["accuracy"]["low"]
    assert fifth.figures["against_base"]["accuracy"]["confidence"] == 0.95
    assert fifth.advice[-1] == (
        "This is the 5th comparison with the base; to be called better or not worse, a candidate "
        "now has to be surer: 99.8 % instead of 95 %."
    )


def test_a_worse_candidate_is_worse_at_any_attempt() -> None:
    first, tenth = (measured(gained=14, lost=30, earlier=looks(*range(k))) for k in (0, 9))
    assert first.verdict == tenth.verdict == "worse"
    assert first.guard == tenth.guard


def test_comparisons_that_could_find_nothing_are_no_attempts() -> None:
    few = looks(1, 2, 3, rows=149)
    assert measured(gained=30, lost=14, earlier=few).verdict == "better"
    assert measured(gained=30, lost=14, earlier=few + looks(4)).figures["attempt"] == 2


def test_another_look_at_a_version_is_an_attempt_unless_it_is_on_the_same_rows() -> None:
    version = AdapterVersion(pk=7, number=7)
    first = measured(gained=30, lost=14, registered=(version, None))
    seen = looks(7, 8)
    seen[0].rows_fingerprint = first.rows_fingerprint
    again = measured(gained=30, lost=14, registered=(version, None), earlier=seen)
    assert (again.verdict, again.figures["attempt"]) == ("better", 1)
    assert again.figures == first.figures
    more = measured(gained=30, lost=14, rows=250, registered=(version, None), earlier=seen)
    assert more.figures["attempt"] == 3
    calibrated = (version, CalibrationEvaluation(pk=3))
    other = measured(gained=30, lost=14, registered=calibrated, earlier=seen)
    assert other.figures["attempt"] == 3
    twice = measured(gained=30, lost=14, earlier=[*seen, *seen])
    assert twice.figures["attempt"] == 3


def test_how_many_more_are_needed_is_said_of_the_next_comparison() -> None:
    """Which is another attempt, unless this one was on too few rows to be one."""
    asked = [measured(gained=20, lost=20, earlier=looks(*range(k))).needed_pairs for k in (0, 1, 4)]
    same = np.repeat([1.0, -1.0, 0.0], [20, 20, 200])
    labels = np.zeros(240, dtype=int)
    right = [np.where(same == wrong, 1, 0) for wrong in (1.0, -1.0)]
    domain = metrics.compare(*(np.eye(3)[each] for each in right), labels, np.arange(240))
    needed = [metrics.needed_pairs(domain, level=metrics.spent_level(k)) for k in (2, 3, 6)]
    assert asked == needed
    assert needed[0] > metrics.needed_pairs(domain)
    few = measured(gained=20, lost=20, rows=149)
    assert few.needed_pairs < measured(gained=20, lost=20, rows=150).needed_pairs - 20


def test_live_answers_alone_keep_their_estimate() -> None:
    rows = [row(1, "audit", 0.5), row(2, "audit", 0.5), row(3, "disagreement", 0.1, right=False)]
    assert accuracy(rows) == pytest.approx(4 / 14)


def test_a_bet_does_not_know_how_many_verdicts_are_to_come() -> None:
    rows = mixed(0.2)
    order = np.random.default_rng(0).permutation(120)
    rows = [
        row(i, each.sampling, each.sampling_probability)
        for i, each in zip(range(120), (rows[j] for j in order), strict=True)
    ]
    before, after = np.tile([0.1, 0.8, 0.1], (120, 1)), np.tile([0.8, 0.1, 0.1], (120, 1))
    stamps = sorted(range(120), key=lambda i: (rows[i].reviewed_at, rows[i].group_id))
    plain = bet_on_gain(
        right_a=np.zeros(120, dtype=bool),
        right_b=np.ones(120, dtype=bool),
        differ=np.ones(120, dtype=bool),
        groups=np.array([rows[i].group_id for i in stamps]),
        weights=np.array([1 / (rows[i].sampling_probability or 1) for i in stamps]),
    )
    assert evaluation.confirmation(before, after, rows)["wealth"] == pytest.approx(plain.wealth)


def test_rows_of_a_page_or_claim_that_come_in_between_others_confirm_nothing() -> None:
    """Sixty verdicts, all won by the candidate, on pages or claims of six rows each."""
    rows = [
        replace(row(n, "complete", 1.0), reviewed_at=f"2026-01-01T00:{n:02}:00") for n in range(60)
    ]
    before, after = np.tile([0.1, 0.8, 0.1], (60, 1)), np.tile([0.8, 0.1, 0.1], (60, 1))
    paged = [replace(each, group_id=n // 6) for n, each in enumerate(rows)]
    found = evaluation.confirmation(before, after, paged, most=6)
    assert (found["confirmed"], found["dropped"], found["rows"]) == (True, 0.0, 54)
    mixed = [replace(each, group_id=n % 10) for n, each in enumerate(rows)]
    claims = [replace(each, hypothesis=f"Claim {n % 10}.") for n, each in enumerate(rows)]
    # Where claims come again, the page of the last new one still waits.
    for each, counted in ((mixed, 10), (claims, 9)):
        found = evaluation.confirmation(before, after, each, most=6)
        assert (found["confirmed"], found["rows"]) == (False, counted)
        assert found["dropped"] == pytest.approx(50 / (50 + counted))


def live(answers: int) -> tuple[list[SnapshotRow], np.ndarray]:
    """Verdicts on answers `supports`, all given with 98 %, of which 45 % are right, and their
    logits. A tenth is drawn; of the others people correct three of five and confirm one."""
    draw = np.random.default_rng(3)
    rows = []
    for number in range(answers):
        right = bool(draw.random() < 0.45)
        if draw.random() < 0.1:
            rows.append(row(number, "audit", 0.1, right=right))
        elif draw.random() < (0.2 if right else 0.6):
            rows.append(row(number, "user", None, right=right))
    return rows, np.tile([4.6, 0.0, 0.0], (len(rows), 1))


def test_a_calibrator_learns_from_all_verdicts_and_its_figures_are_of_the_known_ones() -> None:
    rows, logits = live(2000)
    calibrator, fitted = evaluation.calibrate(logits, rows)
    known = sum(each.known for each in rows)
    assert (fitted.fitted_rows, fitted.rows) == (len(rows), known)
    assert known < len(rows) / 3
    # What people sent alone would say a fifth.
    assert calibrator.predict_proba(logits[:1])[0, 0] == pytest.approx(0.45, abs=0.05)
    assert fitted.log_loss_after < fitted.log_loss_before
    assert set(fitted.candidates) == {"none", "temperature"}
    assert set(fitted.not_tried) == {"bcts", "platt"}


def test_a_calibrator_is_worth_what_it_is_on_rows_that_it_was_not_fitted_on() -> None:
    """Labels by lot: offsets fitted on 150 rows have more of these right, and of no others."""
    seen, unseen = [], []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        rows = [
            replace(row(n, "complete", 1.0), label=LABELS[draw.integers(3)].value)
            for n in range(150)
        ]
        logits = draw.normal(size=(150, 3))
        columns = evaluation.label_columns(rows)
        fitted = BiasCorrectedTemperature().fit(logits, columns)
        seen.append((fitted.predict_proba(logits).argmax(1) == columns).mean())
        crossed = evaluation.cross_fitted(fitted, logits, rows)
        unseen.append((crossed.argmax(1) == columns).mean())
    assert np.mean(seen) > 1 / 3 + 0.02
    assert np.mean(unseen) == pytest.approx(1 / 3, abs=0.015)


@pytest.mark.django_db
def test_a_calibrator_fitted_anew_on_the_same_rows_is_as_good_as_the_one_before() -> None:
    """Both are judged by fits without the row's fold; the old one as it stands looked better."""
    draw = np.random.default_rng(1)
    rows = [row(n, "complete", 1.0, right=draw.random() < 0.6) for n in range(400)]
    rows = [replace(each, label=LABELS[n % 7 % 3].value) for n, each in enumerate(rows)]
    logits = draw.normal(size=(400, 3)) + 2 * np.eye(3)[evaluation.label_columns(rows)]
    first, told = evaluation.calibrate(logits, rows)
    stored = CalibrationEvaluation(method=first.method, parameters=first.to_dict())
    _, second = evaluation.calibrate(logits, rows, replaces=stored)
    assert first.method != "none"
    assert second.replaced["log_loss"] == pytest.approx(told.log_loss_after, abs=1e-12)
    assert second.log_loss_after <= second.replaced["log_loss"]


def test_rows_that_a_calibrator_never_saw_are_answered_by_itself() -> None:
    rows = [row(n, "complete", 1.0, right=n % 5 > 1) for n in range(200)]
    logits = np.tile([4.6, 0.0, 0.0], (200, 1))
    seen = np.arange(200) < 150
    fitted = TemperatureScaling().fit(logits[seen], evaluation.label_columns(rows)[seen])
    crossed = evaluation.cross_fitted(fitted, logits, rows, among=seen)
    assert (crossed[~seen] == fitted.predict_proba(logits[~seen])).all()
    assert not np.allclose(crossed[seen], fitted.predict_proba(logits[seen]), atol=1e-6)


def frequent_here() -> tuple[list[SnapshotRow], np.ndarray]:
    """Verdicts among which some labels are much more frequent than others."""
    rows, logits = live(8000)
    wrong = [i for i, each in enumerate(rows) if each.label == "refutes"]
    for i in wrong[::5]:
        rows[i] = replace(rows[i], label="neutral")
    return rows, logits


def general_answers(*, sure: float) -> np.ndarray:
    """Right answers to the guard set, by so many nats."""
    return sure * np.eye(3)[guard.load().labels]


def test_offsets_per_label_are_learnt_from_a_sample_only() -> None:
    rows, logits = frequent_here()
    calibrator, fitted = evaluation.calibrate(logits, rows, general=general_answers(sure=20))
    assert fitted.fitted_rows == fitted.rows == sum(each.known for each in rows)
    assert calibrator.by_label


def test_offsets_per_label_that_change_answers_to_general_pairs_are_not_taken() -> None:
    """They are added to every answer, and what is frequent here is not frequent everywhere."""
    rows, logits = frequent_here()
    calibrator, fitted = evaluation.calibrate(logits, rows, general=general_answers(sure=0.2))
    assert not calibrator.by_label
    assert fitted.fitted_rows == len(rows)
    assert "points on general pairs" in fitted.not_tried["bcts"]
    _, unknown = evaluation.calibrate(logits, rows)
    assert (unknown.method, "not known" in unknown.not_tried["bcts"]) == (fitted.method, True)


def test_offsets_per_label_are_not_learnt_from_few_pages() -> None:
    """However many rows: which label is frequent differs from page to page."""
    rows, logits = frequent_here()
    few = [replace(each, group_id=n % 12) for n, each in enumerate(rows)]
    _, fitted = evaluation.calibrate(logits, few, general=general_answers(sure=20))
    assert "needs 30 sources of like size" in fitted.not_tried["bcts"]


def test_without_draws_a_calibrator_is_fitted_on_rows_of_known_probability_alone() -> None:
    rows, logits = live(2000)
    sent = [each for each in rows if not each.known]
    _, fitted = evaluation.calibrate(logits[: len(sent)], sent)
    assert (fitted.method, fitted.fitted_rows, fitted.rows) == ("none", 0, 0)
    sure = np.tile([4.6, 0.0, 0.0], (120, 1))
    _, fitted = evaluation.calibrate(sure, [*mixed(0.1)[:100], *sent[:20]])
    assert (fitted.fitted_rows, fitted.rows) == (100, 100)


def test_a_domain_that_the_candidate_answers_worse_is_named_whatever_it_gains() -> None:
    """All of “policy” is lost and all of “papers” gained, which are twice as many."""
    rows = [
        replace(row(n, "complete", 1.0), domain="policy" if n % 3 == 0 else "papers")
        for n in range(240)
    ]
    right, wrong = np.array([4.0, 0, 0]), np.array([0, 4.0, 0])
    of_policy = np.array([each.domain == "policy" for each in rows])[:, None]
    general = np.zeros((len(guard.unlabelled()), 3), dtype=np.float32)
    before = evaluation.Contestant(np.where(of_policy, right, wrong), general, Identity())
    after = evaluation.Contestant(np.where(of_policy, wrong, right), general, Identity(), "b")
    found = evaluation.measure(
        snapshot=None,
        rows=rows,
        candidate=after,
        incumbent=before,
        base=before,
        served=(None, None),
        guard_set=guard.load(),
        seed=0,
    )
    assert found.verdict == "better"
    assert (
        "Of the 80 pairs of the domain “policy” it has fewer right than the base: 0.0 % instead "
        "of 100.0 %."
    ) in found.advice
    assert not any("papers" in said for said in found.advice)
    assert [(each["name"], each["lost"]) for each in found.figures["slices"]["domain"]] == [
        ("papers", False),
        ("policy", True),
    ]


def test_there_are_no_slices_by_domain_where_there_is_one() -> None:
    rows = [replace(row(n, "complete", 1.0), domain="policy") for n in range(40)]
    general = np.zeros((len(guard.unlabelled()), 3), dtype=np.float32)
    model = evaluation.Contestant(np.zeros((40, 3)), general, Identity())
    found = evaluation.measure(
        snapshot=None,
        rows=rows,
        candidate=replace(model, digest="b"),
        incumbent=model,
        base=model,
        served=(None, None),
        guard_set=guard.load(),
        seed=0,
    )
    assert set(found.figures["slices"]) == {"label"}
