"""Two web servers on one database: what one promotes, the other answers with at once; and what
they say of themselves, and to more clients than they can serve."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.conf import settings as current
from django.db import connection
from knox.models import AuthToken

from adapters_app import liveness, storage
from adapters_app.nli.base_model import load_base
from tests.conftest import ROOT
from tests.tiny import tiny_base
from tests.versions import PAIR, register, write_adapter

pytest_plugins = ("tests.serving",)
pytestmark = pytest.mark.django_db(transaction=True)

CONFIG = "lyra_site/gunicorn_conf.py"
START_S = 120.0
STOP_S = 30.0
POLL_S = 0.2


@dataclass
class Host:
    """A gunicorn of its own, in a home of its own; it shares the database and the artifacts."""

    process: subprocess.Popen[bytes]
    port: int
    token: str
    log: Path

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v1/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Token {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)

    def who_answers(self) -> tuple[str, str, int]:
        """(adapter, digest, revision) of one answer."""
        answer = self.post("nli", pairs=[PAIR])
        return answer["adapter"], answer["digest"], answer["revision"]

    def wait_until_it_answers(self) -> None:
        deadline, pause = time.monotonic() + START_S, threading.Event()
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.who_answers()
            except urllib.error.HTTPError as error:
                pytest.fail(f"{error}: {error.read().decode()}\n{self.log.read_text()[-3000:]}")
            except OSError:  # it does not listen yet
                pause.wait(POLL_S)
            else:
                return
        pytest.fail(f"not within {START_S:.0f} s: the server answers\n{self.log.read_text()}")


def test_both_servers_answer_with_what_either_promotes(hosts, make_version, tiny_model):
    first, second = hosts
    version = make_version()
    base = ("base", tiny_model.fingerprint)
    assert first.who_answers() == second.who_answers() == (*base, 0)
    first.post("adapters/v1/promote", reason="measured better", expected_revision=0)
    assert second.who_answers() == ("v1", version.artifact_digest, 1)
    assert first.who_answers() == ("v1", version.artifact_digest, 1)
    second.post("adapters/rollback", reason="complaints", expected_revision=1)
    assert first.who_answers() == (*base, 2)


def test_servers_tell_the_releaser_that_a_version_belongs_to_another_base(
    hosts, cast, settings, tmp_path, tiny_model
):
    """The version was trained where the base had the same name, but other files."""
    until(lambda: liveness.servers().count() == 2, what="both servers say what they have loaded")
    other = replace(load_base(tiny_base(tmp_path / "other", seed=1)), name=settings.LYRA_BASE_MODEL)
    digest = storage.put(tmp_path / write_adapter(tmp_path, other, seed=1))
    register(cast["tom"], 1, digest, other)
    with pytest.raises(urllib.error.HTTPError) as refused:
        hosts[0].post("adapters/v1/promote", reason="measured better", expected_revision=0)
    detail = json.load(refused.value)["detail"]
    assert refused.value.code == 409
    assert other.fingerprint[:12] in detail
    assert tiny_model.fingerprint[:12] in detail
    hosts[1].process.terminate()
    until(lambda: liveness.servers().count() == 1, what="a server that ends takes its word back")


def test_a_server_with_too_much_to_do_says_when_to_come_back_and_recovers(start):
    """Each client has as many pairs as one request may hold; two such requests may wait."""
    server, refused = start("one"), threading.Event()
    server.wait_until_it_answers()
    full = [PAIR | {"premise": "rain " * (current.LYRA_MAX_CHARS // 5)}] * current.LYRA_MAX_PAIRS

    def ask_again_and_again(_: int) -> set[tuple[int, str | None]]:
        seen = set()
        while not refused.is_set():
            try:
                server.post("nli", pairs=full)
            except urllib.error.HTTPError as error:
                seen.add((error.code, error.headers["Retry-After"]))
                refused.set()
        return seen

    clients = 8
    with ThreadPoolExecutor(clients) as pool:
        found = pool.map(ask_again_and_again, range(clients))
    assert set().union(*found) == {(503, "1")}
    assert server.who_answers()[0] == "base"


def test_whoever_finds_all_seats_taken_is_told_when_to_come_back(start):
    """By a thread that no prediction gets; the connection can be used again."""
    server = start("one", LYRA_THREADS="2", LYRA_SPARE_THREADS="1")
    server.wait_until_it_answers()
    full = [PAIR | {"premise": "rain " * (current.LYRA_MAX_CHARS // 5)}] * current.LYRA_MAX_PAIRS
    body = json.dumps({"pairs": [PAIR]}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Token {server.token}"}
    refused, other = threading.Event(), HTTPConnection("127.0.0.1", server.port, timeout=60)

    def take_the_seat_again_and_again() -> None:
        while not refused.is_set():
            with suppress(urllib.error.HTTPError):  # the other was first
                server.post("nli", pairs=full)

    def told() -> HTTPResponse:
        other.request("POST", "/api/v1/nli", body, headers)
        answer = other.getresponse()
        assert json.load(answer)
        return answer

    with closing(other), ThreadPoolExecutor(1) as pool:
        seated = pool.submit(take_the_seat_again_and_again)
        try:
            until(lambda: told().getheader("Retry-After") == "1", what="the one seat is taken")
        finally:
            refused.set()
        other.request("GET", "/livez")
        assert other.getresponse().read()
        seated.result()
        until(lambda: told().status == 200, what="the seat is free")


def test_a_server_keeps_its_connection_to_the_database(start):
    server = start("one")
    server.wait_until_it_answers()
    (worker,) = psutil.Process(server.process.pid).children()
    assert connection.settings_dict["NAME"] in {file.path for file in worker.open_files()}


def until(holds: Callable[[], bool], *, what: str) -> None:
    deadline, pause = time.monotonic() + STOP_S, threading.Event()
    while time.monotonic() < deadline:
        if holds():
            return
        pause.wait(POLL_S)
    pytest.fail(f"not within {STOP_S:.0f} s: {what}")


@pytest.fixture
def start(on_tiny: Path, settings, cast) -> Iterator[Callable[..., Host]]:
    """Start a server in a home of that name, for a releaser; keywords are settings of its own."""
    environment = os.environ | {
        "DATABASE_URL": f"sqlite:///{connection.settings_dict['NAME']}",
        "LYRA_ARTIFACTS": settings.STORAGES["artifacts"]["OPTIONS"]["location"],
        "LYRA_BASE_MODEL": settings.LYRA_BASE_MODEL,
        "LYRA_DEVICE": "cpu",
        "LYRA_TORCH_THREADS": "1",
    }
    _, token = AuthToken.objects.create(cast["rita"])
    with ExitStack() as stack:
        yield lambda name, **own: stack.enter_context(
            _started(on_tiny / name, environment | own, token)
        )


@pytest.fixture
def hosts(start) -> list[Host]:
    """Two servers that answer."""
    started = [start("one"), start("two")]
    for host in started:
        host.wait_until_it_answers()
    return started


@contextmanager
def _started(home: Path, environment: dict[str, str], token: str) -> Iterator[Host]:
    home.mkdir()
    port, log = _free_port(), home / "gunicorn.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", f"--config={CONFIG}", "lyra_site.wsgi"],
            cwd=ROOT,
            env=environment | {"LYRA_HOME": str(home), "PORT": str(port)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Host(process, port, token, log)
    finally:
        process.terminate()
        process.wait(timeout=STOP_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
