"""The curator's pages: reading, reviewing by action, by key and by button, editing, adding."""

import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from corrections.intake import edit_correction, record_correction, review
from corrections.labels import Label
from corrections.models import Correction

pytestmark = pytest.mark.django_db
LIST = "/admin/corrections/correction/"
Status = Correction.Status


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


def form_of(row: Correction, **values: Any) -> dict[str, Any]:
    """What the page of a pending row sends: `decision` is the button, other values are edits."""
    fields = ("correct_label", "reason", "domain", "annotator")
    shown = {name: getattr(row, name) for name in fields}
    shown |= {"note": "", "seen_revision": row.revision, "seen_status": row.status}
    return shown | {"events-TOTAL_FORMS": "0", "events-INITIAL_FORMS": "0"} | values


def messages_of(answer: Any) -> list[str]:
    return [str(message) for message in answer.context["messages"]]


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


def test_a_row_is_found_by_the_number_that_pages_call_it_by(caller: User, curator: User) -> None:
    rows = [recorded(caller, number) for number in range(3)]

    answer = as_(curator).get(f"{LIST}?q=%23{rows[1].pk}")

    assert list(answer.context["cl"].result_list) == [rows[1]]
    assert f"#{rows[1].pk}</div>" in answer.text


def test_the_list_says_who_reviewed_and_finds_what_a_colleague_changed(
    caller: User, curator: User, administrator: User
) -> None:
    reviewed, edited, _untouched, mine = (recorded(caller, number) for number in range(4))
    edit_correction(edited, by=curator, domain="wards")
    review([reviewed.pk], by=curator, status=Status.ACCEPTED)
    review([mine.pk], by=administrator, status=Status.REJECTED)
    client = as_(administrator)

    everything = client.get(LIST).text
    found = client.get(f"{LIST}?changed_by={curator.pk}")
    nobodys = client.get(f"{LIST}?changed_by={caller.pk}")

    assert f"by {curator}," in everything
    assert f"by {administrator}," in everything
    assert f'href="?changed_by={curator.pk}"' in everything
    assert list(found.context["cl"].result_list) == [reviewed, edited]  # the newest change first
    assert nobodys.context["cl"].result_count == 0  # they only recorded


def test_the_list_of_one_annotator_says_whose_it_is(caller: User, curator: User) -> None:
    recorded(caller, annotator="bea")
    recorded(caller, 1)

    found = as_(curator).get(f"{LIST}?annotator=bea")

    assert found.context["cl"].result_count == 1
    [chosen] = re.findall('<li class="selected">\\s*<a[^>]*>(bea)</a>', found.text)
    assert chosen == "bea"
    assert "bea" not in as_(curator).get(f"{LIST}?annotator=").text
    assert "By annotator" not in as_(curator).get(LIST).text


def test_chosen_rows_are_accepted_and_quarantined_ones_named(caller: User, curator: User) -> None:
    rows = [recorded(caller, number) for number in range(3)]
    Correction.objects.filter(pk=rows[0].pk).update(quarantine="It bridges folds.")

    answer = as_(curator).post(
        LIST, {"action": "accept", "_selected_action": [row.pk for row in rows]}, follow=True
    )

    said = [str(message) for message in answer.context["messages"]]
    assert said == ["1 quarantined row cannot be accepted.", "2 corrections accepted."]
    assert Correction.objects.accepted().count() == 2


def test_what_a_colleague_accepted_meanwhile_does_not_stop_the_others(
    caller: User, curator: User, administrator: User
) -> None:
    rows = [recorded(caller, number) for number in range(3)]
    form: dict[str, Any] = {"action": "accept", "_selected_action": [row.pk for row in rows]}
    for row in rows:
        form |= {f"revision_{row.pk}": "1", f"status_{row.pk}": "pending"}
    review([rows[0].pk], by=administrator, status="accepted", note="clear")

    said = messages_of(as_(curator).post(LIST, form, follow=True))

    assert said == ["2 corrections accepted."]
    rows[0].refresh_from_db()
    assert (rows[0].reviewer, rows[0].review_note) == (administrator, "clear")


def test_one_chosen_row_is_one_correction(caller: User, curator: User) -> None:
    chosen = {"action": "reject", "_selected_action": [recorded(caller).pk]}

    assert messages_of(as_(curator).post(LIST, chosen, follow=True)) == ["1 correction rejected."]


