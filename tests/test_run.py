"""`make run`, the real thing: what is killed comes back, and what is stopped is gone."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, Manage, demo_is_made
from tests.tiny import tiny_base

# Seconds until a test gives up; generous, because two cores may be busy with other tests.
PATIENCE_S = 120.0
POLL_S = 0.2
PROGRAMS = ("gunicorn", "worker", "training")
CLUSTER = 4  # processes below a qcluster's first one, at least
# With this interpreter's environment as installed.
MAKE_RUN = ("make", f"--assume-old={sys.prefix}/.installed", "run", f"VENV={sys.prefix}")


@dataclass
class Server:
    started: subprocess.Popen[str]
    url: str
    home: Path
    log: Path

    def answers(self) -> bool:
        """Whether the process lives and predicts."""
        return self._get("/livez") == b"ok" and self.nli().get("ok") is True

    def nli(self) -> dict:
        pair = {"premise": "water is safe", "nli_hypothesis": "water is not safe"}
        body = json.dumps({"pairs": [pair]}).encode()
        return json.loads(self._get("/nli", body) or b"{}")

    def _get(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(  # noqa: S310  our own server
            self.url + path, data=body, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return answer.read()
        except (OSError, urllib.error.URLError):
            return b""

    def processes(self) -> list[psutil.Process]:
        """Every process of this server, whoever its parent is now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("LYRA_HOME") == str(self.home):
                    found.append(process)
        return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]

    def children(self) -> dict[str, psutil.Process]:
        """The supervisor's children by program."""
        named = {}
        for child in psutil.Process(self.supervisor()).children():
            with contextlib.suppress(psutil.Error):
                named[_program(child)] = child
        return named

    def supervisorctl(self, *words: str) -> str:
        """What it prints; its exit status speaks of programs that do not run, too."""
        configuration = ROOT / "lyra_site" / "supervisord.conf"
        return subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(configuration), *words],
            env=os.environ | {"LYRA_HOME": str(self.home)},
            capture_output=True,
            text=True,
            check=False,
        ).stdout

    def supervisor(self) -> int:
        return int((self.home / "supervisord.pid").read_text())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, base: str) -> Iterator[Server]:
    """A server with the demo's data that answers."""
    with _started(tmp_path_factory.mktemp("run"), base) as started:
        _until(lambda: demo_is_made(started.home), "the demo is there", started)
        yield started


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_killed_child_comes_back(server: Server, program: str) -> None:
    killed = server.children()[program]
    killed.kill()
    _until(lambda: _restarted(server, program, killed), f"{program} is restarted", server)
    _until(server.answers, "/livez and /nli answer", server)


def test_the_web_servers_worker_comes_back(server: Server) -> None:
    (killed,) = server.children()["gunicorn"].children()
    killed.kill()
    _until(lambda: not killed.is_running(), "the killed process is gone", server)
    _until(server.answers, "/livez and /nli answer", server)


def test_a_queue_survives_the_death_of_any_of_its_processes(server: Server) -> None:
    """Sentinel, worker, monitor, pusher: whichever is killed, a whole cluster takes over."""
    program = "training"

    def cluster() -> int:
        return len(server.children()[program].children(recursive=True))

    _until(lambda: cluster() >= CLUSTER, "the cluster is whole", server)
    whole = cluster()
    for position in range(whole):
        before = server.children()[program]
        before.children(recursive=True)[position].kill()
        _until(lambda b=before: _restarted(server, program, b), f"{program} is restarted", server)
        _until(
            lambda: cluster() == whole,
            "the cluster is whole again",
            server,
        )
    stray = [p for p in server.processes() if p.ppid() == 1 and p.pid != server.supervisor()]
    assert stray == []


def test_accounts_and_what_to_click_are_printed(server: Server) -> None:
    printed = server.log.read_text()
    for line in (server.home / "demo_accounts").read_text().splitlines():
        name, password = line.split()
        assert f"{name}" in printed
        assert password in printed
    assert f"{server.url}/admin/" in printed


def test_without_the_demo_nobody_has_an_account(base: str, tmp_path: Path) -> None:
    """And `run` may be started from any directory."""
    command = [sys.executable, str(ROOT / "manage.py"), "run"]
    with _started(tmp_path / "home", base, command, cwd=tmp_path) as server:
        programs = server.supervisorctl("status").splitlines()
        assert {line.split()[0]: line.split()[1] for line in programs} == {
            "web": "RUNNING",
            "worker": "RUNNING",
            "training": "RUNNING",
            "demo": "STOPPED",
        }
        assert not (server.home / "demo_accounts").exists()


