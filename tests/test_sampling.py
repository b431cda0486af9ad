"""Audit sampling of live answers: what is drawn, by which lot, and how it reaches the queue."""

from collections import Counter

import pytest
from django.db import InternalError, OperationalError

from corrections import audits
from corrections.labels import Label
from corrections.models import AuditSample
from inference import engine, sampling, tallies
from tests.versions import PAIR, promote

pytest_plugins = ("tests.serving",)

URL = "/api/v1/nli"


@pytest.fixture
def alice(on_tiny, as_user, settings, monkeypatch):
    """A caller of a server that draws every answer and has nothing in memory."""
    settings.LYRA_AUDIT_SHARE = 1.0
    monkeypatch.setattr(tallies, "_counts", Counter())
    monkeypatch.setattr(sampling, "_drawn", [])
    monkeypatch.setattr(sampling, "_losses", Counter())
    return as_user("alice")


def ask(client, *pairs, **body):
    response = client.post(URL, {"pairs": list(pairs) or [PAIR]} | body, format="json")
    assert response.status_code == 200, response.content
    return response.json()


def answer(count, *, label=Label.SUPPORTS):
    """An engine's answer to `count` pairs."""
    result = engine.Result(label, (0.7, 0.2, 0.1), label, 0.9)
    return engine.Answer([result] * count, "base", None, None, "b" * 64, "none", 0)


def draw(count):
    sampling.draw(answer(count), [(f"premise {n}", "hypothesis") for n in range(count)])


def test_a_live_answer_waits_for_a_verdict_as_it_was_given(alice, tiny_model):
    said = ask(alice, PAIR | {"page_id": "p7"}, PAIR)
    assert not AuditSample.objects.exists()  # never a write per request

    tallies._flush_all()

    sample, other = AuditSample.objects.waiting()
    result = said["results"][0]
    assert (sample.premise, sample.hypothesis) == (PAIR["premise"], PAIR["hypothesis"])
    assert (sample.page_id, other.page_id) == ("p7", "")
    assert sample.predicted_label == result["label"]
    assert sample.confidence == pytest.approx(result["confidence"])
    assert sample.raw_confidence == pytest.approx(result["raw_confidence"])
    assert (sample.predicted_version, sample.predicted_digest) == (None, tiny_model.fingerprint)
    assert sample.probability == 1


def test_the_version_that_answered_is_named(alice, make_version, cast):
    version = make_version()
    promote(version, cast["rita"])
    ask(alice)
    sampling.flush()
    sample = AuditSample.objects.get()
    assert (sample.predicted_version, sample.predicted_digest) == (1, version.artifact_digest)


@pytest.mark.parametrize("adapter", ["base", "v1"])
def test_a_version_asked_for_by_name_is_not_drawn(alice, make_version, cast, adapter):
    promote(make_version(), cast["rita"])
    ask(alice, adapter=adapter)
    assert sampling.flush() == 0


def test_nothing_is_drawn_unless_it_is_asked_for(alice, settings):
    settings.LYRA_AUDIT_SHARE = 0.0
    ask(alice)
    assert sampling.flush() == 0


@pytest.mark.parametrize("prefix", ["", "/ml"])
def test_upstreams_client_is_drawn_with_the_label_it_was_told(alice, prefix):
    pairs = [
        {"pair_id": "1", "premise": PAIR["premise"], "nli_hypothesis": PAIR["hypothesis"]},
        {"pair_id": "2", "premise": " ", "nli_hypothesis": "blank"},
        {"pair_id": "3", "premise": "a\0b", "nli_hypothesis": "a NUL"},
    ]
    told = alice.post(f"{prefix}/nli", {"pairs": pairs}, format="json").json()["results"]
    sampling.flush()
    sample = AuditSample.objects.get()  # on the others no verdict could be recorded
    assert sample.predicted_label == told[0]["label"]
    assert sample.raw_confidence == pytest.approx(told[0]["confidence"])


@pytest.mark.parametrize("page_id", [["x"], "p" * 251, "a\0b"])
def test_a_page_that_cannot_be_one_is_400(alice, page_id):
    body = {"pairs": [PAIR | {"page_id": page_id}]}
    response = alice.post(URL, body, format="json")
    assert response.status_code == 400
    assert list(response.json()["pairs"]["0"]) == ["page_id"]


def test_each_pair_is_drawn_by_a_lot_of_its_own_and_the_chance_is_recorded(alice, settings):
    settings.LYRA_AUDIT_SHARE = 0.2
    settings.LYRA_AUDIT_WAITING = 5000
    sampling._lottery.seed(7)
    for _ in range(100):
        draw(100)
    sampling.flush()
    drawn = AuditSample.objects.all()
    # 10,000 lots of 0.2: 2,000 ± 40; per position in the request 20 ± 4 of 100.
    assert 1840 < drawn.count() < 2160
    assert set(drawn.values_list("probability", flat=True)) == {0.2}
    per_position = [drawn.filter(premise=f"premise {n}").count() for n in range(100)]
    assert min(per_position) > 4
    assert max(per_position) < 40


def test_a_full_queue_keeps_what_came_first_and_counts_the_rest(alice, settings, cast):
    settings.LYRA_AUDIT_WAITING = 3
    draw(2)
    assert sampling.flush() == 2
    draw(4)  # one more than memory may hold, and two more than there is room for
    assert sampling.flush() == 1
    kept = list(AuditSample.objects.values_list("premise", flat=True))
    assert kept == ["premise 0", "premise 1", "premise 0"]
    assert audits.responses()[audits.PredictedBy(None, "b" * 64)].not_kept == 3

    audits.answer(AuditSample.objects.first().pk, by=cast["bob"], correct_label="supports")
    draw(2)
    assert sampling.flush() == 1
    assert audits.responses()[audits.PredictedBy(None, "b" * 64)].not_kept == 4


@pytest.mark.parametrize("error", [OperationalError, InternalError])
def test_what_a_flush_that_failed_had_inserted_is_inserted_again(alice, monkeypatch, error):
    """As where the disk is full when the transaction ends, and another server flushes next."""

    def fail(_):
        raise error("no room for what was inserted")

    draw(2)
    with monkeypatch.context() as patched:
        patched.setattr(audits, "_count_losses", fail)
        assert sampling.flush() == 0
    waiting = list(sampling._drawn)
    sampling._drawn.clear()
    draw(2)
    assert sampling.flush() == 2  # which take the keys that the others had
    sampling._drawn.extend(waiting)
    assert sampling.flush() == 2
    assert AuditSample.objects.count() == 4


def test_while_the_database_is_away_draws_wait_within_their_bound(alice, settings, monkeypatch):
    settings.LYRA_AUDIT_WAITING = 3

    def away(*_):
        raise OperationalError("database is locked")

    draw(2)
    with monkeypatch.context() as patched:
        patched.setattr(audits, "enqueue", away)
        assert sampling.flush() == 0
        draw(2)
        assert sampling.flush() == 0
    assert sampling.flush() == 3
    assert audits.responses()[audits.PredictedBy(None, "b" * 64)].not_kept == 1
