"""REST: sending, listing and reviewing verdicts; refusals name the field or give the reason."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from rest_framework.test import APIClient

from corrections import folds
from corrections.models import Correction, PremiseText

pytestmark = pytest.mark.django_db
URL = "/api/v1/corrections"
VERDICT: dict[str, Any] = {
    "premise": " Aspirin was given to 200 patients. ",
    "hypothesis": "Patients took aspirin.",
    "predicted_label": "neutral",
    "predicted_confidence": 0.62,
    "correct_label": "supports",
}
LONG_TEXT = (
    "Aspirin was given to 200 patients of the trial in the spring, after breakfast, with a glass "
    "of water, and those who took it were asked about their pains each evening."
)


def as_(user: User) -> APIClient:
    client = APIClient()
    client.force_authenticate(user)
    return client


def sent(user: User, **values: Any) -> Correction:
    answer = as_(user).post(URL, VERDICT | values)
    assert answer.status_code == 201, answer.json()
    return Correction.objects.get(pk=answer.json()["id"])


def _another_caller(caller: User) -> User:
    other = User.objects.create_user("cleo")
    other.groups.add(*caller.groups.all())
    return other


def test_a_caller_sends_a_verdict_exactly_as_it_was_said(caller: User) -> None:
    row = sent(caller, page_id="p1", predicted_version=2, external_id="mine")

    assert (row.premise, row.verdict, row.status) == (VERDICT["premise"], "corrected", "pending")
    assert (row.group.key, row.predicted_version, row.annotator) == ("page:p1", 2, "carla")


def test_sending_again_is_answered_200_and_new_content_is_a_revision(caller: User) -> None:
    sent(caller, external_id="mine")

    again = as_(caller).post(URL, VERDICT | {"external_id": "mine"})
    revised = as_(caller).post(URL, VERDICT | {"external_id": "mine", "correct_label": "refutes"})

    assert (again.status_code, again.json()["revision"]) == (200, 1)
    assert (revised.status_code, revised.json()["revision"]) == (200, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("premise", ""),
        ("premise", "a\0b"),
        ("premise", "x" * 10_001),
        ("premise", 7),
        ("hypothesis", None),
        ("predicted_label", "entailment"),
        ("predicted_confidence", True),
        ("predicted_confidence", "0.5"),
        ("predicted_confidence", 1.5),
        ("predicted_version", 0),
        ("predicted_version", True),
        ("correct_label", "SUPPORTS"),
        ("domain", "d" * 101),
        ("page_id", "p" * 251),
        ("external_id", "e" * 201),
        ("sampling_probability", 0.5),
        ("corrected_at", "yesterday"),
        ("domain", 5),
        ("page_id", 5),
        ("reason", True),
        ("annotator", ["a"]),
        ("predicted_version", 2**31),
        ("page", "p1"),
        ("corrected_at", "2099-01-01T00:00:00Z"),
    ],
)
def test_a_wrong_value_is_400_naming_the_field(caller: User, field: str, value: Any) -> None:
    answer = as_(caller).post(URL, VERDICT | {field: value})

    assert answer.status_code == 400
    assert list(answer.json()) == [field]
    assert not Correction.objects.exists()


def test_a_lone_surrogate_is_400(caller: User) -> None:
    body = '{"premise": "\\ud800", "hypothesis": "h", "predicted_label": "neutral", '
    body += '"predicted_confidence": 0.5, "correct_label": "neutral"}'

    assert as_(caller).post(URL, body, content_type="application/json").status_code == 400


def test_only_those_who_import_may_say_how_rows_were_drawn(caller: User, curator: User) -> None:
    complete = VERDICT | {"sampling": "complete"}

    assert as_(caller).post(URL, complete).status_code == 403
    assert as_(curator).post(URL, complete).json()["sampling_probability"] == 1


def test_stats_answer_whatever_probability_somebody_sends(
    curator: User, administrator: User
) -> None:
    drawn = VERDICT | {"sampling": "audit", "predicted_digest": "d" * 64}

    refused = as_(curator).post(URL, drawn | {"sampling_probability": 1e-320})
    assert refused.status_code == 400
    assert "at least 1e-06" in refused.json()["sampling_probability"][0]
    assert as_(curator).post(URL, drawn | {"sampling_probability": 1e-6}).status_code == 201
    assert as_(administrator).get("/api/v1/stats").status_code == 200


def test_nobody_revises_what_another_sent_but_a_reviewer(caller: User, curator: User) -> None:
    sent(caller, external_id="mine")
    other = _another_caller(caller)
    changed = VERDICT | {"external_id": "mine", "correct_label": "refutes"}

    assert as_(other).post(URL, changed).status_code == 403
    assert as_(curator).post(URL, changed).status_code == 200


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"expected_revision": 0},
        {"expected_revision": 1},
        {"expected_revision": 7, "correct_label": "refutes"},
        {"premise": "Else."},
        {"sampling_probability": 0.5, "correct_label": "refutes"},
    ],
)
def test_a_refusal_tells_nobody_of_what_another_sent(
    caller: User, curator: User, more: dict[str, Any]
) -> None:
    other = _another_caller(caller)
    sent(caller, external_id="mine")
    known = VERDICT | {"external_id": "mine"}
    assert as_(curator).post(URL, known | {"sampling": "complete"}).status_code == 200

    refused = as_(other).post(URL, known | more)

    assert refused.status_code == 403
    assert refused.json() == {"detail": "You may not revise what somebody else sent."}


def test_nobody_takes_an_id_that_another_takes_while_theirs_is_compared(
    caller: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _another_caller(caller)
    changed = VERDICT | {"external_id": "mine", "correct_label": "refutes", "premise": "Mine!"}
    compare = folds.Survey

    def compare_late(*args: Any, **options: Any) -> folds.Survey:
        monkeypatch.undo()
        sent(caller, external_id="mine")
        return compare(*args, **options)

    monkeypatch.setattr(folds, "Survey", compare_late)
    answer = as_(other).post(URL, changed)

    assert (answer.status_code, "somebody else" in answer.json()["detail"]) == (403, True)
    row = Correction.objects.get()
    assert (row.revision, row.correct_label, row.annotator) == (1, "supports", "carla")
    assert [event.by for event in row.events.all()] == [caller]
    assert PremiseText.objects.count() == 1


def test_a_row_that_was_drawn_keeps_that_in_a_callers_revision(caller: User, curator: User) -> None:
    mine = {"external_id": "mine", "predicted_version": 3, "predicted_digest": "d" * 64}
    row = sent(caller, **mine)
    known = VERDICT | {"external_id": "mine"}
    assert as_(curator).post(URL, known | {"sampling": "complete"}).status_code == 200

    for changed in ({"sampling": "user"}, {"premise": "Else."}, {"predicted_label": "supports"}):
        refused = as_(caller).post(URL, known | changed)
        assert (refused.status_code, "drawn" in refused.json()["detail"]) == (403, True)
    fixed = as_(caller).post(URL, known | {"correct_label": "refutes"})

    assert (fixed.status_code, fixed.json()["revision"]) == (200, 3)
    row.refresh_from_db()
    assert (row.sampling, row.sampling_probability) == ("complete", 1)
    assert (row.predicted_version, row.predicted_digest) == (3, "d" * 64)


def test_a_version_of_null_is_the_base_and_one_that_is_left_out_is_kept(caller: User) -> None:
    mine = {"external_id": "mine", "predicted_digest": "d" * 64}
    sent(caller, **mine, predicted_version=3)
    known = VERDICT | {"external_id": "mine"}

    def who(**values: Any) -> tuple[int, int | None, str]:
        body = as_(caller).post(URL, known | values).json()
        return body["revision"], body["predicted_version"], body["predicted_digest"][:1]

    assert who() == (1, 3, "d")
    assert who(predicted_version=None) == (2, None, "")
    assert who(predicted_version=None) == (2, None, "")
    assert who(predicted_version=None, predicted_digest="b" * 64) == (3, None, "b")
    assert who() == (3, None, "b")
    assert who(predicted_version=None, reason="Misread.") == (4, None, "b")


def test_the_list_is_narrowed_by_its_filters(caller: User, curator: User) -> None:
    sent(caller)
    sent(caller, correct_label="refutes", domain="medicine")
    sent(caller, hypothesis="Another claim.", predicted_label="supports")

    def found(**filters: str) -> int:
        return int(as_(curator).get(URL, filters).json()["count"])

    assert found() == 3
    assert (found(conflicting="true"), found(conflicting="false")) == (2, 1)
    assert (found(domain="medicine"), found(verdict="confirmed")) == (1, 1)
    assert (found(quarantined="true"), found(status="pending")) == (0, 3)
    assert as_(curator).get(URL, {"status": "new"}).status_code == 400


def test_a_filter_tells_nobody_of_verdicts_that_they_may_not_read(
    caller: User, curator: User
) -> None:
    own = sent(caller)
    sent(curator, correct_label="refutes")

    def disputed(asked: User) -> list[int]:
        found = as_(asked).get(URL, {"conflicting": "true"}).json()["results"]
        return [row["id"] for row in found]

    assert len(disputed(curator)) == 2
    assert disputed(caller) == []
    sent(caller, correct_label="neutral")
    assert own.pk in disputed(caller)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("stauts=pending", "stauts"),
        ("status=", "status"),
        ("quarantined=", "quarantined"),
        ("conflicting=null", "conflicting"),
        ("domain=", "domain"),
        ("domain=a&domain=b", "domain"),
        ("updated_after=yesterday", "updated_after"),
        ("updated_after=", "updated_after"),
        ("updated_after=0001-01-01T00:00:00%2B14:00", "updated_after"),
        ("page=2", "page"),
        ("page_size=0", "page_size"),
    ],
)
def test_a_filter_that_would_return_everything_is_refused(
    curator: User, query: str, name: str
) -> None:
    answer = as_(curator).get(f"{URL}?{query}")

    assert (answer.status_code, list(answer.json())) == (400, [name])


def test_what_changed_since_is_followed(caller: User, curator: User) -> None:
    first, second = sent(caller, page_id="p1"), sent(caller, page_id="p2")

    def changed(**filters: str) -> list[int]:
        listed = as_(curator).get(URL, {"updated_after": moment} | filters).json()
        return [row["id"] for row in listed["results"]]

    moment = second.updated_at.isoformat()
    assert changed() == []
    as_(curator).post(f"{URL}/{first.pk}/review", {"status": "accepted"})
    assert changed() == [first.pk]
    assert (changed(page_id="p1"), changed(page_id="p2")) == ([first.pk], [])


def test_who_reviews_what_they_walk_meets_every_row_once(caller: User, curator: User) -> None:
    rows = [sent(caller, hypothesis=f"Claim {number}.") for number in range(23)]
    client, met, counts = as_(curator), [], []
    address = f"{URL}?status=pending&page_size=5"
    while address:
        page = client.get(address).json()
        counts.append(page["count"])
        for row in page["results"]:
            met.append(row["id"])
            client.post(f"{URL}/{row['id']}/review", {"status": "accepted"})
        address = page["next"]

    assert met == [row.pk for row in reversed(rows)]
    assert counts == [23, 18, 13, 8, 3]
    assert not Correction.objects.pending().exists()


def test_one_verdict_comes_with_its_history(caller: User, curator: User) -> None:
    row = sent(caller)

    body = as_(curator).get(f"{URL}/{row.pk}").json()

    assert [event["action"] for event in body["events"]] == ["recorded"]
    assert (body["events"][0]["by"], body["fold"]) == ("carla", row.group.fold)


def test_a_curator_reviews(caller: User, curator: User) -> None:
    row = sent(caller)

    answer = as_(curator).post(f"{URL}/{row.pk}/review", {"status": "accepted", "note": "ok"})

    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["reviewer"]) == ("accepted", "curt")
    assert [event["action"] for event in answer.json()["events"]] == ["recorded", "accepted"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("revison", 9),
        ("seenstatus", "pending"),
        ("note", 5),
        ("revision", "1"),
        ("status", "x" * 10_000),
    ],
)
def test_a_guard_that_is_misspelt_does_not_let_a_review_through(
    caller: User, curator: User, field: str, value: Any
) -> None:
    row = sent(caller)

    answer = as_(curator).post(f"{URL}/{row.pk}/review", {"status": "rejected", field: value})

    assert (answer.status_code, list(answer.json())) == (400, [field])
    assert len(answer.content) < 200
    assert Correction.objects.get().status == "pending"


def test_a_curator_edits_what_they_saw(caller: User, curator: User) -> None:
    row = sent(caller, page_id="p1")
    as_(curator).post(f"{URL}/{row.pk}/review", {"status": "accepted"})
    url, note = f"{URL}/{row.pk}", "Falls were not counted."

    said = as_(curator).patch(url, {"revision": 1, "reason": "dose", "domain": "medicine"})
    body = as_(curator).patch(url, {"revision": 2, "correct_label": "refutes", "note": note}).json()
    stale = as_(curator).patch(url, {"revision": 2, "annotator": "Ana"})

    assert (said.status_code, said.json()["status"]) == (200, "accepted")
    assert (body["correct_label"], body["status"], body["revision"]) == ("refutes", "pending", 3)
    assert (body["reason"], body["domain"], body["page_id"]) == ("dose", "medicine", "p1")
    assert (body["events"][-1]["action"], body["events"][-1]["note"]) == ("edited", note)
    assert (stale.status_code, "changed since" in stale.json()["detail"]) == (409, True)
    kept = as_(curator).patch(url, {"revision": 3, "correct_label": "refutes", "note": note})
    assert (kept.status_code, "Nothing would change" in str(kept.json()["note"])) == (400, True)
    row.refresh_from_db()
    assert (row.revision, row.annotator) == (3, "carla")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"reason": "dose"}, "revision"),
        ({"revision": 1, "correct_label": "maybe"}, "correct_label"),
        ({"revision": 1, "domain": "d" * 101}, "domain"),
        ({"revision": 1, "reason": None}, "reason"),
    ],
)
def test_an_edit_that_cannot_be_is_400_naming_the_field(
    caller: User, curator: User, values: dict[str, Any], field: str
) -> None:
    row = sent(caller)

    answer = as_(curator).patch(f"{URL}/{row.pk}", values)

    assert (answer.status_code, list(answer.json())) == (400, [field])
    assert as_(caller).patch(f"{URL}/{row.pk}", {"revision": 1}).status_code == 403


def test_a_caller_reads_what_became_of_what_they_sent_and_of_nothing_else(
    caller: User, curator: User
) -> None:
    mine, kept = sent(caller, external_id="mine"), sent(caller, hypothesis="Nobody took any.")
    theirs = sent(curator, hypothesis="Half of them took it.")
    other = _another_caller(caller)
    # Revised by somebody else: sent by Carla all the same.
    as_(curator).post(URL, VERDICT | {"external_id": "mine", "correct_label": "refutes"})
    reviewed = as_(curator).post(
        f"{URL}/{mine.pk}/review", {"status": "rejected", "note": "They did."}
    )

    listed = as_(caller).get(URL).json()
    [decided] = as_(caller).get(URL, {"status": "rejected"}).json()["results"]
    found = as_(caller).get(f"{URL}/{mine.pk}")

    assert (listed["count"], [row["id"] for row in listed["results"]]) == (2, [kept.pk, mine.pk])
    assert (decided["id"], decided["status"], decided["review_note"], decided["reviewer"]) == (
        mine.pk,
        "rejected",
        "They did.",
        "curt",
    )
    assert (found.status_code, found.json()) == (200, reviewed.json())
    assert as_(caller).get(f"{URL}/{theirs.pk}").status_code == 404
    assert as_(other).get(URL).json()["count"] == 0
    assert as_(other).get(f"{URL}/{mine.pk}").status_code == 404
    assert as_(curator).get(URL).json()["count"] == 3


def test_a_near_copy_tells_nobody_whose_text_it_repeats(caller: User, curator: User) -> None:
    sent(caller, premise=LONG_TEXT, page_id="memo-1")
    other = _another_caller(caller)

    answers = [
        as_(other).post(
            URL, VERDICT | {"premise": f"{LONG_TEXT} {more}", **page, "external_id": more}
        )
        for more, page in (("a", {}), ("b", {"page_id": "note-2"}))
    ]
    answers += [as_(other).get(f"{URL}/{answer.json()['id']}") for answer in answers]
    shown = [answer.json() for answer in answers] + as_(other).get(URL).json()["results"]

    assert [row["group"] for row in shown] == [None] * 6
    assert "memo-1" not in json.dumps(shown)
    assert as_(curator).get(f"{URL}/{shown[0]['id']}").json()["group"] == "page:memo-1"


def test_a_quarantine_tells_nobody_whose_text_is_repeated(caller: User, curator: User) -> None:
    theirs = sent(caller, premise=LONG_TEXT, page_id="memo-1")
    other = _another_caller(caller)
    number, barred = 0, None
    while barred is None:  # until a page of theirs falls to another fold than the copied text's
        mine = sent(other, premise=f"Page {number} is about {number * 97}.", page_id=f"n-{number}")
        if mine.group.fold != theirs.group.fold:
            barred = as_(other).post(
                URL, VERDICT | {"premise": f"{LONG_TEXT} Yes.", "page_id": mine.page_id}
            )
        number += 1

    read = as_(other).get(f"{URL}/{barred.json()['id']}").json()
    listed = as_(other).get(URL, {"quarantined": "true"}).json()["results"]

    for row in (barred.json(), read, *listed):
        assert row["quarantine"] == folds.NAMELESS
        assert (row["group"], "memo-1" in json.dumps(row)) == (mine.group.key, False)
    assert "memo-1" in as_(curator).get(f"{URL}/{read['id']}").json()["quarantine"]


def test_a_caller_reads_the_group_of_their_own_page(caller: User) -> None:
    paged, alone = sent(caller, page_id="p1"), sent(caller, premise="Nobody was asked.")

    for row in (paged, alone):
        assert as_(caller).get(f"{URL}/{row.pk}").json()["group"] == row.group.key


def test_a_caller_follows_what_is_decided(caller: User, curator: User) -> None:
    first, second = sent(caller), sent(caller, hypothesis="Nobody took any.")
    moment = second.updated_at.isoformat()

    def changed() -> list[int]:
        listed = as_(caller).get(URL, {"updated_after": moment}).json()
        return [row["id"] for row in listed["results"]]

    assert changed() == []
    as_(curator).post(f"{URL}/{first.pk}/review", {"status": "accepted"})
    assert changed() == [first.pk]


def test_a_refused_review_is_409_with_the_reason(caller: User, curator: User) -> None:
    row = sent(caller, external_id="mine")
    as_(caller).post(URL, VERDICT | {"external_id": "mine", "correct_label": "refutes"})

    stale = as_(curator).post(f"{URL}/{row.pk}/review", {"status": "accepted", "revision": 1})
    Correction.objects.update(quarantine="It bridges folds.")
    barred = as_(curator).post(f"{URL}/{row.pk}/review", {"status": "accepted"})

    assert (stale.status_code, barred.status_code) == (409, 409)
    assert "changed since" in stale.json()["detail"]
    assert "bridges folds" in barred.json()["detail"]


def test_a_review_of_what_a_colleague_reviewed_meanwhile_is_409(
    caller: User, curator: User, administrator: User
) -> None:
    row = sent(caller)
    url, seen = f"{URL}/{row.pk}/review", {"revision": 1, "seen_status": "pending"}
    as_(administrator).post(url, seen | {"status": "accepted"})

    stale = as_(curator).post(url, seen | {"status": "rejected"})
    agreed = as_(curator).post(url, seen | {"status": "accepted", "note": "Seen too late."})
    outdated = as_(curator).post(url, {"status": "accepted", "revision": 77})
    aware = as_(curator).post(url, {"status": "rejected", "seen_status": "accepted"})
    unsaid = as_(curator).post(url, {"status": "pending"})

    assert (stale.status_code, agreed.status_code, outdated.status_code) == (409, 409, 409)
    for refused in (stale, agreed):
        assert f"Row {row.pk} was accepted by ada on 20" in refused.json()["detail"]
    assert "changed since" in outdated.json()["detail"]
    assert (aware.status_code, unsaid.status_code) == (200, 200)
    # Sent again by who never got the answer: nothing to refuse, nothing to do.
    again = seen | {"status": "rejected"}
    assert [as_(curator).post(url, again).status_code for _ in range(2)] == [200, 200]
    assert row.events.filter(action="rejected").count() == 2
    assert as_(curator).post(url, {"status": "accepted", "seen_status": "x"}).status_code == 400


def test_a_note_on_what_is_reviewed_already_is_kept(
    caller: User, curator: User, administrator: User
) -> None:
    row = sent(caller)
    url = f"{URL}/{row.pk}/review"
    before = as_(administrator).post(url, {"status": "rejected", "note": "a"}).json()

    body = as_(curator).post(url, {"status": "rejected", "note": "important"}).json()
    as_(curator).post(url, {"status": "rejected", "note": "important"})
    as_(curator).post(url, {"status": "rejected"})

    assert (body["status"], body["review_note"], body["reviewer"]) == (
        "rejected",
        "important",
        "ada",
    )
    assert body["reviewed_at"] == before["reviewed_at"]
    row.refresh_from_db()
    assert row.review_note == "important"
    noted = row.events.last()
    assert row.events.count() == 3
    assert (noted.by, noted.note) == (curator, "important")
    assert noted.changes == {"review_note": ["a", "important"]}


def test_a_curator_reviews_many_at_once(caller: User, curator: User) -> None:
    good, bad, done = (sent(caller, hypothesis=f"Claim {number}.") for number in range(3))
    as_(curator).post(f"{URL}/{done.pk}/review", {"status": "accepted", "note": "Read."})
    reviews = [
        {"id": good.pk, "status": "accepted", "revision": 1, "seen_status": "pending"},
        {"id": bad.pk, "status": "rejected", "note": "Half a sentence."},
        {"id": done.pk, "status": "accepted"},
    ]

    answer = as_(curator).post(f"{URL}/review", {"reviews": reviews})
    again = as_(curator).post(f"{URL}/review", {"reviews": reviews})

    assert (answer.status_code, answer.json()) == (200, {"changed": 2})
    assert (again.status_code, again.json()) == (200, {"changed": 0})
    found = Correction.objects.order_by("pk").values_list("status", "review_note", "reviewer")
    assert list(found) == [
        ("accepted", "", curator.pk),
        ("rejected", "Half a sentence.", curator.pk),
        ("accepted", "Read.", curator.pk),
    ]
    assert [event.action for event in bad.events.all()] == ["recorded", "rejected"]


def test_where_one_of_many_reviews_is_refused_none_is_recorded(
    caller: User, curator: User, administrator: User
) -> None:
    fine, revised, taken, barred = (
        sent(caller, external_id=f"e{number}", hypothesis=f"Claim {number}.") for number in range(4)
    )
    as_(caller).post(URL, VERDICT | {"external_id": "e1", "correct_label": "refutes"})
    as_(administrator).post(f"{URL}/{taken.pk}/review", {"status": "rejected"})
    Correction.objects.filter(pk=barred.pk).update(quarantine="It bridges folds.")
    seen = {"status": "accepted", "revision": 1, "seen_status": "pending"}
    reviews = [seen | {"id": row.pk} for row in (fine, revised, taken, barred)]
    reviews += [{"id": 99, "status": "accepted"}, {"id": 98, "status": "rejected"}]

    answer = as_(curator).post(f"{URL}/review", {"reviews": reviews})

    assert answer.status_code == 409
    assert answer.json()["detail"] == "5 of 6 reviews are refused, so nothing was changed."
    refused = answer.json()["refused"]
    assert list(refused) == [str(each["id"]) for each in reviews[1:]]
    assert "changed since" in refused[str(revised.pk)]
    assert "was rejected by ada" in refused[str(taken.pk)]
    assert "bridges folds" in refused[str(barred.pk)]
    assert (refused["99"], refused["98"]) == ("There is no row 99.", "There is no row 98.")
    assert Correction.objects.pending().count() == 3
    assert not fine.events.exclude(action="recorded").exists()


@pytest.mark.parametrize(
    ("reviews", "says"),
    [
        ([], "empty"),
        ([{"id": 1, "status": "accepted"}] * 2, "Correction 1 is reviewed twice."),
        ([{"id": pk, "status": "accepted"} for pk in range(1, 202)], "no more than 200"),
        ([{"status": "accepted"}], '"id": ["This field is required."]'),
        ([{"id": 1, "status": "accepted", "revison": 1}], "Did you mean “revision”?"),
        ({"id": 1, "status": "accepted"}, "Expected a list"),
    ],
)
def test_many_reviews_that_cannot_be_are_400_saying_which(
    curator: User, reviews: Any, says: str
) -> None:
    answer = as_(curator).post(f"{URL}/review", {"reviews": reviews})

    assert (answer.status_code, list(answer.json())) == (400, ["reviews"])
    assert says in json.dumps(answer.json(), ensure_ascii=False)


def test_who_revises_another_revision_than_they_saw_is_409(caller: User) -> None:
    mine = VERDICT | {"external_id": "mine"}

    early = as_(caller).post(URL, mine | {"expected_revision": 1})
    first = as_(caller).post(URL, mine | {"expected_revision": 0})
    twice = as_(caller).post(URL, mine | {"expected_revision": 0})  # the answer was lost
    other = as_(caller).post(URL, mine | {"expected_revision": 0, "reason": "Mine."})
    revised = as_(caller).post(URL, mine | {"expected_revision": 1, "reason": "Misread."})
    late = as_(caller).post(URL, mine | {"expected_revision": 1, "reason": "Else."})

    assert (early.status_code, first.status_code, twice.status_code) == (409, 201, 200)
    assert (twice.json()["revision"], other.status_code) == (1, 409)
    assert "external_id mine is not on record" in early.json()["detail"]
    assert (revised.status_code, late.status_code) == (200, 409)
    assert "external_id mine is at revision 2" in late.json()["detail"]
    row = Correction.objects.get()
    assert (row.revision, row.reason) == (2, "Misread.")
    assert as_(caller).post(URL, mine | {"expected_revision": -1}).status_code == 400


@pytest.mark.parametrize("odd", ["%00", "%ff", "9" * 5_000, "-1", "x", ""])
def test_no_query_of_the_list_is_a_crash(caller: User, curator: User, odd: str) -> None:
    row = sent(caller)
    names = ("page", "page_size", "ordering", "search", "quarantined", "domain", "external_id")
    addresses = [f"{URL}?{name}={odd}" for name in names]

    for address in [*addresses, f"{URL}/{odd or 0}", f"{URL}/{row.pk}?{odd}={odd}"]:
        assert as_(curator).get(address).status_code in {200, 400, 404}


def test_who_may_not_is_refused(caller: User, trainer: User) -> None:
    row = sent(caller)

    assert as_(trainer).get(URL).status_code == 403
    assert as_(trainer).get(f"{URL}/{row.pk}").status_code == 403
    assert as_(caller).post(f"{URL}/{row.pk}/review", {"status": "accepted"}).status_code == 403
    assert as_(trainer).post(URL, VERDICT).status_code == 403
    assert APIClient().post(URL, VERDICT).status_code == 401
