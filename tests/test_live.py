"""Live accuracy from drawn answers: the estimate, that its interval covers, who is in it."""

import numpy as np
import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.test import APIClient

from adapters_app import live, registry
from adapters_app.nli.hajek import Share, effective_groups, share
from corrections import audits
from corrections.audits import PredictedBy, Responses
from corrections.intake import record_correction, review
from corrections.models import AuditSample, Correction

RUNS = 800
DIGEST = "d" * 64


# --- The estimator --------------------------------------------------------------------------------


def test_each_row_stands_for_those_that_were_not_drawn() -> None:
    """Two right ones drawn with 1/2, one wrong one with 1/10: 4 of 14."""
    found = share(np.array([1, 1, 0]), np.array([2.0, 2.0, 10.0]), np.array([1, 2, 3]))
    assert found.estimate == pytest.approx(4 / 14)
    assert (found.rows, found.groups) == (3, 3)
    assert found.low < found.estimate < found.high
    assert found.complement.estimate == pytest.approx(10 / 14)
    assert found.complement.low == pytest.approx(1 - found.high)


def test_copying_rows_inside_a_page_narrows_nothing() -> None:
    rng = np.random.default_rng(0)
    hits, groups = rng.integers(0, 2, 60), np.arange(60) // 3
    once = share(hits, np.ones(60), groups)
    tenfold = share(np.repeat(hits, 10), np.ones(600), np.repeat(groups, 10))
    assert (tenfold.low, tenfold.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert tenfold.effective_groups == pytest.approx(effective_groups(groups))


def test_agreement_on_few_rows_is_no_certainty() -> None:
    right = share(np.ones(12), np.ones(12), np.arange(12))
    assert right.estimate == 1
    assert right.high == pytest.approx(1)
    assert 0.6 < right.low < 0.8  # exact: 0.735
    alike = share(np.array([1, 0, 1, 0, 1, 0]), np.ones(6), np.array([1, 1, 2, 2, 3, 3]))
    assert alike.high - alike.low > 0.5  # three pages, all of them half right by chance
    one_page = share(np.array([1, 0]), np.ones(2), np.array([1, 1]))
    assert (one_page.low, one_page.high) == (0, 1)


def simulate(rng: np.random.Generator, *, pages: int, accuracy: float, shares: tuple) -> tuple:
    """Answers of one deployment: pages of uneven size and difficulty, drawn more in easy times.

    Returns (right, page, chance of being drawn) of every answer.
    """
    size = 1 + rng.geometric(1 / 15, pages)
    easy = rng.random(pages) < 0.5
    mean = np.where(easy, accuracy + 0.1, accuracy - 0.1)
    page_accuracy = rng.beta(9 * mean, 9 * (1 - mean))
    page = np.repeat(np.arange(pages), size)
    right = rng.random(len(page)) < page_accuracy[page]
    return right, page, np.where(easy, *shares)[page]


def coverage(found: list[Share], truth: float) -> float:
    return float(np.mean([each.low <= truth <= each.high for each in found]))


@pytest.mark.parametrize(
    ("pages", "accuracy", "shares"),
    [
        (60, 0.7, (0.25, 0.1)),
        (250, 0.7, (0.25, 0.05)),
        (250, 0.85, (0.1, 0.1)),
    ],
)
def test_the_interval_covers_the_truth_and_what_people_report_does_not(
    pages: int, accuracy: float, shares: tuple
) -> None:
    rng = np.random.default_rng(pages)
    audited, unweighted, reported, rate = [], [], [], []
    for _ in range(RUNS):
        right, page, chance = simulate(rng, pages=pages, accuracy=accuracy, shares=shares)
        drawn = rng.random(len(right)) < chance
        audited.append(share(right[drawn], 1 / chance[drawn], page[drawn]))
        unweighted.append(share(right[drawn], np.ones(drawn.sum()), page[drawn]))
        # People correct six of ten wrong answers and confirm two of ten right ones.
        told = rng.random(len(right)) < np.where(right, 0.2, 0.6)
        reported.append(share(right[told], np.ones(told.sum()), page[told]))
        # The corrections-only rate: who said nothing is taken for content.
        rate.append(share(~(told & ~right), np.ones(len(right)), page))
    assert 0.93 <= coverage(audited, accuracy) <= 0.97
    assert np.mean([each.estimate for each in audited]) == pytest.approx(accuracy, abs=0.01)
    assert coverage(reported, accuracy) < 0.05
    assert coverage(rate, accuracy) < 0.5
    if shares[0] > 2 * shares[1]:
        assert coverage(unweighted, accuracy) < 0.9


def test_few_audits_among_many_disagreements_are_few() -> None:
    """One in a hundred answers audited, and every one that two models give differently: how often
    what they agree on is right, only the audits tell."""
    rng, found = np.random.default_rng(5), []
    for _ in range(RUNS):
        differ = rng.random(1500) < 0.2
        right = rng.random(1500) < np.where(differ, 0.7, 0.95)
        drawn = (rng.random(1500) < 0.01) | differ
        weights = np.where(differ, 1.0, 100.0)[drawn]
        found.append(share(right[drawn], weights, np.arange(drawn.sum()) // 3))
    assert coverage(found, 0.2 * 0.7 + 0.8 * 0.95) >= 0.93


@pytest.mark.parametrize("pages", [1, 3, 6])
def test_pages_about_one_claim_are_no_more_than_they_tell(pages: int) -> None:
    """Rows of a claim are right or wrong together eight times in ten, each on a page of its own.

    With claims ignored three pages are covered in 81 %, six in 65 %.
    """
    rng, found, ignored = np.random.default_rng(pages), [], []
    every, claims = np.arange(300), np.arange(300) // pages
    for _ in range(RUNS):
        own, together = rng.random((2, 300)) < 0.7
        right = np.where(rng.random(300) < 0.8, together[claims], own)
        found.append(share(right, np.full(300, 50.0), every, claims))
        ignored.append(share(right, np.full(300, 50.0), every))
    assert 0.93 <= coverage(found, 0.7) <= 0.97
    assert (coverage(ignored, 0.7) < 0.9) == (pages > 1)


def test_pages_and_claims_that_cross_count_both() -> None:
    """Of either kind alone the interval covers 93 %."""
    rng, found = np.random.default_rng(2), []
    for _ in range(RUNS):
        page, claim = rng.integers(0, 30, (2, 300))
        of_page, of_claim = rng.normal(0, 0.5, (2, 30))
        hard = of_page[page] + of_claim[claim] + rng.normal(0, np.sqrt(0.5), 300)
        found.append(share(hard < 0, np.ones(300), page, claim))
    assert 0.93 <= coverage(found, 0.5) <= 0.97


def test_one_claim_tells_nothing_of_others() -> None:
    found = share(np.array([1, 0, 1]), np.ones(3), np.arange(3), np.zeros(3))
    assert (found.low, found.high, found.groups) == (0, 1, 3)


# --- From the database ----------------------------------------------------------------------------


def drawn(number: int, *, probability: float = 0.5, **values) -> AuditSample:
    return AuditSample.objects.create(
        premise=f"Ward {number} admitted {number * 7919 % 997} people in week {number}.",
        predicted_label="supports",
        raw_confidence=0.9,
        confidence=0.7,
        probability=probability,
        drawn_at=timezone.now(),
        **{
            "hypothesis": f"Ward {number} saw fever.",
            "predicted_version": 3,
            "predicted_digest": DIGEST,
            "page_id": f"p{number}",
        }
        | values,
    )


def audited(by: User, number: int, *, right: bool, **values) -> None:
    label = "supports" if right else "refutes"
    audits.answer(drawn(number, **values).pk, by=by, correct_label=label)


def verdict(by: User, number: int, **values) -> Correction:
    named = {
        "premise": f"Study {number} followed {number * 7919 % 997} people.",
        "hypothesis": "It was large.",
        "predicted_label": "supports",
        "predicted_confidence": 0.7,
        "predicted_version": 3,
        "predicted_digest": DIGEST,
        "correct_label": "refutes",
        "page_id": f"s{number}",
    }
    return record_correction(by=by, **named | values)[0]


def test_only_drawn_answers_carry_the_figure(caller: User, curator: User) -> None:
    audited(curator, 1, right=True)
    audited(curator, 2, right=True)
    audited(curator, 3, right=False, probability=0.125)
    for number in range(4):
        verdict(caller, number)  # reported by choice
    for number in range(4, 10):
        verdict(curator, number, sampling="complete", correct_label="supports")
    audited(curator, 10, right=False, sampling="disagreement", probability=0.25, disagrees=True)

    [found] = live.figures()

    assert (found.version, found.digest, found.name) == (3, DIGEST, "v3")
    assert found.accuracy.estimate == pytest.approx(4 / 16)
    assert (found.accuracy.rows, found.accuracy.groups) == (4, 4)
    assert found.correction_rate.estimate == pytest.approx(12 / 16)
    assert (found.labelled_sets.estimate, found.labelled_sets.rows) == (1, 6)


def test_disagreements_alone_tell_nothing_of_the_other_answers(curator: User) -> None:
    audited(curator, 1, right=False, sampling="disagreement", disagrees=True)
    audited(curator, 2, right=True, predicted_version=4)
    assert {each.name: each.accuracy is None for each in live.figures()} == {
        "v3": True,
        "v4": False,
    }


def test_a_rejected_verdict_counts_nowhere_and_an_edited_one_as_it_is_now(curator: User) -> None:
    audited(curator, 1, right=True)
    audited(curator, 2, right=False)
    wrong = Correction.objects.get(verdict="corrected")
    review([wrong.pk], by=curator, status="rejected")
    assert live.figures()[0].accuracy.rows == 1


def test_an_answer_whose_label_is_fixed_still_counts(curator: User) -> None:
    audited(curator, 1, right=True)
    audited(curator, 2, right=True)
    row = Correction.objects.first()
    names = ("external_id", "premise", "hypothesis", "predicted_label", "predicted_confidence")
    body = {name: getattr(row, name) for name in names} | {"correct_label": "refutes"}
    rest = APIClient()
    rest.force_authenticate(curator)

    for changed in (
        {"premise": "Another ward."},
        {"predicted_confidence": 0.71},
        {"predicted_version": 4},
        {"sampling": "user"},
        {"sampling_probability": 0.25},
    ):
        refused = rest.post("/api/v1/corrections", body | changed)
        assert refused.status_code == 409
        [name] = changed
        assert f"audit sample {row.audit_sample.pk}" in refused.json()["detail"]
        assert name in refused.json()["detail"]
    fixed = rest.post("/api/v1/corrections", body | {"reason": "Misread.", "domain": "wards"})
    review([row.pk], by=curator, status="accepted")

    assert (fixed.status_code, fixed.json()["revision"]) == (200, 2)
    [found] = live.figures()
    assert (found.version, found.digest) == (3, DIGEST)
    assert (found.accuracy.rows, found.accuracy.estimate) == (2, pytest.approx(1 / 2))


def test_rows_of_one_claim_are_alike_however_it_is_written(curator: User) -> None:
    """Twelve pages about four claims, all answers to a claim right or all of them wrong."""
    spelt = ("Fever {}  rose.", "fever {} rose.", "FEVER {} ROSE. ")
    for number in range(12):
        claim = spelt[number % 3].format(number // 3)
        audited(curator, number, right=number // 3 != 0, hypothesis=claim)
    [found] = live.figures()
    assert found.accuracy.groups == 12
    assert found.accuracy.effective_groups == pytest.approx(4)
    assert found.accuracy.estimate == pytest.approx(0.75)
    assert found.accuracy.high - found.accuracy.low > 0.7


@pytest.mark.parametrize("address", ["/admin/", "/api/v1/stats"])
def test_more_answers_are_not_more_queries(address: str, curator: User) -> None:
    client = Client()
    client.force_login(curator)

    def asked() -> int:
        with CaptureQueriesContext(connection) as found:
            assert client.get(address).status_code == 200
        return len(found)

    for number in range(2):
        audited(curator, number, right=True)
    few = asked()
    for number in range(2, 12):
        audited(curator, number, right=True)
    assert asked() == few


def test_versions_are_told_apart_by_number_and_digest(curator: User) -> None:
    audited(curator, 1, right=True)
    audited(curator, 2, right=False, predicted_version=4)
    audited(curator, 3, right=False, predicted_version=None, predicted_digest="a" * 64)
    audited(curator, 4, right=True, predicted_version=None, predicted_digest="b" * 64)
    told = [(each.name, each.digest[0], each.accuracy.estimate) for each in live.figures()]
    assert told == [
        ("v4", "d", 0.0),
        ("v3", "d", 1.0),
        ("the base", "a", 0.0),
        ("the base", "b", 1.0),
    ]
    # The base serves: of the two that answered, the one that answered last.
    serving = live.of_serving(registry.serving(), live.figures())
    assert (serving.digest, serving.accuracy.estimate) == ("b" * 64, 1.0)


def test_who_did_not_answer_is_told(curator: User) -> None:
    audits.enqueue([], {PredictedBy(3, DIGEST): 5})
    audits.enqueue([], {PredictedBy(3, DIGEST): 2})
    audited(curator, 1, right=True)
    [found] = live.figures()
    assert found.responses == Responses(answered=1, not_kept=7)
    assert found.responses.drawn == 8


def test_a_system_without_drawn_answers_cannot_tell(curator: User) -> None:
    for number in range(5):
        verdict(curator, number, predicted_version=None)

    serving = live.of_serving(registry.serving(), live.figures())

    assert (serving.accuracy, serving.correction_rate) == (None, None)
    client = Client()
    client.force_login(curator)
    page = " ".join(client.get("/admin/").content.decode().split())
    assert "It cannot be told how often the base is right" in page
    assert "What people report is biased." in page


def test_the_first_page_tells_no_share_of_a_few_judged_answers(curator: User) -> None:
    """One wrong answer would be “0.0 % are right, 95 % interval 0.0 % to 100.0 %”."""
    audited(curator, 1, right=False, predicted_version=None, predicted_digest="b" * 64)
    client = Client()
    client.force_login(curator)
    page = " ".join(client.get("/admin/").content.decode().split())
    assert "only 1 audit sample of its answers was judged, and 30 are needed." in page
    assert "Live accuracy by version" in page
    assert "0.0 %" not in page


def test_the_first_page_and_the_stats_tell_the_figure_with_its_n(curator: User) -> None:
    base = {"predicted_version": None, "predicted_digest": "b" * 64}
    for number in range(32):
        audited(curator, number, right=number > 7, **base)
    drawn(40, **base)
    audits.skip(drawn(41, **base).pk, by=curator, reason="Half a sentence.")
    client = Client()
    client.force_login(curator)
    html = client.get("/admin/").content.decode()
    page = " ".join(html.split())
    assert '<span class="big">75.0 %</span> of the answers of the base are right' in page
    assert "From 32 answers drawn at random from 32 sources" in page
    assert "1 more was drawn and not answered." in page
    assert "Live accuracy by version" in page
    assert "So 25.0 % are wrong" in page
    assert "1 audit sample waits to be judged." in page

    rest = APIClient()
    rest.force_authenticate(curator)
    told = rest.get("/api/v1/stats").json()["live"]
    assert told["serving"]["accuracy"]["estimate"] == pytest.approx(0.75)
    assert told["serving"]["accuracy"]["low"] < 0.75 < told["serving"]["accuracy"]["high"]
    assert told["serving"]["correction_rate"]["estimate"] == pytest.approx(0.25)
    assert told["serving"]["responses"] == {
        "answered": 32,
        "waiting": 1,
        "skipped": 1,
        "expired": 0,
        "not_kept": 0,
        "rate": pytest.approx(32 / 33),
    }
    assert [each["adapter"] for each in told["by_version"]] == ["base"]