def test_a_title_that_is_cut_says_so(caller: User) -> None:
    cut, whole = recorded(caller, hypothesis="w" * 61), recorded(caller, hypothesis="w" * 60)

    assert str(cut).endswith(": " + "w" * 59 + "…")
    assert str(whole).endswith(": " + "w" * 60)


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
    )

    assert answer.json()["status"] == "accepted"
    assert answer.json()["reviewed_by"] == f"by {curator},"
    counts = answer.json()["counts"]
    assert (counts["pending"], counts["accepted"], counts["supports"]) == (0, 1, 1)


def test_a_key_press_that_makes_or_ends_a_conflict_says_so(caller: User, curator: User) -> None:
    row = recorded(caller)
    recorded(caller, correct_label="refutes")
    url = reverse("admin:corrections_correction_review", args=[row.pk])

    for status, conflicts in (("rejected", 0), ("accepted", 2)):
        answer = as_(curator).post(url, {"status": status})
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
        )

    assert "1 pending" in opened.text
    assert pressed.json()["counts"].keys() == {*Status.values, *Label}
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
    answer = as_(curator).post(url, asked)

    assert answer.status_code == code
    assert says in answer.json()["detail"]
    assert Correction.objects.pending().count() == 1


def test_a_review_from_an_older_page_does_not_undo_a_colleagues(
    caller: User, curator: User, administrator: User
) -> None:
    row = recorded(caller)
    assert 'name="seen_status" value="pending"' in as_(curator).get(page(row)).content.decode()
    as_(administrator).post(page(row), form_of(row, decision="accepted"))

    by_page = as_(curator).post(page(row), form_of(row, decision="rejected"), follow=True)
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
        assert "was accepted by ada on 20" in messages_of(answer)[0]
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
        *(
            f"{name}={odd}"
            for name in ("status__exact", "domain", "changed_by")
            for odd in (NUL, LONG, "%ff")
        ),
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

    first = client.post(page(newer), form_of(newer, decision="accepted"))
    last = client.post(page(older), form_of(older, decision="rejected"), follow=True)

    assert first.url == page(older)
    assert last.redirect_chain[-1][0] == LIST
    assert messages_of(last)[1:] == [f"Row {older.pk} is rejected.", "No other row is pending."]


def test_a_review_goes_on_in_the_list_it_was_started_from(caller: User, curator: User) -> None:
    rows = [recorded(caller, number, predicted_confidence=0.5) for number in range(5)]
    for number, confidence in ((1, 0.9), (3, 0.7), (4, 0.8)):
        Correction.objects.filter(pk=rows[number].pk).update(
            predicted_confidence=confidence, domain="wards"
        )
    client = as_(curator)
    shown = client.get(f"{LIST}?status__exact=pending&domain=wards&o=-2&p=1")

    visited, address = [], links_of(shown)[0]
    while "/change/" in address:
        row = Correction.objects.get(pk=address.split("/")[4])
        visited.append(row.pk)
        address = client.post(address, form_of(row, decision="accepted")).url

    assert visited == [rows[1].pk, rows[4].pk, rows[3].pk]
    assert (
        address == f"{LIST}?{urlencode({'status__exact': 'pending', 'domain': 'wards', 'o': -2})}"
    )
    assert f"No row follows row {rows[3].pk} in this list." in client.get(address).text
    assert Correction.objects.pending().count() == 2


def test_a_row_can_be_left_undecided_for_the_next_of_the_list(caller: User, curator: User) -> None:
    first, second, _elsewhere = (
        recorded(caller, number, domain="ward" if number < 2 else "") for number in range(3)
    )
    client, origin = as_(curator), urlencode({"_changelist_filters": "domain=ward"})

    opened = client.get(f"{page(second)}?{origin}").text
    [onward] = re.findall('href="([^"]*)" data-key="j"', opened)
    followed = client.get(unescape(onward), follow=True)
    back = client.get(f"{LIST}{first.pk}/next/?{origin}", follow=True)

    assert followed.redirect_chain == [(f"{page(first)}?{origin}", 302)]
    assert back.redirect_chain == [(f"{LIST}?domain=ward", 302)]
    assert messages_of(back) == [f"No row follows row {first.pk} in this list."]
    assert Correction.objects.pending().count() == 3


