"""The audit queue: answering and skipping by page, by REST and by function; what expires."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.exceptions import ValidationError
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from adapters_app import live, tasks
from corrections import audits
from corrections.audits import AlreadyDecided, PredictedBy
from corrections.intake import record_correction
from corrections.models import AuditSample, Correction

LIST = "/admin/corrections/auditsample/"
API = "/api/v1/audit-samples"
DIGEST = "d" * 64


def unsaved(number: int = 0, *, days_ago: float = 0, **values: Any) -> AuditSample:
    named = {
        "premise": f"Ward {number} admitted {number * 91 + 4} people with fever in week {number}.",
        "hypothesis": f"Ward {number} saw fever.",
        "predicted_label": "refutes",
        "raw_confidence": 0.917,
        "confidence": 0.583,
        "predicted_version": 3,
        "predicted_digest": DIGEST,
        "probability": 0.125,
        "drawn_at": timezone.now() - timedelta(days=days_ago),
    }
    return AuditSample(**named | values)


def drawn(number: int = 0, **values: Any) -> AuditSample:
    sample = unsaved(number, **values)
    sample.save()
    return sample


def page(sample: AuditSample) -> str:
    return reverse("admin:corrections_auditsample_change", args=[sample.pk])


def as_(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def rest(user: User) -> APIClient:
    client = APIClient()
    client.force_authenticate(user)
    return client


@pytest.fixture
def other(db: None) -> User:
    """Another curator."""
    user = User.objects.create_user("ona", is_staff=True)
    user.groups.add(Group.objects.get(name="curator"))
    return user


# --- The operation --------------------------------------------------------------------------------


def test_an_answer_is_an_accepted_correction_of_known_probability(curator: User) -> None:
    sample = audits.answer(
        drawn(page_id="p1").pk, by=curator, correct_label="supports", reason="It says so."
    )

    row = Correction.objects.get()
    assert sample.correction == row
    assert (sample.state, sample.decided_by) == ("answered", curator)
    assert (row.verdict, row.correct_label, row.predicted_label) == (
        "corrected",
        "supports",
        "refutes",
    )
    assert (row.sampling, row.sampling_probability) == ("audit", 0.125)
    assert (row.predicted_version, row.predicted_digest) == (3, DIGEST)
    assert (row.predicted_confidence, row.group.key) == (0.583, "page:p1")
    assert (row.status, row.reviewer, row.annotator) == ("accepted", curator, "curt")
    assert [event.action for event in row.events.all()] == ["recorded", "accepted"]


def test_the_second_answer_is_refused_and_names_the_first(curator: User, other: User) -> None:
    sample = drawn()
    audits.answer(sample.pk, by=curator, correct_label="refutes")

    with pytest.raises(AlreadyDecided, match="answered by curt"):
        audits.answer(sample.pk, by=other, correct_label="supports")

    assert Correction.objects.get().verdict == "confirmed"


def test_of_two_answers_at_once_one_is_recorded(
    curator: User, other: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = drawn()
    look = audits._refuse_decided

    def look_and_be_overtaken(seen: AuditSample) -> None:
        look(seen)
        monkeypatch.setattr(audits, "_refuse_decided", look)
        audits.answer(sample.pk, by=other, correct_label="supports")

    monkeypatch.setattr(audits, "_refuse_decided", look_and_be_overtaken)
    with pytest.raises(AlreadyDecided, match="answered by ona"):
        audits.answer(sample.pk, by=curator, correct_label="neutral")

    assert Correction.objects.get().correct_label == "supports"


def test_the_rules_of_every_verdict_hold(caller: User, curator: User) -> None:
    """The same pair judged differently is a conflict; a text of two folds is quarantined."""
    sample = drawn(1)
    record_correction(
        by=caller,
        premise=sample.premise,
        hypothesis=sample.hypothesis,
        predicted_label="neutral",
        predicted_confidence=0.5,
        correct_label="neutral",
    )
    answered = audits.answer(sample.pk, by=curator, correct_label="supports")
    assert Correction.objects.conflicts().count() == 2
    assert answered.correction.group == Correction.objects.earliest("id").group

    # Pages get folds in turn: some page lies in another fold than the text.
    fold = answered.correction.group.fold
    for number in range(20, 26):
        audits.answer(drawn(number, page_id=f"p{number}").pk, by=curator, correct_label="neutral")
    elsewhere = Correction.objects.exclude(group__fold=fold).exclude(page_id="").earliest("id")
    bridging = drawn(1, page_id=elsewhere.page_id)
    row = audits.answer(bridging.pk, by=curator, correct_label="supports").correction
    assert row.quarantine
    assert row.status == "pending"


@pytest.mark.parametrize("reason", ["", "  ", "a\0b", "x" * 2001])
def test_a_skip_says_why(curator: User, reason: str) -> None:
    sample = drawn()
    with pytest.raises(ValidationError):
        audits.skip(sample.pk, by=curator, reason=reason)
    sample.refresh_from_db()
    assert sample.state == "waiting"


def test_a_skip_is_counted_and_leaves_the_answer_to_somebody_else(
    curator: User, other: User
) -> None:
    sample = drawn()
    audits.skip(sample.pk, by=curator, reason="It takes a cardiologist.")
    assert audits.responses()[PredictedBy(3, DIGEST)].skipped == 1
    with pytest.raises(AlreadyDecided, match="skipped by curt"):
        audits.skip(sample.pk, by=other, reason="So do I.")

    audits.answer(sample.pk, by=other, correct_label="neutral")

    found = audits.responses()[PredictedBy(3, DIGEST)]
    assert (found.skipped, found.answered, found.rate) == (0, 1, 1.0)


# --- Retention ------------------------------------------------------------------------------------


def test_the_texts_of_old_unanswered_samples_are_removed(curator: User, settings: Any) -> None:
    settings.LYRA_AUDIT_DAYS = 30
    old, skipped, answered, young = (
        drawn(number, days_ago=days, page_id="p") for number, days in enumerate((31, 31, 31, 29))
    )
    audits.skip(skipped.pk, by=curator, reason="Unclear.")
    audits.answer(answered.pk, by=curator, correct_label="neutral")

    assert "audits expired 1" in tasks.reconcile()

    for sample in (old, skipped):
        sample.refresh_from_db()
        assert (sample.premise, sample.hypothesis, sample.page_id) == ("", "", "")
        with pytest.raises(AlreadyDecided, match="texts were removed"):
            audits.answer(sample.pk, by=curator, correct_label="neutral")
    young.refresh_from_db()
    assert young.premise
    assert Correction.objects.get().premise
    found = audits.responses()[PredictedBy(3, DIGEST)]
    assert (found.answered, found.skipped, found.expired, found.waiting) == (1, 1, 1, 1)
    assert found.rate == pytest.approx(1 / 3)


# --- The admin ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "says"),
    [(0.0, "LYRA_AUDIT_SHARE is 0"), (0.05, "5.0 % of the live answers to come are drawn")],
)
def test_an_empty_list_says_what_fills_it(
    curator: User, settings: Any, share: float, says: str
) -> None:
    settings.LYRA_AUDIT_SHARE = share

    assert says in as_(curator).get(LIST).text
    drawn()
    assert says not in as_(curator).get(LIST).text


def test_the_list_shows_what_waits_oldest_first_without_the_prediction(curator: User) -> None:
    drawn(1, days_ago=1)
    drawn(2, days_ago=2)
    audits.answer(drawn(3).pk, by=curator, correct_label="supports")

    answer = as_(curator).get(LIST)

    shown = [sample.hypothesis for sample in answer.context["cl"].result_list]
    assert shown == ["Ward 2 saw fever.", "Ward 1 saw fever."]
    html = answer.content.decode()
    assert 'class="label' not in html
    assert "<b>2</b> waiting" in html
    assert "<b>1</b> answered" in html


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("state=answered", 1),
        ("state=skipped", 1),
        ("q=95", 1),
        ("predicted_version=3", 1),
        ("predicted_version__isnull=True", 1),
    ],
)
def test_the_list_is_filtered_and_searched(curator: User, query: str, expected: int) -> None:
    drawn(1)
    drawn(2, predicted_version=None)
    audits.answer(drawn(3).pk, by=curator, correct_label="supports")
    audits.skip(drawn(4).pk, by=curator, reason="Unclear.")
    assert as_(curator).get(f"{LIST}?{query}").context["cl"].result_count == expected


@pytest.mark.parametrize(
    "query",
    ["q=%00", "state=%00", "state=x", "predicted_version=x", "id=" + "9" * 25, "drawn_at__gte=x"],
)
def test_no_query_of_the_list_is_a_crash(curator: User, query: str) -> None:
    assert as_(curator).get(f"{LIST}?{query}").status_code in {200, 302, 400}


def test_a_sample_that_is_not_there_is_404(curator: User) -> None:
    assert as_(curator).get(f"{LIST}{10**30}/change/").status_code == 404
    assert as_(curator).get(f"{LIST}7/change/").status_code == 404


def test_a_curator_judges_and_then_sees_what_the_model_said(curator: User) -> None:
    sample, following = drawn(1, days_ago=1), drawn(2)
    client = as_(curator)
    before = client.get(page(sample)).content.decode()
    assert "Ward 1 admitted" in before
    assert "The model said" not in before
    assert "0.58" not in before
    assert "0.92" not in before

    answer = client.post(page(sample), {"decision": "supports", "reason": "Four people."})

    assert (answer.status_code, answer["Location"]) == (302, page(following))
    after = client.get(page(sample)).content.decode()
    assert "the model had said refutes (0.58); it is corrected to supports" in after
    assert "0.58 calibrated, 0.92 raw, v3" in after
    assert 'name="decision"' not in after
    assert Correction.objects.get().reason == "Four people."


def test_an_answer_on_a_stale_page_is_refused_in_words(curator: User, other: User) -> None:
    sample = drawn()
    audits.answer(sample.pk, by=other, correct_label="refutes")

    answer = as_(curator).post(page(sample), {"decision": "supports"}, follow=True)

    assert "was answered by ona" in str(next(iter(answer.context["messages"])))
    assert Correction.objects.get().correct_label == "refutes"


def test_cannot_tell_asks_why_and_goes_on(curator: User) -> None:
    sample = drawn()
    client = as_(curator)

    refused = client.post(page(sample), {"decision": "skip"})
    assert "Say why it cannot be told." in refused.content.decode()
    assert client.post(page(sample), {"decision": "entails"}).status_code == 200
    taken = client.post(page(sample), {"decision": "skip", "reason": "Half a sentence."})

    assert (taken.status_code, taken["Location"]) == (302, LIST)
    sample.refresh_from_db()
    assert (sample.state, sample.skip_reason) == ("skipped", "Half a sentence.")
    assert "Half a sentence." in client.get(page(sample)).content.decode()
    assert not Correction.objects.exists()


def test_a_verdict_that_can_no_longer_be_recorded_is_told(curator: User, settings: Any) -> None:
    settings.LYRA_MAX_CHARS = 5
    answer = as_(curator).post(page(drawn()), {"decision": "supports"})
    assert "at most 5 are allowed" in answer.content.decode()


@pytest.mark.parametrize("role", ["caller", "trainer", "releaser"])
def test_others_neither_read_nor_judge(request: pytest.FixtureRequest, role: str) -> None:
    client = as_(request.getfixturevalue(role))
    sample = drawn()
    assert client.get(LIST).status_code == 403
    assert client.get(page(sample)).status_code == 403
    assert client.post(page(sample), {"decision": "supports"}).status_code == 403
    assert "auditsample" not in client.get("/admin/").content.decode()
    for path in ("add/", f"{sample.pk}/delete/"):
        assert client.get(LIST + path).status_code == 403
    assert not Correction.objects.exists()


def test_nobody_adds_or_deletes_samples(administrator: User) -> None:
    sample = drawn()
    for path in ("add/", f"{sample.pk}/delete/"):
        assert as_(administrator).get(LIST + path).status_code == 403


# --- REST -----------------------------------------------------------------------------------------


def test_rest_lists_what_waits_and_hides_the_prediction(curator: User) -> None:
    drawn(1)
    oldest = drawn(2, days_ago=3)
    audits.answer(drawn(3).pk, by=curator, correct_label="supports")

    listed = rest(curator).get(API).json()

    assert listed["count"] == 2
    first = listed["results"][0]
    assert first["id"] == oldest.pk
    assert first["prediction"] is None
    assert not {"predicted_label", "confidence", "raw_confidence"} & set(first)
    assert rest(curator).get(f"{API}?state=answered").json()["results"][0]["prediction"] == {
        "label": "refutes",
        "raw_confidence": 0.917,
        "confidence": 0.583,
        "version": 3,
        "digest": DIGEST,
    }
    assert rest(curator).get(f"{API}?state=gone").status_code == 400


def test_rest_is_walked_while_it_is_answered(curator: User) -> None:
    samples = [drawn(number) for number in range(1, 12)]
    oldest = drawn(12, days_ago=3)
    # As one request draws them: at one moment.
    moment = samples[0].drawn_at
    AuditSample.objects.exclude(pk=oldest.pk).update(drawn_at=moment)
    met, address = [], f"{API}?page_size=3"
    while address:
        page = rest(curator).get(address).json()
        for row in page["results"]:
            met.append(row["id"])
            path = f"{API}/{row['id']}/answer"
            assert rest(curator).post(path, {"correct_label": "refutes"}).status_code == 200
        address = page["next"]

    assert met == [oldest.pk, *(sample.pk for sample in samples)]
    assert not AuditSample.objects.waiting().exists()


@pytest.mark.parametrize("query", ["state=", "state=comparing", "status=waiting"])
def test_rest_refuses_filters_that_it_does_not_know(curator: User, query: str) -> None:
    answer = rest(curator).get(f"{API}?{query}")
    assert (answer.status_code, list(answer.json())) == (400, [query.partition("=")[0]])


def test_rest_answers_once(curator: User) -> None:
    sample = drawn()
    path = f"{API}/{sample.pk}"

    first = rest(curator).post(f"{path}/answer", {"correct_label": "refutes"})
    again = rest(curator).post(f"{path}/answer", {"correct_label": "supports"})
    skipped = rest(curator).post(f"{path}/skip", {"reason": "Unclear."})

    assert first.status_code == 200
    assert first.json()["state"] == "answered"
    assert first.json()["decided_by"] == "curt"
    assert first.json()["prediction"]["label"] == "refutes"
    row = Correction.objects.get(pk=first.json()["correction"])
    assert (row.verdict, row.status) == ("confirmed", "accepted")
    assert (again.status_code, skipped.status_code) == (409, 409)
    assert "answered by curt" in again.json()["detail"]


def test_rest_skips_with_a_reason(curator: User) -> None:
    sample = drawn()
    path = f"{API}/{sample.pk}/skip"
    assert rest(curator).post(path, {}).status_code == 400
    assert list(rest(curator).post(path, {"reason": " "}).json()) == ["reason"]
    done = rest(curator).post(path, {"reason": "Half a sentence."}).json()
    assert (done["state"], done["skip_reason"]) == ("skipped", "Half a sentence.")
    assert done["prediction"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "correct_label"),
        ({"correct_label": "entails"}, "correct_label"),
        ({"correct_label": 1}, "correct_label"),
        ({"correct_label": "refutes", "reason": 5}, "reason"),
        ({"correct_label": "refutes", "note": "x"}, "note"),
    ],
)
def test_rest_names_what_is_wrong(curator: User, body: dict[str, Any], field: str) -> None:
    answer = rest(curator).post(f"{API}/{drawn().pk}/answer", body)
    assert answer.status_code == 400
    assert list(answer.json()) == [field]


def test_rest_knows_no_other_sample(curator: User) -> None:
    assert rest(curator).post(f"{API}/7/answer", {"correct_label": "neutral"}).status_code == 404
    assert rest(curator).get(f"{API}/7").status_code == 404


# --- At the same time -----------------------------------------------------------------------------


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """Let threads with connections of their own start together; what each answered."""
    barrier = threading.Barrier(count)

    def contender(number: int) -> Any:
        barrier.wait()
        try:
            return act(number)
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(contender, range(count)))


def one_answer() -> None:
    """Four curators answer one sample."""
    curators = [User.objects.create_user(f"curator-{i}") for i in range(4)]
    sample = drawn()

    def judge(number: int) -> str:
        try:
            audits.answer(sample.pk, by=curators[number], correct_label="neutral")
        except AlreadyDecided as refusal:
            return str(refusal)
        return "recorded"

    answers = at_once(4, judge)
    winner = answers.index("recorded")
    assert Correction.objects.get().reviewer == curators[winner]
    assert all(f"answered by curator-{winner}" in each for each in answers if each != "recorded")
    assert len([each for each in answers if each != "recorded"]) == 3
    found = live.figures()[0]
    assert (found.accuracy.estimate, found.accuracy.rows) == (0, 1)


def one_bound() -> None:
    """Four servers flush five draws each into a queue of ten."""

    def flush(number: int) -> int:
        samples = [unsaved(number * 5 + i) for i in range(5)]
        return audits.enqueue(samples, {PredictedBy(3, DIGEST): 1})

    assert sum(at_once(4, flush)) == 10
    found = audits.responses()[PredictedBy(3, DIGEST)]
    assert (found.waiting, found.not_kept) == (10, 14)


@pytest.mark.django_db(transaction=True)
def test_of_answers_at_once_one_is_recorded_on_sqlite() -> None:
    one_answer()


def test_of_answers_at_once_one_is_recorded_on_postgresql(on_postgresql: None) -> None:
    one_answer()


@pytest.mark.django_db(transaction=True)
def test_servers_that_flush_at_once_respect_the_bound_on_sqlite(settings: Any) -> None:
    settings.LYRA_AUDIT_WAITING = 10
    one_bound()


def test_servers_that_flush_at_once_respect_the_bound_on_postgresql(
    settings: Any, on_postgresql: None
) -> None:
    settings.LYRA_AUDIT_WAITING = 10
    one_bound()
