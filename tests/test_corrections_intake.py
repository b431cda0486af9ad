"""Recording, revising, editing and reviewing one verdict: what is kept, refused and remembered."""

import math
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from corrections.history import own_labels
from corrections.intake import ReviewRefused, Seen, edit_correction, record_correction, review
from corrections.models import Correction

pytestmark = pytest.mark.django_db
VALUES: dict[str, Any] = {
    "premise": "Aspirin was given to 200 patients.",
    "hypothesis": "Patients took aspirin.",
    "predicted_label": "neutral",
    "predicted_confidence": 0.62,
    "correct_label": "supports",
}


def record(by: User, **values: Any) -> Correction:
    return record_correction(by=by, **VALUES | values)[0]


def actions(row: Correction) -> list[str]:
    return list(row.events.values_list("action", flat=True))


def test_a_verdict_is_recorded_with_its_history(caller: User) -> None:
    row, created = record_correction(by=caller, **VALUES, predicted_version=3, domain="medicine")

    assert created
    row.refresh_from_db()
    assert (row.verdict, row.status, row.revision) == ("corrected", "pending", 1)
    assert (row.predicted_version, row.domain, row.annotator) == (3, "medicine", "carla")
    assert row.group.fold in range(5)
    event = row.events.get()
    assert (event.action, event.by) == ("recorded", caller)


