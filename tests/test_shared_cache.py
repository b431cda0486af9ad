"""Signs of life between hosts, by a real Redis; and what happens while it is away."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.core.cache import caches
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.conf import Conf
from django_q.status import Stat

from adapters_app import tasks, training
from lyra_site import shared_cache
from tests.conftest import Manage
from tests.programs import find

SEEN = "from adapters_app import training; training.saw_probe('training')"
LOOK = "from adapters_app import training; print(training.last_probe('training') is not None)"


class Redis:
    """A Redis on a loopback port of its own, in memory only; `url` is what LYRA_CACHE_URL takes."""

    def __init__(self) -> None:
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/1"
        self.start()

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        self._process = subprocess.Popen(
            [find("redis-server"), f"--port {self.port}", "--bind 127.0.0.1", "--save", ""],
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in self._process.stdout:
            if "Ready to accept connections" in line:
                return
        pytest.fail("redis-server ended at once")

    def hang(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def redis() -> Iterator[Redis]:
    running = Redis()
    yield running
    running.stop()


@pytest.fixture
def on_redis(redis: Redis, settings) -> Iterator[Redis]:
    """This process's signs of life are in it."""
    settings.CACHES = {
        "default": {"BACKEND": "lyra_site.shared_cache.SharedCache", "LOCATION": redis.url}
    }
    yield redis
    del caches["default"]


@pytest.mark.parametrize("shared", [True, False])
def test_what_one_host_saw_another_knows_if_they_share_a_cache(
    redis: Redis, manage: Manage, tmp_path: Path, shared: bool
) -> None:
    setting = {"LYRA_CACHE_URL": redis.url} if shared else {}
    for name, program in (("one", SEEN), ("two", LOOK)):
        host = str(tmp_path / name)
        done = manage("shell", "--no-imports", "-c", program, LYRA_HOME=host, **setting)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(shared)


def test_a_redis_that_is_away_shows_nobody_and_hinders_nothing(
    on_redis: Redis, db, caplog: pytest.LogCaptureFixture
) -> None:
    training.saw_probe("lyra")
    assert training.last_probe("lyra")
    assert shared_cache.problem() == ""

    on_redis.stop()
    for _ in range(3):
        training.saw_probe("lyra")
        assert training.last_probe("lyra") is None
    assert tasks._cluster_stops() is False
    assert "cannot be reached" in shared_cache.problem()
    assert len([r for r in caplog.records if "LYRA_CACHE_URL" in r.message]) == 1

    on_redis.start()
    training.saw_probe("lyra")
    assert training.last_probe("lyra")
    assert shared_cache.problem() == ""


def test_a_redis_that_hangs_is_not_waited_for_again_and_again(
    on_redis: Redis, db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every look of a page, of a probe, and of a training."""
    monkeypatch.setattr(shared_cache.SharedCache, "_asked_from", 0.0)
    training.saw_probe("lyra")
    on_redis.hang()
    began = time.monotonic()
    for _ in range(5):
        assert training.last_probe("lyra") is None
    assert time.monotonic() - began < 3 * shared_cache.TIMEOUT_S
    assert "cannot be reached" in shared_cache.problem()

    on_redis.go_on()
    monkeypatch.setattr(shared_cache.SharedCache, "_asked_from", 0.0)  # the pause is over
    assert training.last_probe("lyra")
    assert shared_cache.problem() == ""


@pytest.mark.parametrize(("host", "stops"), [(socket.gethostname(), True), ("elsewhere", False)])
def test_a_worker_stops_with_the_cluster_of_its_own_host_only(
    on_redis: Redis, db, host: str, stops: bool
) -> None:
    """Process ids repeat between hosts that share a cache."""
    cluster = Stat(
        SimpleNamespace(
            pid=1,
            parent_pid=None,
            cluster_id="cluster",
            broker=get_broker(),
            tob=timezone.now(),
            reincarnations=0,
            status=lambda: Conf.STOPPING,
            monitor=None,
            pusher=None,
            pool=[SimpleNamespace(pid=os.getpid())],
            result_queue=SimpleNamespace(qsize=lambda: 0),
            task_queue=SimpleNamespace(qsize=lambda: 0),
        )
    )
    cluster.host = host
    cluster.save()
    assert tasks._cluster_stops() is stops


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
