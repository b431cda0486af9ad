"""/livez, /readyz, /metrics, and what a lost database looks like."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from unittest import mock

import psutil
import pytest
from django.conf import settings as current
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import OperationalError, connection
from django.utils import timezone
from knox.models import AuthToken

from adapters_app import dashboard, liveness, registry, secret_key, training
from inference import engine
from tests.versions import PAIR, promote

pytest_plugins = ("tests.serving",)

SESSION = "sessionid=" + "a" * 32  # long enough to be looked up


@pytest.fixture
def warm(on_tiny, db):
    engine.warm()


@pytest.fixture
def workers():
    """Both clusters have just been heard of."""
    cache.clear()
    for cluster in liveness.clusters():
        training.saw_probe(cluster)
    yield
    cache.clear()


@pytest.fixture
def no_database(db):
    error = OperationalError("unable to open database file")
    with mock.patch.object(connection, "cursor", side_effect=error):
        yield


def test_livez_looks_at_nothing(client):
    assert client.get("/livez").status_code == 200  # without the db fixture: no query is allowed


def test_ready_says_no_more_than_the_status_to_strangers(client, warm, workers):
    response = client.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_ready_tells_the_entitled(as_user, warm, workers, tiny_model):
    checks = as_user("rita").get("/readyz").json()["checks"]
    assert checks["database"] == {"ok": True}
    assert checks["model"]["digest"] == tiny_model.fingerprint
    assert checks["queue"]["ok"] is True
    assert "checks" not in as_user("alice").get("/readyz").json()


@pytest.mark.parametrize("token", ["x", "a" * 64])
def test_ready_is_open_also_to_a_token_that_is_wrong(client, warm, workers, token):
    response = client.get("/readyz", HTTP_AUTHORIZATION=f"Token {token}")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_unready_until_the_model_is_loaded(client, on_tiny, db, monkeypatch):
    asked = []
    monkeypatch.setattr(engine, "warm_in_background", lambda: asked.append(1))
    response = client.get("/readyz")
    assert (response.status_code, response.json()) == (503, {"status": "unavailable"})
    assert asked == [1]


def test_unready_where_what_should_serve_cannot_be_loaded(
    as_user, make_version, cast, warm, workers, on_tiny
):
    promote(make_version(), cast["rita"])
    for path in [
        *on_tiny.rglob("store/**/*.safetensors"),
        *on_tiny.rglob("cache/**/*.safetensors"),
    ]:
        path.unlink()
    response = as_user("rita").get("/readyz")
    assert response.status_code == 503
    assert "v1" in response.json()["checks"]["model"]["detail"]
    assert as_user("rita").get("/livez").status_code == 200


def test_unready_with_another_secret_key_than_the_other_hosts(
    client, on_postgresql, on_tiny, workers, settings, caplog
):
    """A gunicorn started by itself: `run` and `qcluster` do not even start with it."""
    engine.warm()
    secret_key.note()
    assert client.get("/readyz").json() == {"status": "ok"}
    settings.SECRET_KEY = "another" * 10
    response = client.get("/readyz")
    assert (response.status_code, response.json()) == (503, {"status": "unavailable"})
    assert "LYRA_SECRET_KEY" in caplog.text
    ada = User.objects.create_superuser("ada")
    token = f"Token {AuthToken.objects.create(ada)[1]}"
    checks = client.get("/readyz", headers={"Authorization": token}).json()["checks"]
    assert "accept_secret_key" in checks["secret_key"]["detail"]


def test_a_stale_queue_degrades(as_user, warm, workers):
    long_ago = timezone.now() - timedelta(hours=1)
    cache.set("probe:lyra", long_ago, timeout=None)
    response = as_user("rita").get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert response.json()["checks"]["queue"]["clusters"]["lyra"]["ok"] is False


def test_a_shared_cache_that_is_away_is_why_nobody_is_seen(as_user, warm, settings):
    nowhere = {"BACKEND": "lyra_site.shared_cache.SharedCache", "LOCATION": "redis://127.0.0.1:1"}
    settings.CACHES = {"default": nowhere}
    response = as_user("rita").get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert "LYRA_CACHE_URL cannot be reached" in response.json()["checks"]["queue"]["detail"]


def test_a_worker_that_trains_shows_itself_by_its_run(as_user, cast, make_version, warm, workers):
    long_ago = timezone.now() - timedelta(hours=1)
    cache.set("probe:training", long_ago, timeout=None)
    assert queue(as_user)["training"]["ok"] is False
    assert dashboard.context(cast["rita"])["silent"] == ["training"]
    run = make_version().run
    run.heartbeat_at = timezone.now()
    run.save()
    assert queue(as_user)["training"]["ok"] is True
    assert dashboard.context(cast["rita"])["silent"] == []


def test_a_run_is_no_sign_of_the_other_worker(make_version, workers):
    cache.delete("probe:lyra")
    run = make_version().run
    run.heartbeat_at = timezone.now()
    run.save()
    assert liveness.silent_workers() == ["lyra"]


@pytest.mark.parametrize(("minutes", "silent"), [(3, []), (5, ["lyra", "training"])])
def test_a_worker_is_silent_after_minutes_without_a_sign(workers, db, minutes, silent):
    now = timezone.now() + timedelta(minutes=minutes)
    assert liveness.silent_workers(now) == silent


def test_a_sign_of_life_from_the_future_is_none(as_user, warm, workers):
    """A clock was ahead when it was given: nobody can tell how long ago that was."""
    cache.set("probe:lyra", timezone.now() + timedelta(hours=1), timeout=None)
    cache.set("probe:training", timezone.now() + timedelta(seconds=20), timeout=None)
    assert liveness.silent_workers() == ["lyra"]
    found = queue(as_user)
    assert found["training"]["ok"] is True
    assert found["lyra"]["ok"] is False
    assert "future" in found["lyra"]["detail"]


def test_a_run_from_the_future_hides_no_sign_of_its_worker(make_version, workers):
    run = make_version().run
    run.heartbeat_at = timezone.now() + timedelta(days=365)
    run.save()
    assert liveness.silent_workers() == []


def test_a_disk_that_fills_degrades_with_the_number(as_user, warm, workers, settings):
    free = shutil.disk_usage(settings.LYRA_HOME).free
    settings.LYRA_MIN_FREE_MIB = free // 2**20 + 1000
    response = as_user("rita").get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert "MiB free" in response.json()["checks"]["disk"]["detail"]
    text = as_user("rita").get("/metrics").content.decode()
    (told,) = re.findall(r"^lyra_home_free_bytes (\S+)$", text, re.MULTILINE)
    assert float(told) == pytest.approx(free, rel=0.2)


@pytest.mark.parametrize("content", [None, b"no database at all, but long enough" * 100])
def test_an_unusable_database_is_not_ready_and_says_why(
    home: Path, manage, tiny: str, content: bytes | None
) -> None:
    """Not migrated, or damaged: the probe is told 503, and the log why."""
    if content:
        (home / "lyra.sqlite3").write_bytes(content)
    ask = (
        "from django.test import Client; from inference import engine;"
        "engine.warm_in_background(); engine._warming.join();"
        "print(Client(HTTP_HOST='localhost').get('/readyz').status_code)"
    )
    said = manage("shell", "--no-imports", "-c", ask, LYRA_BASE_MODEL=tiny)
    assert said.stdout.split()[-1] == "503", said.stderr
    assert ("not a database" if content else "Run manage.py migrate") in said.stderr


def queue(as_user):
    return as_user("rita").get("/readyz").json()["checks"]["queue"]["clusters"]


def test_metrics_need_a_permission_and_tell_what_was_answered(as_user, client, warm, workers):
    assert client.get("/metrics").status_code == 401
    assert as_user("alice").get("/metrics").status_code == 403
    as_user("alice").post("/api/v1/nli", {"pairs": [PAIR]}, format="json")
    response = as_user("rita").get("/metrics", HTTP_ACCEPT="application/openmetrics-text")
    assert response.status_code == 200
    text = response.content.decode()
    assert 'lyra_predictions_total{adapter="base"' in text
    assert "lyra_forward_pass_pairs_count" in text
    assert "lyra_serving_revision 0.0" in text
    assert 'lyra_training_runs{status="queued"} 0.0' in text
    assert 'lyra_queue_heartbeat_age_seconds{cluster="lyra"}' in text


def test_figures_of_several_processes_are_added_up(home: Path, manage, tiny: str) -> None:
    """Whichever process is asked tells what all of them counted, and the database's truth once."""
    token = _administrator(manage)
    with _serving(home, tiny) as (master, port):
        first, second = master.children()
        for answering, other in ((first, second), (second, first)):
            other.suspend()  # so that no other process can answer
            _get(port, "/nli", body={"pairs": [{"premise": "a", "nli_hypothesis": "b"}]})
            other.resume()
            assert answering.is_running()
        for other in (first, second):
            other.suspend()
            text = _get(port, "/metrics", token=token)
            other.resume()
            counted = re.findall(r"^lyra_predictions_total{.*} (\S+)$", text, re.MULTILINE)
            assert sum(map(float, counted)) == 2
            assert len(re.findall(r"^lyra_serving_revision", text, re.MULTILINE)) == 1
            assert "pid=" not in text


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_directory_for_figures_that_the_operator_named_is_used_and_stays(
    home: Path, manage, tiny: str, tmp_path: Path, processes: str
) -> None:
    """Another program may read it, before and after."""
    assert manage("migrate", "--verbosity=0").returncode == 0
    own = tmp_path / "figures"
    own.mkdir()
    (own / "others.txt").write_text("not ours")
    named = {"PROMETHEUS_MULTIPROC_DIR": str(own), "WEB_CONCURRENCY": processes}
    with _serving(home, tiny, **named) as (_, port):
        _get(port, "/nli", body={"pairs": [{"premise": "a", "nli_hypothesis": "b"}]})
    assert (own / "others.txt").read_text() == "not ours"
    assert list(own.glob("counter_*.db"))


