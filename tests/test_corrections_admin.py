"""The curator's pages: reading, reviewing by action, by key and by button, editing, adding."""

from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from corrections.intake import record_correction
from corrections.models import Correction

pytestmark = pytest.mark.django_db
LIST = "/admin/corrections/correction/"


def as_(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def recorded(by: User, number: int = 0, **values: Any) -> Correction:
    named = {
        "premise": f"Ward {number} admitted {number * 91 + 4} people with fever in week {number}.",
        "hypothesis": f"Ward {number} saw fever.",
        "predicted_label": "neutral",
        "predicted_confidence": 0.62,
        "correct_label": "supports",
    }
    return record_correction(by=by, **named | values)[0]


def page(row: Correction) -> str:
    return reverse("admin:corrections_correction_change", args=[row.pk])


def test_the_list_shows_both_texts_and_counts(caller: User, curator: User) -> None:
    recorded(caller, premise="<b>Bold</b> claims were made.")
    recorded(caller, 1)

    html = as_(curator).get(LIST).content.decode()

    assert "&lt;b&gt;Bold&lt;/b&gt; claims" in html
    assert "Ward 1 saw fever." in html
    assert '<b data-count="pending">2</b> pending' in html


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status__exact=accepted", 0),
        ("quarantined=yes", 1),
        ("quarantined=no", 3),
        ("conflict=yes", 2),
        ("verdict__exact=corrected", 4),
        ("q=fever", 4),
        ("q=nowhere", 0),
    ],
)
def test_the_list_is_filtered_and_searched(
    caller: User, curator: User, query: str, expected: int
) -> None:
    recorded(caller, 0)
    recorded(caller, 0, correct_label="refutes")
    recorded(caller, 1)
    barred = recorded(caller, 2)
    Correction.objects.filter(pk=barred.pk).update(quarantine="It bridges folds.")

    answer = as_(curator).get(f"{LIST}?{query}")

    assert answer.context["cl"].result_count == expected


def test_chosen_rows_are_accepted_and_quarantined_ones_named(caller: User, curator: User) -> None:
    rows = [recorded(caller, number) for number in range(3)]
    Correction.objects.filter(pk=rows[0].pk).update(quarantine="It bridges folds.")

    answer = as_(curator).post(
        LIST, {"action": "accept", "_selected_action": [row.pk for row in rows]}, follow=True
    )

    said = [str(message) for message in answer.context["messages"]]
    assert said == ["1 quarantined rows cannot be accepted.", "2 corrections accepted."]
    assert Correction.objects.accepted().count() == 2


def test_rows_that_changed_since_the_list_was_shown_are_not_accepted(
    caller: User, curator: User
) -> None:
    row = recorded(caller, external_id="a")
    recorded(caller, external_id="a", correct_label="refutes")

    answer = as_(curator).post(
        LIST,
        {"action": "accept", "_selected_action": [row.pk], f"revision_{row.pk}": "1"},
        follow=True,
    )

    assert "changed since you saw it" in str(next(iter(answer.context["messages"])))
    assert not Correction.objects.accepted().exists()


def test_a_key_press_in_the_list_is_answered_with_the_new_counts(
    caller: User, curator: User
) -> None:
    row = recorded(caller)

    answer = as_(curator).post(
        reverse("admin:corrections_correction_review", args=[row.pk]),
        {"status": "accepted", "revision": "1"},
        headers={"Accept": "application/json"},
    )

    assert answer.json()["status"] == "accepted"
    assert (answer.json()["counts"]["pending"], answer.json()["counts"]["accepted"]) == (0, 1)


def test_a_key_press_that_makes_or_ends_a_conflict_says_so(caller: User, curator: User) -> None:
    row = recorded(caller)
    recorded(caller, correct_label="refutes")
    url = reverse("admin:corrections_correction_review", args=[row.pk])

    for status, conflicts in (("rejected", 0), ("accepted", 2)):
        answer = as_(curator).post(url, {"status": status}, headers={"Accept": "application/json"})
        assert answer.json()["counts"]["conflicts"] == conflicts


@pytest.mark.parametrize("status", ["accepted", "rejected"])
def test_neither_a_key_press_nor_a_page_counts_what_it_does_not_show(
    caller: User, curator: User, status: str
) -> None:
    row = recorded(caller)
    client = as_(curator)

    with CaptureQueriesContext(connection) as asked:
        opened = client.get(page(row))
        pressed = client.post(
            reverse("admin:corrections_correction_review", args=[row.pk]),
            {"status": status},
            headers={"Accept": "application/json"},
        )

    assert "1 pending" in opened.text
    assert pressed.json()["counts"].keys() == {"pending", "accepted", "rejected"}
    over_all_pairs = [query["sql"] for query in asked if "EXISTS(" in query["sql"]]
    assert over_all_pairs == []