def test_a_page_leads_back_to_the_list_as_it_was_filtered(caller: User, curator: User) -> None:
    origin = urlencode({"_changelist_filters": "domain=ward&p=2"})

    html = as_(curator).get(f"{page(recorded(caller))}?{origin}").text

    assert f'<a href="{LIST}?domain=ward&amp;p=2">Corrections</a>' in html


def test_the_count_whose_rows_are_listed_is_marked(caller: User, curator: User) -> None:
    client = as_(curator)

    def marked(query: str) -> list[str]:
        html = client.get(f"{LIST}?{query}").text
        return re.findall('aria-current="true"><b data-count="([a-z]*)"', html)

    assert marked("status__exact=pending") == ["pending"]
    assert marked("conflict=yes") == ["conflicts"]
    assert marked("quarantined=yes") == ["quarantined"]
    assert marked("") == []


def test_rows_asked_for_by_id_are_listed_and_reviewed_in_that_order(
    caller: User, curator: User
) -> None:
    rows = [recorded(caller, number) for number in range(4)]
    asked = [rows[2].pk, rows[0].pk, rows[3].pk]
    client = as_(curator)
    shown = client.get(f"{LIST}?id__in={','.join(map(str, asked))}")

    following = client.post(links_of(shown)[0], form_of(rows[2], decision="accepted"))

    assert [row.pk for row in shown.context["cl"].result_list] == asked
    assert following.url == links_of(shown)[1]


def test_both_sides_of_a_conflict_are_listed_beside_one_another(
    caller: User, curator: User
) -> None:
    for label in ("supports", "refutes"):
        for number in range(3):
            recorded(caller, number, correct_label=label)

    listed = as_(curator).get(f"{LIST}?conflict=yes").context["cl"].result_list

    pairs = [row.pair_digest for row in listed]
    assert pairs == [pairs[0]] * 2 + [pairs[2]] * 2 + [pairs[4]] * 2


def test_an_edit_leads_back_to_the_list_it_was_started_from(caller: User, curator: User) -> None:
    row = recorded(caller)
    client = as_(curator)
    [address] = links_of(client.get(f"{LIST}?q=fever"))

    assert client.post(address, form_of(row, reason="Read again.")).url == f"{LIST}?q=fever"


@pytest.mark.parametrize(
    "origin",
    [
        "p=7",
        "nonsense__lookup=1",
        "id__exact=x",
        "domain=%00",
        "o=x.99",
        "q=" + "9" * 5_000,
        "\ud800",
    ],
)
def test_an_odd_list_of_origin_does_not_stop_a_review(
    caller: User, curator: User, origin: str
) -> None:
    row = recorded(caller)
    address = f"{page(row)}?{urlencode({'_changelist_filters': origin}, errors='surrogatepass')}"

    answer = as_(curator).post(address, form_of(row, decision="accepted"))

    assert answer.status_code == 302
    assert Correction.objects.accepted().count() == 1


def links_of(shown: Any) -> list[str]:
    """The addresses of the rows, as a list links to them."""
    found = re.findall(rf'href="({LIST}[0-9]+/change/[^"]*)"', shown.text)
    return [unescape(address) for address in found]


def test_a_page_shows_the_pair_its_history_and_rival_verdicts(caller: User, curator: User) -> None:
    row = recorded(caller)
    rival = recorded(caller, correct_label="refutes", reason="Fever is not named.")

    html = as_(curator).get(page(row)).content.decode()

    assert row.premise in html
    assert "judged differently" in html
    assert "Fever is not named." in html
    assert f"row {rival.pk}" in html
    assert "carla" in html


def test_the_history_of_a_row_holds_its_reviews_from_the_list(caller: User, curator: User) -> None:
    row = recorded(caller)
    client = as_(curator)
    client.post(LIST, {"action": "accept", "_selected_action": [row.pk]})

    [address] = re.findall(r'href="([^"]*)" class="historylink"', client.get(page(row)).text)
    shown = client.get(f"{LIST}{row.pk}/history/", follow=True)

    assert address == "#events-group"
    assert shown.redirect_chain == [(f"{page(row)}#events-group", 302)]
    inline = shown.text[shown.text.index('id="events-group"') :]
    assert "accepted" in inline