def test_a_second_server_in_the_same_home_is_refused(server: Server, base: str) -> None:
    second = subprocess.run(
        [sys.executable, "manage.py", "run"],
        cwd=ROOT,
        env=_environment(server.home, _free_port(), base),
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert "already" in second.stderr
    assert str(server.supervisor()) in second.stderr


def test_nothing_is_restored_beside_a_running_server(server: Server, base: str) -> None:
    refused = subprocess.run(
        [sys.executable, "manage.py", "restore", "--force", "backup.tar"],
        cwd=ROOT,
        env=_environment(server.home, _free_port(), base),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert str(server.supervisor()) in refused.stderr


def test_a_port_in_use_is_refused(server: Server, base: str, tmp_path: Path) -> None:
    port = int(server.url.rpartition(":")[2])
    second = subprocess.run(
        [sys.executable, "manage.py", "run"],
        cwd=ROOT,
        env=_environment(tmp_path, port, base),
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert f"PORT={port + 1}" in second.stderr


@pytest.mark.parametrize("host", ["nosuch.invalid", "192.0.2.1"])
def test_an_address_that_is_not_ours_is_refused_with_the_right_advice(
    manage: Manage, host: str
) -> None:
    refused = manage("run", LYRA_HOST=host, PORT=str(_free_port()))
    assert refused.returncode == 1
    assert "LYRA_HOST must be an address of this machine" in refused.stderr
    assert "another port" not in refused.stderr


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(lambda make: os.kill(make.pid, signal.SIGTERM), id="SIGTERM to make"),
        pytest.param(lambda make: os.killpg(make.pid, signal.SIGINT), id="Ctrl-C in a terminal"),
        pytest.param(
            lambda make: psutil.Process(make.pid).children()[0].kill(), id="kill -9 of supervisord"
        ),
    ],
)
def test_a_stopped_server_leaves_no_process(
    stop: Callable[[subprocess.Popen[str]], None], base: str, tmp_path: Path
) -> None:
    with _started(tmp_path, base) as server:
        assert len(server.processes()) > len(PROGRAMS)
        stop(server.started)
        server.started.wait(timeout=PATIENCE_S)
        _until(lambda: server.processes() == [], "every process is gone", server)


@contextlib.contextmanager
def _started(
    home: Path, base: str, command: Sequence[str] = MAKE_RUN, *, cwd: Path = ROOT
) -> Iterator[Server]:
    """What `command` starts in `home`, on a free port."""
    port = _free_port()
    home.mkdir(exist_ok=True)
    log = home / "run.log"
    with log.open("w") as output:
        started = subprocess.Popen(
            command,
            cwd=cwd,
            env=_environment(home, port, base) | {"LYRA_COMPAT_OPEN": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    server = Server(started, f"http://127.0.0.1:{port}", home, log)
    try:
        _until(lambda: started.poll() is not None or server.answers(), "it answers", server)
        assert started.poll() is None, log.read_text()
        _until(lambda: set(server.children()) >= set(PROGRAMS), "all children run", server)
        yield server
    finally:
        for process in server.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        started.wait(timeout=PATIENCE_S)


def _environment(home: Path, port: int, base: str) -> dict[str, str]:
    return os.environ | {"LYRA_HOME": str(home), "PORT": str(port), "LYRA_BASE_MODEL": base}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _program(process: psutil.Process) -> str:
    if "gunicorn" in process.cmdline():
        return "gunicorn"
    return process.environ().get("Q_CLUSTER_NAME", "worker")


def _restarted(server: Server, program: str, killed: psutil.Process) -> bool:
    now = server.children().get(program)
    return now is not None and now != killed and not killed.is_running()


def _until(condition: Callable[[], bool], what: str, server: Server) -> None:
    """Wait until `condition` holds; fail, showing what the server printed, after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            logs = "".join(
                f"\n--- {path.name}\n{path.read_text()[-3000:]}"
                for path in [server.log, *sorted((server.home / "logs").glob("*.log"))]
            )
            pytest.fail(f"not within {PATIENCE_S:.0f} s: {what}{logs}")
        pause.wait(POLL_S)