@pytest.mark.parametrize(
    ("values", "code", "says"),
    [
        ({"revision": "7"}, 409, "changed since"),
        ({"status": "maybe"}, 400, "status: "),
        ({"revision": "9" * 5_000}, 400, "revision: "),
        ({"revision": "²"}, 400, "revision: "),
        ({"seen_status": "maybe"}, 400, "seen_status: "),
        ({"note": "n" * 2_001}, 400, "note: "),
        ({"note": "a\0b"}, 400, "note: "),
    ],
)
def test_a_key_press_that_is_refused_says_why(
    caller: User, curator: User, values: dict[str, str], code: int, says: str
) -> None:
    url = reverse("admin:corrections_correction_review", args=[recorded(caller).pk])

    asked = {"status": "accepted"} | values
    answer = as_(curator).post(url, asked, headers={"Accept": "application/json"})

    assert answer.status_code == code
    assert says in answer.json()["detail"]
    assert Correction.objects.pending().count() == 1


def test_a_review_from_an_older_page_does_not_undo_a_colleagues(
    caller: User, curator: User, administrator: User
) -> None:
    row = recorded(caller)
    shown = {"revision": "1", "seen_status": "pending"}
    url = reverse("admin:corrections_correction_review", args=[row.pk])
    assert 'name="seen_status" value="pending"' in as_(curator).get(page(row)).content.decode()
    as_(administrator).post(url, shown | {"status": "accepted"})

    by_page = as_(curator).post(url, shown | {"status": "rejected"}, follow=True)
    by_list = as_(curator).post(
        LIST,
        {
            "action": "reject",
            "_selected_action": [row.pk],
            f"revision_{row.pk}": "1",
            f"status_{row.pk}": "pending",
        },
        follow=True,
    )

    for answer in (by_page, by_list):
        assert "was accepted by ada on 20" in str(next(iter(answer.context["messages"])))
    row.refresh_from_db()
    assert row.status == "accepted"


@pytest.mark.parametrize("seen", ["9" * 5_000, "-1", "x", "²"])
def test_an_odd_hidden_field_of_the_list_is_not_a_crash(
    caller: User, curator: User, seen: str
) -> None:
    row = recorded(caller)
    form = {"action": "reject", "_selected_action": row.pk, f"revision_{row.pk}": seen}
    body = urlencode(form | {f"revision_{seen}": "1"})

    answer = as_(curator).post(LIST, body, content_type="application/x-www-form-urlencoded")

    assert answer.status_code == 302


NUL, LONG = "%00", "9" * 5_000


@pytest.mark.parametrize(
    "query",
    [
        *(
            f"{name}={odd}"
            for name in ("q", "p", "o", "all", "e", "pk")
            for odd in (NUL, LONG, "-1")
        ),
        *(f"id__exact={odd}" for odd in (NUL, LONG, "9" * 25, "x", "")),
        *(f"corrected_at__gte={odd}" for odd in (NUL, LONG, "x", "9999-99-99", "0001-01-01")),
        *(f"{name}={odd}" for name in ("status__exact", "domain") for odd in (NUL, LONG, "%ff")),
        "quarantined=maybe",
        "conflict=maybe&conflict=yes",
        "status__in=a,b&nonsense__lookup=1&group__fold=x",
        "o=1.2.-99.x..&p=0&q=%F0%9F%99%82%22%27",
        "q=" + "+".join(["word"] * 400),
        "_popup=1&_to_field=password",
    ],
)
def test_no_query_of_the_lists_is_a_crash(caller: User, curator: User, query: str) -> None:
    recorded(caller)

    for address in (LIST, "/admin/corrections/sourcegroup/"):
        assert as_(curator).get(f"{address}?{query}").status_code in {200, 302, 400}


@pytest.mark.parametrize("odd", ["x", "\0", "9" * 25])
def test_an_odd_choice_of_rows_is_not_a_crash(curator: User, odd: str) -> None:
    body = urlencode({"action": "reject", "_selected_action": odd})

    answer = as_(curator).post(LIST, body, content_type="application/x-www-form-urlencoded")

    assert (answer.status_code, answer.url) == (302, f"{LIST}?e=1")


@pytest.mark.parametrize("odd", ["x", "9" * 25, "9" * 5_000, "-1", "²", "_00"])
def test_no_address_of_a_row_is_a_crash(curator: User, odd: str) -> None:
    client = as_(curator)

    for action in ("change", "history", "delete", "review"):
        answer = client.post(f"{LIST}{odd}/{action}/", {"status": "accepted"}, follow=True)
        assert answer.status_code in {200, 403, 404}