def test_the_names_in_a_history_lead_to_no_page_that_a_curator_may_not_see(
    caller: User, curator: User
) -> None:
    html = as_(curator).get(page(recorded(caller))).text

    assert caller.username in html[html.index('id="events-group"') :]
    assert "/admin/auth/user/" not in html


def test_a_label_that_a_colleague_changed_is_not_put_into_the_annotators_mouth(
    caller: User, curator: User
) -> None:
    row = recorded(caller, annotator="bea")
    client = as_(curator)

    def said() -> str:
        return " ".join(re.sub("<[^>]*>", " ", client.get(page(row)).text).split())

    assert "bea says supports" in said()

    edit_correction(row, by=curator, correct_label="refutes")
    assert f"{curator} changed the verdict of bea from supports to refutes" in said()
    assert "bea says" not in said()

    edit_correction(row, by=curator, annotator="carla")
    assert "carla says refutes" in said()


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
    assert "correct label: supports → refutes" in as_(curator).get(page(row)).text

    stale = as_(curator).post(page(row), form | {"correct_label": "supports"})
    assert "Somebody else changed this row" in stale.content.decode()


def test_settling_one_conflict_after_another_goes_on_to_the_next(
    caller: User, curator: User
) -> None:
    """A settled conflict leaves the list, and the row that is open with it."""
    rows = [
        recorded(caller, hypothesis=hypothesis, correct_label=label)
        for hypothesis in ("One thing.", "Quite another.")
        for label in ("supports", "refutes")
    ]
    client, origin = as_(curator), "?_changelist_filters=conflict%3Dyes"
    settled, at = [], min(rows, key=lambda row: (row.pair_digest, -row.pk))
    for decision in ("rejected", "accepted", "rejected", "accepted"):
        answer = client.post(page(at) + origin, form_of(at, decision=decision))
        settled.append(at.pk)
        found = re.search(r"/(\d+)/change/", answer.url)
        if found is None:
            break
        at = Correction.objects.get(pk=int(found[1]))
    assert set(settled) == {row.pk for row in rows}


@pytest.mark.parametrize("decision", ["accepted", "rejected"])
def test_what_was_changed_on_a_page_is_saved_with_the_decision(
    caller: User, curator: User, decision: str
) -> None:
    row = recorded(caller)
    sent = form_of(row, correct_label="refutes", note="misread", decision=decision)

    answer = as_(curator).post(page(row), sent, follow=True)

    row.refresh_from_db()
    assert (row.correct_label, row.status, row.revision) == ("refutes", decision, 2)
    edited, reviewed = row.events.order_by("id")[1:]
    assert (edited.action, edited.changes) == ("edited", {"correct_label": ["supports", "refutes"]})
    assert (reviewed.action, reviewed.changes) == (decision, {"status": ["pending", decision]})
    assert {event.note for event in (edited, reviewed)} == {"misread"}
    assert messages_of(answer)[0] == f"Row {row.pk} was changed and is {decision}."


def test_an_accepted_row_is_put_right_and_accepted_at_once(caller: User, curator: User) -> None:
    row = recorded(caller)
    review([row.pk], by=curator, status="accepted")
    row.refresh_from_db()

    as_(curator).post(page(row), form_of(row, correct_label="refutes", decision="accepted"))

    row.refresh_from_db()
    assert (row.correct_label, row.status) == ("refutes", "accepted")


def test_who_accepts_an_accepted_row_again_has_looked_at_it(caller: User, curator: User) -> None:
    row = recorded(caller)
    review([row.pk], by=caller, status=Status.ACCEPTED)
    row.refresh_from_db()
    first = row.reviewed_at

    answer = as_(curator).post(page(row), form_of(row, decision="accepted"))

    assert answer.status_code == 302
    row.refresh_from_db()
    assert (row.reviewer, row.reviewed_at) == (caller, first)
    event = row.events.last()
    assert event is not None
    assert (event.by, event.action, event.changes) == (curator, "accepted", {})


def test_neither_the_edit_nor_the_review_is_done_where_a_colleague_was_faster(
    caller: User, curator: User, administrator: User
) -> None:
    row = recorded(caller)
    sent = form_of(row, correct_label="refutes", decision="accepted")
    review([row.pk], by=administrator, status="rejected")

    answer = as_(curator).post(page(row), sent, follow=True)

    [said] = messages_of(answer)
    assert said.startswith(f"Nothing was changed. Row {row.pk} was rejected by ada on 20")
    row.refresh_from_db()
    assert (row.correct_label, row.status, row.revision) == ("supports", "rejected", 1)