def test_the_model_being_right_is_a_confirmation(caller: User) -> None:
    assert record(caller, predicted_label="supports").verdict == "confirmed"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("premise", " \n\t", "blank"),
        ("hypothesis", "", "blank"),
        ("premise", "x" * 10_001, "10001 characters"),
        ("premise", "a\0b", "NUL"),
        ("hypothesis", "a\ud800b", "UTF-8"),
        ("premise", 7, "text"),
        ("predicted_label", "entailment", "supports, refutes, neutral"),
        ("correct_label", "Supports", "supports, refutes, neutral"),
        ("correct_label", ["supports"], "supports, refutes, neutral"),
        ("predicted_confidence", math.nan, "between 0 and 1"),
        ("predicted_confidence", math.inf, "between 0 and 1"),
        ("predicted_confidence", -0.1, "between 0 and 1"),
        ("predicted_confidence", True, "number"),
        ("predicted_confidence", "0.5", "number"),
        ("predicted_confidence", None, "missing"),
        ("predicted_version", 1.5, "whole"),
        ("predicted_version", 0, "between"),
        ("sampling", "guess", "user, audit"),
        ("sampling_probability", 0.5, "nobody knows"),
        ("domain", "d" * 101, "at most 100"),
        ("page_id", "p" * 251, "at most 250"),
        ("external_id", "e" * 201, "at most 200"),
        ("corrected_at", "yesterday", "ISO-8601"),
        ("corrected_at", "0001-01-01T00:00:00+14:00", "ISO-8601"),
    ],
)
def test_what_cannot_be_is_refused_and_the_field_named(
    caller: User, field: str, value: object, says: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        record(caller, **{field: value})

    assert says in refused.value.message_dict[field][0]
    assert not Correction.objects.exists()


def test_a_drawn_row_needs_its_probability(caller: User) -> None:
    with pytest.raises(ValidationError, match="is missing; it must be at least 1e-06"):
        record(caller, sampling="audit")

    assert record(caller, sampling="audit", sampling_probability=0.1).sampling_probability == 0.1
    assert record(caller, sampling="complete").sampling_probability == 1


@pytest.mark.parametrize("sampling", ["audit", "disagreement", "complete"])
def test_a_probability_that_figures_cannot_divide_by_is_refused(
    caller: User, sampling: str
) -> None:
    for far_too_small in (0, 1e-320, 9.99e-7):
        with pytest.raises(ValidationError) as refused:
            record(caller, sampling=sampling, sampling_probability=far_too_small)
        [said] = refused.value.message_dict["sampling_probability"]
        assert said.startswith(f"sampling_probability is {far_too_small:g}; it must be at least")
        assert "1e-06" in said

    row = record(caller, sampling=sampling, sampling_probability=1e-6)
    with pytest.raises(IntegrityError), transaction.atomic():
        Correction.objects.filter(pk=row.pk).update(sampling_probability=1e-320)


def test_the_same_content_under_a_known_id_changes_nothing(caller: User) -> None:
    first = record(caller, external_id="a")
    again, created = record_correction(by=caller, **VALUES, external_id="a")

    assert (again.pk, created, again.revision) == (first.pk, False, 1)
    assert actions(first) == ["recorded"]


def test_new_content_under_a_known_id_is_a_revision_back_to_pending(
    caller: User, curator: User
) -> None:
    row = record(caller, external_id="a")
    review([row.pk], by=curator, status="accepted")

    revised = record(caller, external_id="a", correct_label="refutes", reason="misread")

    revised.refresh_from_db()
    assert (revised.pk, revised.revision, revised.status) == (row.pk, 2, "pending")
    assert (revised.reviewer, revised.reviewed_at) == (None, None)
    assert actions(revised) == ["recorded", "accepted", "revised"]
    assert revised.events.last().changes["correct_label"] == ["supports", "refutes"]


def test_a_revision_that_agrees_with_the_model_becomes_a_confirmation(caller: User) -> None:
    record(caller, external_id="a")

    assert record(caller, external_id="a", correct_label="neutral").verdict == "confirmed"


def test_a_new_premise_under_a_known_id_moves_to_its_own_group(caller: User) -> None:
    before = record(caller, external_id="a").group
    after = record(caller, external_id="a", premise="Quite another text about glaciers.").group

    assert before != after


def test_without_an_id_each_call_is_a_verdict_of_its_own(caller: User) -> None:
    assert record(caller).pk != record(caller).pk


def test_review_accepts_rejects_and_reopens_with_history(caller: User, curator: User) -> None:
    row = record(caller)

    assert review([row.pk], by=curator, status="accepted", note="clear") == 1
    assert review([row.pk], by=curator, status="accepted") == 0
    assert review([row.pk], by=curator, status="rejected") == 1
    assert review([row.pk], by=curator, status="pending") == 1

    row.refresh_from_db()
    assert (row.status, row.reviewer, row.reviewed_at) == ("pending", None, None)
    assert actions(row) == ["recorded", "accepted", "rejected", "reopened"]
    accepted = row.events.get(action="accepted")
    assert (accepted.by, accepted.note) == (curator, "clear")
    assert accepted.changes == {"status": ["pending", "accepted"]}


def test_a_quarantined_row_cannot_be_accepted_nor_those_with_it(
    caller: User, curator: User
) -> None:
    good, bad = record(caller), record(caller, premise="Something else entirely happened there.")
    Correction.objects.filter(pk=bad.pk).update(quarantine="It bridges folds.")

    with pytest.raises(ReviewRefused, match="bridges folds"):
        review([good.pk, bad.pk], by=curator, status="accepted")

    assert Correction.objects.pending().count() == 2
    with pytest.raises(IntegrityError), transaction.atomic():
        Correction.objects.filter(pk=bad.pk).update(status="accepted", reviewed_at=bad.created_at)


def test_a_row_that_changed_since_it_was_seen_is_not_reviewed(caller: User, curator: User) -> None:
    row = record(caller, external_id="a")
    record(caller, external_id="a", correct_label="refutes")

    with pytest.raises(ReviewRefused, match="changed since you saw it"):
        review([row.pk], by=curator, status="accepted", seen={row.pk: Seen(1)})


def test_a_row_reopened_since_it_was_seen_says_by_whom(caller: User, curator: User) -> None:
    row = record(caller)
    review([row.pk], by=curator, status="accepted")
    review([row.pk], by=curator, status="pending")

    with pytest.raises(ReviewRefused, match=r"was reopened by curt on .* UTC; you saw it accepted"):
        review([row.pk], by=caller, status="rejected", seen={row.pk: Seen(1, "accepted")})


def test_sending_again_undoes_no_edit_and_blanks_nothing_it_does_not_name(
    caller: User, curator: User
) -> None:
    row = record(caller, external_id="a", page_id="p1")
    edit_correction(row, by=curator, correct_label="refutes", domain="medicine", reason="dose")

    record(caller, external_id="a", page_id="p1")
    row.refresh_from_db()
    assert (row.correct_label, row.revision) == ("refutes", 2)

    record(caller, external_id="a", premise="Aspirin was given to 300 patients.")
    row.refresh_from_db()
    assert (row.correct_label, row.revision, row.status) == ("supports", 3, "pending")
    assert (row.domain, row.reason, row.page_id) == ("medicine", "dose", "p1")
    assert row.group.key == "page:p1"

    record(caller, external_id="a", reason="")
    row.refresh_from_db()
    assert row.reason == ""


def test_white_space_around_names_makes_no_other_page_domain_or_person(
    caller: User, curator: User
) -> None:
    rows = [
        record(caller, premise=f"Text {n}.", page_id=page, domain=" law", annotator="Ana\u00a0")
        for n, page in enumerate((" p ", "p", "\tp"))
    ]

    assert {row.group.key for row in rows} == {"page:p"}
    assert {(row.page_id, row.domain, row.annotator) for row in rows} == {("p", "law", "Ana")}
    assert rows[0].premise == "Text 0."
    edit_correction(rows[0], by=curator, domain=" medicine ", reason=" dose ")
    assert (rows[0].domain, rows[0].reason) == ("medicine", " dose ")


def test_what_was_stored_with_white_space_is_not_revised_by_the_same_content(
    caller: User,
) -> None:
    row = record(caller, external_id=" a", page_id=" p ")
    Correction.objects.update(page_id=" p ")  # as rows once were

    assert record(caller, external_id=" a", page_id=" p ") == row
    row.refresh_from_db()
    assert (row.page_id, row.revision) == (" p ", 1)


def test_nobody_judges_in_the_future(caller: User) -> None:
    soon, late = (timezone.now() + timedelta(hours=hours) for hours in (23, 25))

    assert record(caller, corrected_at=soon).corrected_at == soon
    with pytest.raises(ValidationError, match="at most a day ahead of now") as refused:
        record(caller, corrected_at=late)
    assert list(refused.value.message_dict) == ["corrected_at"]


DRAW: dict[str, Any] = {"predicted_version": 3, "predicted_digest": "d" * 64}


def drawn(row: Correction) -> tuple[Any, ...]:
    row.refresh_from_db()
    return (
        row.sampling,
        row.sampling_probability,
        row.predicted_version,
        row.predicted_digest[:1],
    )


@pytest.mark.parametrize(
    ("sampling", "probability"), [("audit", 0.5), ("disagreement", 0.75), ("complete", 0.25)]
)
def test_a_revision_that_leaves_open_how_a_row_was_drawn_keeps_it(
    curator: User, sampling: str, probability: float
) -> None:
    how = {"sampling": sampling, "sampling_probability": probability}
    row = record(curator, external_id="a", **how, **DRAW)

    record(curator, external_id="a", correct_label="refutes")
    assert (*drawn(row), row.revision) == (sampling, probability, 3, "d", 2)
    assert row.events.last().changes.keys() == {"correct_label"}

    record(curator, external_id="a", reason="misread", sampling=sampling)
    assert (*drawn(row), row.reason) == (sampling, probability, 3, "d", "misread")


def test_a_revision_may_say_anew_how_a_row_was_drawn(curator: User) -> None:
    row = record(curator, external_id="a", sampling="audit", sampling_probability=0.5, **DRAW)

    record(curator, external_id="a", sampling_probability=0.25)
    assert drawn(row) == ("audit", 0.25, 3, "d")
    record(curator, external_id="a", sampling="complete")
    assert drawn(row) == ("complete", 1.0, 3, "d")
    # The content is what was last sent without a sampling; that it is named now is news.
    record(curator, external_id="a")
    record(curator, external_id="a", sampling="user")
    assert drawn(row) == ("user", None, 3, "d")


def test_a_probability_has_to_go_with_the_sampling_on_record(curator: User) -> None:
    record(curator, external_id="a", sampling="complete")
    record(curator, external_id="b")

    for external_id, wrong, says in (
        ("a", {"sampling": "audit", "sampling_probability": None}, "missing"),
        ("a", {"sampling": "user", "sampling_probability": 0.5}, "nobody knows it"),
        ("a", {"sampling_probability": 0}, "at least 1e-06 where sampling is complete"),
        ("b", {"sampling_probability": 0.5}, "nobody knows it"),
    ):
        with pytest.raises(ValidationError, match=says) as refused:
            record(curator, external_id=external_id, **wrong)
        assert list(refused.value.message_dict) == ["sampling_probability"]
    assert set(Correction.objects.values_list("sampling", "revision")) == {
        ("complete", 1),
        ("user", 1),
    }


@pytest.mark.parametrize(
    ("named", "who"),
    [
        ({}, (3, "d")),
        ({"predicted_version": 3}, (3, "d")),
        ({"predicted_digest": "d" * 64}, (3, "d")),
        ({"predicted_confidence": 0.63}, (3, "d")),
        ({"predicted_version": 4}, (4, "")),
        ({"predicted_version": None}, (None, "")),
        ({"predicted_digest": "b" * 64}, (None, "b")),
        ({"predicted_label": "refutes"}, (None, "")),
        ({"premise": "Aspirin was given to 300 patients."}, (None, "")),
    ],
)
def test_who_predicted_is_kept_as_long_as_it_is_the_same_prediction(
    caller: User, named: dict[str, Any], who: tuple[int | None, str]
) -> None:
    row = record(caller, external_id="a", **DRAW)

    record(caller, external_id="a", reason="misread", **named)

    assert drawn(row)[2:] == who


def test_an_edit_is_judged_by_what_it_changes(caller: User, curator: User, settings: Any) -> None:
    row = record(caller)
    settings.LYRA_MAX_CHARS = 20  # the premise is longer

    assert edit_correction(row, by=curator, reason="dose")
    with pytest.raises(ValidationError, match="at most 20"):
        edit_correction(row, by=curator, reason="d" * 21)


def test_an_edited_label_is_to_be_reviewed_again(caller: User, curator: User) -> None:
    row = record(caller)
    review([row.pk], by=curator, status="accepted")
    row.refresh_from_db()

    assert edit_correction(row, by=curator, correct_label="neutral", note="typo")

    assert (row.correct_label, row.verdict, row.status) == ("neutral", "confirmed", "pending")
    event = row.events.last()
    assert (event.action, event.note) == ("edited", "typo")
    assert event.changes["correct_label"] == ["supports", "neutral"]


def test_an_edited_reason_needs_no_new_review(caller: User, curator: User) -> None:
    row = record(caller)
    review([row.pk], by=curator, status="accepted")
    row.refresh_from_db()

    edit_correction(row, by=curator, reason="dose")

    assert (row.reason, row.status) == ("dose", "accepted")
    assert not edit_correction(row, by=curator, reason="dose")
    assert actions(row) == ["recorded", "accepted", "edited"]


def test_edits_are_refused_where_somebody_else_was_faster(caller: User, curator: User) -> None:
    seen_by_one = record(caller)
    seen_by_other = Correction.objects.get(pk=seen_by_one.pk)
    edit_correction(seen_by_one, by=curator, reason="first")

    with pytest.raises(ReviewRefused, match="changed since you saw it"):
        edit_correction(seen_by_other, by=curator, reason="second")


@pytest.mark.parametrize("changes", [{"premise": "x"}, {"correct_label": "maybe"}, {"status": "x"}])
def test_edits_of_other_fields_or_to_wrong_values_are_refused(
    caller: User, curator: User, changes: dict[str, str]
) -> None:
    row = record(caller)

    with pytest.raises(ValidationError) as refused:
        edit_correction(row, by=curator, **changes)

    assert list(refused.value.message_dict) == list(changes)


def test_pairs_judged_differently_are_conflicts_until_one_is_rejected(
    caller: User, curator: User
) -> None:
    one = record(caller)
    other = record(caller, hypothesis="PATIENTS took  aspirin.", correct_label="refutes")
    record(caller, hypothesis="Nobody took it.", correct_label="refutes")

    assert set(Correction.objects.conflicts()) == {one, other}
    review([other.pk], by=curator, status="rejected")
    assert not Correction.objects.conflicts().exists()


def test_a_curators_label_is_not_what_the_annotator_said(caller: User, curator: User) -> None:
    ids = [f"id-{number}" for number in range(3)]
    repaired, untouched, revised = (record(caller, external_id=name) for name in ids)
    edit_correction(repaired, by=curator, correct_label="refutes")
    edit_correction(repaired, by=curator, correct_label="neutral")
    edit_correction(untouched, by=curator, domain="medicine")
    edit_correction(revised, by=curator, correct_label="refutes")
    record(caller, external_id="id-2", correct_label="neutral")  # they say so themselves now

    assert own_labels([row.pk for row in (repaired, untouched, revised)]) == {
        repaired.pk: "supports"
    }


def test_a_label_is_of_whom_the_row_is_ascribed_to(caller: User, curator: User) -> None:
    row = record(caller)
    edit_correction(row, by=curator, correct_label="refutes", annotator="curt")

    assert own_labels([row.pk]) == {}


def test_who_decides_as_it_was_decided_has_looked_again_and_takes_no_reason_away(
    caller: User, curator: User
) -> None:
    row = record(caller)
    review([row.pk], by=curator, status="rejected", note="Half a sentence.")
    saw = {row.pk: Seen(status="rejected")}
    for reviewer in (caller, caller, curator):
        review([row.pk], by=reviewer, status="rejected", seen=saw)

    row.refresh_from_db()
    assert row.review_note == "Half a sentence."
    assert actions(row) == ["recorded"] + ["rejected"] * 4
    assert row.reviewer == curator


def test_an_annotator_who_changes_their_mind_has_said_the_new_label(curator: User) -> None:
    row = record(curator)
    edit_correction(row, by=curator, correct_label="refutes")

    assert own_labels([row.pk]) == {}