def _administrator(manage) -> str:
    """A token of an administrator, in a home made for it."""
    assert manage("migrate", "--verbosity=0").returncode == 0
    make = ("createsuperuser", "--noinput", "--username=ada", "--email=ada@example.org")
    assert manage(*make, DJANGO_SUPERUSER_PASSWORD="correct horse").returncode == 0
    issued = manage("tokens", "issue", "ada", "--json")
    return json.loads(issued.stdout.splitlines()[-1])["token"]


@contextmanager
def _serving(home: Path, base: str, **environment: str) -> Iterator[tuple[psutil.Process, int]]:
    """gunicorn as we configure it, by itself of two processes, all with the model loaded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"LYRA_HOME": str(home), "PORT": str(port), "WEB_CONCURRENCY": "2"}
    settings |= {"LYRA_BASE_MODEL": base, "LYRA_COMPAT_OPEN": "1", "LYRA_TORCH_THREADS": "1"}
    settings |= environment
    master = psutil.Popen(
        [sys.executable, "-m", "gunicorn", "--config=lyra_site/gunicorn_conf.py", "lyra_site.wsgi"],
        cwd=current.BASE_DIR,
        env=os.environ | settings,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        loaded = (line for line in master.stderr if "is loaded" in line)
        processes = int(settings["WEB_CONCURRENCY"])
        assert len(list(islice(loaded, processes))) == processes, (
            "it ended before all had it loaded"
        )
        yield master, port
    finally:
        master.terminate()  # in order: what it keeps in memory goes with it
        try:
            master.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(master.pid, signal.SIGKILL)


def _get(port: int, path: str, *, token: str = "", body: dict | None = None) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=json.dumps(body).encode() if body else None,
        headers={"Content-Type": "application/json"}
        | ({"Authorization": f"Token {token}"} if token else {}),
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return answer.read().decode()


def test_a_lost_database_is_503_with_retry_after_everywhere(client, cast, warm, no_database):
    headers = {"HTTP_AUTHORIZATION": "Token " + "a" * 64}
    client.raise_request_exception = False
    answers = [
        client.get("/api/v1/adapters", **headers),
        client.post("/api/v1/nli", {"pairs": [PAIR]}, content_type="application/json", **headers),
        client.post("/nli", {"pairs": []}, content_type="application/json", **headers),
        client.get("/admin/", HTTP_COOKIE=SESSION),
        client.get("/tokens", HTTP_COOKIE=SESSION),
    ]
    for answer in answers:
        assert answer.status_code == 503, answer.request["PATH_INFO"]
        assert answer["Retry-After"] == "5"
    assert client.get("/readyz").json() == {"status": "unavailable"}
    assert client.get("/livez").status_code == 200


def test_the_open_door_also_says_503_while_the_database_is_away(
    client, settings, on_tiny, monkeypatch
):
    settings.LYRA_COMPAT_OPEN = True

    def refuse():
        raise OperationalError("database is locked")

    monkeypatch.setattr(registry, "answering", refuse)
    response = client.post("/nli", {"pairs": []}, content_type="application/json")
    assert response.status_code == 503


def test_unknown_paths_are_json_for_machines_and_pages_for_people(client, db):
    assert client.get("/api/v1/nothing").json() == {"detail": "Not found."}
    assert client.get("/nli/x").json() == {"detail": "Not found."}
    assert client.get("/nothing")["Content-Type"].startswith("text/html")