def test_the_buttons_of_a_page_lead_on_to_the_next_pending_row(caller: User, curator: User) -> None:
    older, newer = recorded(caller, 1), recorded(caller, 2)
    client = as_(curator)

    first = client.post(f"{page(newer).removesuffix('change/')}review/", {"status": "accepted"})
    last = client.post(f"{page(older).removesuffix('change/')}review/", {"status": "rejected"})

    assert (first.url, last.url) == (page(older), LIST)


def test_a_page_shows_the_pair_its_history_and_rival_verdicts(caller: User, curator: User) -> None:
    row = recorded(caller)
    rival = recorded(caller, correct_label="refutes")

    html = as_(curator).get(page(row)).content.decode()

    assert row.premise in html
    assert "judged differently" in html
    assert f"row {rival.pk}" in html
    assert "carla" in html


def test_an_edit_goes_through_the_history(caller: User, curator: User) -> None:
    row = recorded(caller)
    form = {"correct_label": "refutes", "reason": "", "domain": "", "annotator": "carla"}
    form |= {"note": "misclick", "seen_revision": "1"}
    form |= {"events-TOTAL_FORMS": "0", "events-INITIAL_FORMS": "0"}

    answer = as_(curator).post(page(row), form)

    assert answer.status_code == 302, answer.context["errors"]
    row.refresh_from_db()
    assert (row.correct_label, row.revision) == ("refutes", 2)
    event = row.events.last()
    assert event is not None
    assert (event.action, event.by, event.note) == ("edited", curator, "misclick")

    stale = as_(curator).post(page(row), form | {"correct_label": "supports"})
    assert "Somebody else changed this row" in stale.content.decode()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"reason": "r" * 10_001}, "reason has 10001 characters"),
        ({"reason": "a\0b"}, "Null characters are not allowed"),
        ({"note": "n" * 2_001}, "at most 2000 characters"),
        ({"seen_revision": "9" * 5_000}, "Enter a whole number"),
    ],
)
def test_an_edit_that_breaks_a_rule_is_refused_on_the_form(
    caller: User, curator: User, values: dict[str, str], says: str
) -> None:
    row = recorded(caller)
    form = {"correct_label": "refutes", "reason": "", "domain": "", "annotator": "carla"}
    form |= {"note": "", "seen_revision": "1"}
    form |= {"events-TOTAL_FORMS": "0", "events-INITIAL_FORMS": "0"}

    answer = as_(curator).post(page(row), form | values)

    assert answer.status_code == 200
    assert says in answer.content.decode()
    row.refresh_from_db()
    assert row.revision == 1


def test_a_verdict_is_added_by_hand_through_the_intake(curator: User) -> None:
    form = {
        "premise": "The bill passed.",
        "hypothesis": "The bill failed.",
        "predicted_label": "neutral",
        "predicted_confidence": "0.5",
        "correct_label": "refutes",
    }

    answer = as_(curator).post(f"{LIST}add/", form)

    row = Correction.objects.get()
    assert (answer.status_code, row.verdict, row.annotator) == (302, "corrected", "curt")
    assert row.events.get().action == "recorded"
    bad = as_(curator).post(f"{LIST}add/", form | {"premise": "x" * 10_001})
    assert "10001 characters" in bad.content.decode()


def test_who_may_only_look_sees_no_buttons_and_can_change_nothing(
    caller: User, curator: User
) -> None:
    row = recorded(caller)
    reader = User.objects.create_user("rae", is_staff=True)
    reader.user_permissions.add(*_view_permission())

    html = as_(reader).get(page(row)).content.decode()

    assert row.premise in html
    assert "review-form" not in html
    url = reverse("admin:corrections_correction_review", args=[row.pk])
    assert as_(reader).post(url, {"status": "accepted"}).status_code == 403
    assert as_(curator).get(url).status_code == 405
    assert as_(curator).get(f"{page(row).removesuffix('change/')}delete/").status_code == 403


def _view_permission() -> list[Any]:
    return list(Permission.objects.filter(codename="view_correction"))


def test_groups_are_shown_with_their_fold(caller: User, curator: User) -> None:
    row = recorded(caller, page_id="p7")

    html = as_(curator).get("/admin/corrections/sourcegroup/").content.decode()

    assert "page:p7" in html
    assert (
        as_(curator).get(f"/admin/corrections/sourcegroup/{row.group_id}/change/").status_code
        == 200
    )
