"""Two web servers on one database: what one promotes, the other answers with at once."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from knox.models import AuthToken

from tests.conftest import ROOT
from tests.versions import PAIR

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


@pytest.fixture
def hosts(on_tiny: Path, settings, cast) -> Iterator[list[Host]]:
    """Two servers that answer, for a releaser."""
    environment = os.environ | {
        "DATABASE_URL": f"sqlite:///{connection.settings_dict['NAME']}",
        "LYRA_ARTIFACTS": settings.STORAGES["artifacts"]["OPTIONS"]["location"],
        "LYRA_BASE_MODEL": settings.LYRA_BASE_MODEL,
        "LYRA_DEVICE": "cpu",
        "LYRA_TORCH_THREADS": "1",
    }
    _, token = AuthToken.objects.create(cast["rita"])
    with ExitStack() as stack:
        started = [
            stack.enter_context(_started(on_tiny / name, environment, token))
            for name in ("one", "two")
        ]
        for host in started:
            host.wait_until_it_answers()
        yield started


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
