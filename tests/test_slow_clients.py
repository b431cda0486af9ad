"""Clients that send half a request or do not take an answer, and a database that hangs: gunicorn's
threads are not held for ever. Over real sockets, each server a process of its own."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from lyra_site import slow_clients
from tests import postgresql
from tests.conftest import ROOT
from tests.tiny import tiny_base

THREADS = 4
READ_TIMEOUT_S = 2
DATABASE_TIMEOUT_S = 2
# For what takes no time at all on an idle machine.
PATIENCE_S = 30
BODY = json.dumps({"pairs": [{"premise": "a", "nli_hypothesis": "b"}]}).encode()


@dataclass
class Server:
    """A gunicorn as we configure it, whose model is loaded."""

    port: int
    pid: int  # of its first process

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def ask(self, path: str, body: bytes | None = None) -> int:
        """The status of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(
                "POST" if body else "GET", path, body, {"Content-Type": "application/json"}
            )
            return connection.getresponse().status


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, base: str) -> Iterator[Server]:
    """One of THREADS threads, which waits READ_TIMEOUT_S for clients."""
    with serving(tmp_path_factory.mktemp("home"), base, {}) as started:
        yield started


@pytest.fixture
def serve(home: Path, base: str) -> Iterator[Callable[..., Server]]:
    """Migrate and start a server in `home`; keywords are settings of its own."""
    with contextlib.ExitStack() as stack:
        yield lambda **own: stack.enter_context(serving(home, base, own))


