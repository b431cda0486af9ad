"""A PostgreSQL that answers and takes no writes, and threads that no error of a database ends."""

from collections import Counter
from unittest import mock

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone
from knox.models import AuthToken

from adapters_app import liveness
from adapters_app.models import PredictionTally
from corrections import audits
from corrections.models import AuditSample, Correction
from inference import engine, presence, sampling, tallies
from tests.postgresql import read_only

pytest_plugins = ("tests.serving",)

VERDICT = {
    "premise": "p",
    "hypothesis": "h",
    "predicted_label": "supports",
    "predicted_confidence": 0.5,
    "correct_label": "neutral",
}


@pytest.fixture
def turns(monkeypatch):
    """Let the loop of a module's thread, run in this one, make so many turns."""

    def make(module, count):
        wait = mock.Mock(side_effect=[False] * count + [True])
        monkeypatch.setattr(module, "_stop", mock.Mock(wait=wait))
        return wait

    return make


@pytest.fixture
def counted(monkeypatch):
    """Seven predictions and a drawn answer are in memory."""
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    key = tallies._Key(hour, None, "supports")
    monkeypatch.setattr(tallies, "_counts", Counter({key: 7}))
    drawn = AuditSample(
        premise="p",
        hypothesis="h",
        predicted_label="supports",
        raw_confidence=0.5,
        confidence=0.5,
        probability=0.5,
        drawn_at=timezone.now(),
        sampling=Correction.Sampling.AUDIT,
    )
    monkeypatch.setattr(sampling, "_drawn", [drawn])
    monkeypatch.setattr(sampling, "_losses", Counter())


def test_what_was_counted_and_drawn_waits_until_it_can_be_written(on_postgresql, counted, turns):
    with read_only():
        turns(tallies, 2)
        tallies._flush_for_ever()
    assert not PredictionTally.objects.exists()
    turns(tallies, 1)
    tallies._flush_for_ever()
    assert PredictionTally.objects.get().count == 7
    assert AuditSample.objects.count() == 1


def test_a_process_that_serves_is_seen_when_it_can_be_written(on_postgresql, on_tiny, turns):
    engine.warm()
    with read_only():
        turns(presence, 2)
        presence._report_for_ever()
        presence._finish()
    turns(presence, 1)
    presence._report_for_ever()
    assert liveness.servers().count() == 1


def test_no_error_ends_the_thread_that_flushes(db, counted, turns, monkeypatch, caplog):
    with monkeypatch.context() as patched:
        patched.setattr(tallies, "_write", mock.Mock(side_effect=RuntimeError("a mistake")))
        patched.setattr(audits, "enqueue", mock.Mock(side_effect=RuntimeError("another")))
        turns(tallies, 2)
        tallies._flush_for_ever()
    assert "a mistake" in caplog.text
    assert "another" in caplog.text


def test_no_error_ends_the_thread_that_reports(db, turns, monkeypatch, caplog):
    monkeypatch.setattr(presence, "report", mock.Mock(side_effect=RuntimeError("a mistake")))
    wait = turns(presence, 2)
    presence._report_for_ever()
    assert "a mistake" in caplog.text
    assert wait.call_args == mock.call(presence.REPORT_SECONDS)


def test_requests_that_write_say_so_and_can_be_sent_again(on_postgresql):
    user = User.objects.create_user("curt", password="correct horse")
    user.groups.set(Group.objects.all())
    authorized = {"Authorization": f"Token {AuthToken.objects.create(user)[1]}"}
    client = Client(raise_request_exception=False)

    def post():
        return client.post(
            "/api/v1/corrections", VERDICT, content_type="application/json", headers=authorized
        )

    with read_only():
        refused = post()
        page = client.post("/admin/login/", {"username": "curt", "password": "correct horse"})
    assert (refused.status_code, refused["Retry-After"]) == (503, "5")
    assert refused.json() == {"detail": "The database is read-only just now: nothing can be saved."}
    assert (page.status_code, page["Retry-After"]) == (503, "5")
    assert "The database is read-only just now" in page.content.decode()
    assert post().status_code == 201


def test_a_command_that_writes_says_so_in_a_sentence(on_postgresql):
    User.objects.create_user("curt")
    with read_only(), pytest.raises(CommandError, match=r"cannot be used just now.*read-only"):
        call_command("tokens", "issue", "curt")