def test_an_edit_that_is_not_possible_is_no_review_either(caller: User, curator: User) -> None:
    row = recorded(caller)

    answer = as_(curator).post(page(row), form_of(row, reason="a\0b", decision="accepted"))

    assert "Null characters are not allowed" in answer.text
    row.refresh_from_db()
    assert row.status == "pending"


def test_who_may_edit_but_not_review_decides_nothing(caller: User) -> None:
    row = recorded(caller)
    editor = User.objects.create_user("edo", is_staff=True)
    editor.user_permissions.add(*_permissions("view_correction", "change_correction"))

    refused = as_(editor).post(page(row), form_of(row, reason="Mine.", decision="accepted"))

    assert refused.status_code == 403
    row.refresh_from_db()
    assert (row.reason, row.status) == ("", "pending")


def test_a_changed_label_is_said_to_wait_for_review_again(caller: User, curator: User) -> None:
    row = recorded(caller)
    review([row.pk], by=curator, status="accepted")

    answer = as_(curator).post(page(row), form_of(row, correct_label="refutes"), follow=True)

    assert f"row {row.pk} was changed, so it waits for review again" in messages_of(answer)[0]


def test_enter_in_a_field_of_a_page_saves_and_decides_nothing(caller: User, curator: User) -> None:
    shown = as_(curator).get(page(recorded(caller))).text

    # A browser presses the first button of a form.
    form = shown[shown.index('id="correction_form"') :]
    assert re.findall(r'type="submit"[^>]* name="(\w+)"|<button[^>]* name="(\w+)"', form)[0] == (
        "_save",
        "",
    )


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
    reader.user_permissions.add(*_permissions("view_correction"))

    html = as_(reader).get(page(row)).content.decode()

    assert row.premise in html
    assert "decision" not in html
    url = reverse("admin:corrections_correction_review", args=[row.pk])
    assert as_(reader).post(url, {"status": "accepted"}).status_code == 403
    assert as_(curator).get(url).status_code == 405
    assert as_(curator).get(f"{page(row).removesuffix('change/')}delete/").status_code == 403


def _permissions(*codenames: str) -> list[Permission]:
    return list(Permission.objects.filter(codename__in=codenames))


def test_a_source_leads_to_its_rows(caller: User, curator: User) -> None:
    row = recorded(caller, page_id="p7")
    also = recorded(caller, hypothesis="Nobody had a cough.", page_id="p7")
    recorded(caller, 1)
    client = as_(curator)
    group = f"/admin/corrections/sourcegroup/{row.group_id}/change/"
    rows = f"{LIST}?group={row.group_id}"

    for address in (page(row), group, "/admin/corrections/sourcegroup/"):
        assert f'href="{rows}"' in client.get(address).text, address
    assert set(client.get(rows).context["cl"].result_list) == {row, also}


def test_who_sorts_out_what_is_quarantined_reads_why_and_what_to_do(
    caller: User, curator: User
) -> None:
    row, other = recorded(caller, 0, page_id="p0"), recorded(caller, 1, page_id="p1")
    assert row.group.fold != other.group.fold
    barred = recorded(caller, premise=f"{row.premise} Really.", page_id="p1")
    assert barred.quarantine
    client = as_(curator)

    assert f"Quarantined. {barred.quarantine}" in client.get(f"{LIST}?quarantined=yes").text
    assert "reject this row" in client.get(page(barred)).text


def test_groups_are_shown_with_their_fold(caller: User, curator: User) -> None:
    row = recorded(caller, page_id="p7")

    html = as_(curator).get("/admin/corrections/sourcegroup/").content.decode()

    assert "page:p7" in html
    assert (
        as_(curator).get(f"/admin/corrections/sourcegroup/{row.group_id}/change/").status_code
        == 200
    )


def test_a_file_that_is_missing_takes_no_message_from_the_page_it_is_for(
    caller: User, curator: User
) -> None:
    client = as_(curator)
    client.post(LIST, {"action": "accept", "_selected_action": [recorded(caller).pk]})
    assert "1 correction accepted" not in client.get("/missing.png").text
    assert "1 correction accepted" in client.get(LIST).text