@contextlib.contextmanager
def serving(home: Path, base: str, own: dict[str, str]) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"LYRA_HOME": str(home), "PORT": str(port), "LYRA_BASE_MODEL": base}
    environment |= {"LYRA_THREADS": str(THREADS), "LYRA_COMPAT_OPEN": "1"}
    environment |= {"LYRA_READ_TIMEOUT_S": str(READ_TIMEOUT_S), "LYRA_TORCH_THREADS": "1"} | own
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=environment, check=True
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--config=lyra_site/gunicorn_conf.py", "lyra_site.wsgi"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert any("is loaded" in line for line in process.stderr), "it ended before it served"
        yield Server(port, process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        sys.stderr.write(process.communicate()[1])  # shown where a test fails


HALF_A_HEADER = b"GET /livez HTTP/1.1\r\nHost: "
HALF_A_BODY = (
    b"POST /nli HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY[:5])
)


@pytest.mark.parametrize("half", [HALF_A_HEADER, HALF_A_BODY], ids=["header", "body"])
def test_half_requests_hold_no_thread_for_longer_than_is_set(server: Server, half: bytes) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(THREADS + 2):
            stack.enter_context(server.connect()).sendall(half)
        assert server.ask("/livez") == 200
        assert server.ask("/nli", BODY) == 200


def test_a_client_that_drips_is_cut_off_as_well(server: Server) -> None:
    """A byte now and then is no progress: what counts is the whole time that is waited."""
    with server.connect() as client:
        client.sendall(HALF_A_HEADER)
        began = time.monotonic()
        client.settimeout(READ_TIMEOUT_S / 5)
        while time.monotonic() - began < PATIENCE_S:
            try:
                client.sendall(b"x")
                if not client.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - began < 4 * READ_TIMEOUT_S


LARGE = 32 * 1024 * 1024  # bytes: more than the kernel takes for a client that reads nothing


@pytest.fixture(scope="module")
def file_server(tmp_path_factory: pytest.TempPathFactory, base: str) -> Iterator[Server]:
    """As `server`, with a file of LARGE bytes among those that pages need."""
    home = tmp_path_factory.mktemp("home")
    (home / "static").mkdir()
    (home / "static" / "large.txt").write_bytes(b"x" * LARGE)
    with serving(home, base, {}) as started:
        yield started


def ask_for_a_file(server: Server) -> socket.socket:
    """By a client that has room for little of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(PATIENCE_S)
    client.connect(("127.0.0.1", server.port))
    client.sendall(b"GET /static/large.txt HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client


def test_clients_that_take_nothing_hold_no_thread_for_longer_than_is_set(file_server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(THREADS + 2):
            stack.enter_context(ask_for_a_file(file_server))
        assert file_server.ask("/livez") == 200


def test_a_client_that_takes_its_answer_in_drips_is_cut_off(file_server) -> None:
    """Each drip lets the server send a little more, which is no progress either."""
    with ask_for_a_file(file_server) as client:
        began = time.monotonic()
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(512):
                taken += len(data)
                assert time.monotonic() - began < 6 * READ_TIMEOUT_S
                time.sleep(0.1)  # the client's pace
        assert taken < LARGE / 100


def test_who_takes_a_large_answer_at_once_gets_it_whole(file_server) -> None:
    with file_server.connect() as client:
        client.sendall(
            b"GET /static/large.txt HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        header, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert header.startswith(b"HTTP/1.1 200 ")
    assert len(body) == LARGE


@pytest.mark.parametrize(("pace", "is_cut_off"), [(2, False), (0.3, True)], ids=["fair", "slow"])
def test_what_counts_is_what_the_client_took(
    monkeypatch: pytest.MonkeyPatch, pace: float, is_cut_off: bool
) -> None:
    """At `pace` times the least; the kernel asks for more so seldom that patience would be over."""
    monkeypatch.setattr(slow_clients, "BYTES_PER_SECOND", 2 * 1024 * 1024)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=PATIENCE_S)
        sock = slow_clients.PatientSocket.taking_over(listener.accept()[0], 0.3)

    def take() -> None:
        began, taken = time.monotonic(), 0
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(64 * 1024):
                taken += len(data)
                due = began + taken / (pace * slow_clients.BYTES_PER_SECOND)
                time.sleep(max(0.0, due - time.monotonic()))

    reader = threading.Thread(target=take)
    reader.start()
    with client, sock:
        sock.expect_answer()
        with pytest.raises(BrokenPipeError) if is_cut_off else contextlib.nullcontext():
            sock.sendall(b"x" * 16 * 1024 * 1024)
        sock.close()
        reader.join(PATIENCE_S)
        assert not reader.is_alive()


def test_predictions_are_answered_while_others_send_slowly(serve) -> None:
    """A seat is for a request that is there: one that is half there keeps no other from it."""
    server = serve(LYRA_SPARE_THREADS=str(THREADS - 1), LYRA_READ_TIMEOUT_S="60")
    with server.connect() as slow:
        slow.sendall(HALF_A_BODY)
        assert server.ask("/livez") == 200
        assert [server.ask("/nli", BODY) for _ in range(3)] == [200] * 3
        slow.sendall(BODY[5:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_stops_halfway_is_told_so(server: Server) -> None:
    with server.connect() as slow:
        slow.sendall(HALF_A_BODY)
        answer = slow.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"took too long" in answer


def test_a_large_body_may_take_longer(server: Server) -> None:
    """What is on its way at a fair pace is not cut off."""
    body = BODY + b" " * 400_000
    with server.connect() as client:
        client.sendall(HALF_A_BODY.split(b"Content-Length")[0])
        client.sendall(b"Content-Length: %d\r\n\r\n" % len(body))
        began, piece = time.monotonic(), 40_000
        for start in range(0, len(body), piece):
            client.sendall(body[start : start + piece])
            with contextlib.suppress(TimeoutError):
                client.settimeout(READ_TIMEOUT_S / 4)
                if start + piece < len(body):
                    assert client.recv(1) == b"not yet"
        assert time.monotonic() - began > READ_TIMEOUT_S
        client.settimeout(PATIENCE_S)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_who_sends_too_large_a_file_reads_why(server: Server) -> None:
    """The connection is not closed on a client that is still sending."""
    size, piece = 70 * 1024 * 1024, b" " * 1024 * 1024
    with server.connect() as client:
        client.sendall(
            b"POST /api/v1/corrections/import HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: text/csv\r\nContent-Length: %d\r\n\r\n" % size
        )
        for _ in range(size // len(piece)):
            client.sendall(piece)
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"at most 67108864 are accepted" in answer


@pytest.fixture
def own_postgresql() -> Iterator[postgresql.Server]:
    """A server that no other test uses, to be stopped and continued."""
    with postgresql.running_server() as server:
        try:
            yield server
        finally:
            _signal(server, signal.SIGCONT)


def _postmaster(server: postgresql.Server) -> int:
    return int((server.directory / "data/postmaster.pid").read_text().split()[0])


def _signal(server: postgresql.Server, number: signal.Signals) -> None:
    postmaster = psutil.Process(_postmaster(server))
    for process in (postmaster, *postmaster.children()):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def test_a_database_that_hangs_is_503_and_answers_again_when_it_does(serve, own_postgresql) -> None:
    url = own_postgresql.create("hangs")
    server = serve(DATABASE_URL=url, LYRA_DATABASE_TIMEOUT_S=str(DATABASE_TIMEOUT_S))
    assert server.ask("/nli", BODY) == 200
    _signal(own_postgresql, signal.SIGSTOP)
    for path, body in (("/nli", BODY), ("/readyz", None)):
        began = time.monotonic()
        assert server.ask(path, body) == 503, path
        assert time.monotonic() - began < 4 * DATABASE_TIMEOUT_S + 2
    assert server.ask("/livez") == 200
    _signal(own_postgresql, signal.SIGCONT)
    assert server.ask("/nli", BODY) == 200


HANG = """
import os, signal, time
from django.db import connection
from lyra_site import database, health
database.limit_waiting()
cursor = connection.cursor()
cursor.execute("SELECT pg_backend_pid()")
for process in (cursor.fetchone()[0], {postmaster}):
    os.kill(process, signal.SIGSTOP)
connection.close_if_unusable_or_obsolete()  # as before every request
began = time.monotonic()
found = health._database()
print(found["detail"], time.monotonic() - began, sep="|")
"""


def test_a_database_that_hangs_is_waited_for_once(manage, own_postgresql) -> None:
    """Not a second time for a new connection, nor for what is wrong: those would hang as well."""
    patience = 4
    said = manage(
        "shell",
        "--no-imports",
        "-c",
        HANG.format(postmaster=_postmaster(own_postgresql)),
        DATABASE_URL=own_postgresql.url("postgres"),
        LYRA_DATABASE_TIMEOUT_S=str(patience),
    )
    reason, waited = said.stdout.split("|")
    assert "did not answer" in reason, said.stderr
    assert patience < float(waited) < 2 * patience


@pytest.mark.parametrize(
    ("query", "connect", "limit"),
    [("", 10, "10s"), ("?connect_timeout=3&options=-c%20statement_timeout%3D5s", 3, "5s")],
    ids=["default", "what the URL says"],
)
def test_web_processes_limit_statements_and_commands_do_not(
    manage, postgresql_url: str, query: str, connect: int, limit: str
) -> None:
    show = (
        "from django.db import connection, connections;"
        "from lyra_site import database; {};"
        "cursor = connection.cursor(); cursor.execute('SHOW statement_timeout');"
        "print(cursor.fetchone()[0], connection.settings_dict['OPTIONS']['connect_timeout'])"
    )
    for before, expected in (
        ("database.limit_waiting()", limit),
        ("pass", limit if query else "0"),
    ):
        said = manage(
            "shell", "--no-imports", "-c", show.format(before), DATABASE_URL=postgresql_url + query
        )
        assert said.stdout.split() == [expected, str(connect)], said.stderr
