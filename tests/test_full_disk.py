"""A disk that becomes full: what people are told, that nothing is half-written, and that the same
works once there is room.

Real writes fail: by the kernel's limit on the size of a process's files, which is set while it
runs. To a process that is what a quota is; tests need no disk of their own to fill.
"""

import contextlib
import http.client
import json
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import OperationalError, connection

from adapters_app import supervise, training
from corrections import full_disk
from tests.conftest import ROOT, Manage
from tests.test_recipe import QUICK
from tests.test_slow_clients import PATIENCE_S, Server, serving
from tests.verdicts import accept

pytest_plugins = ("tests.serving",)

MIB = 1024 * 1024
JSON = {"Content-Type": "application/json"}
LINES = {"Content-Type": "application/x-ndjson"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
ROW = {
    "premise": "No increase in falls was seen.",
    "hypothesis": "The drug made falls more common.",
    "predicted_label": "neutral",
    "predicted_confidence": 0.5,
    "correct_label": "refutes",
}
TOKEN = (
    "from django.contrib.auth.models import User; from knox.models import AuthToken;"
    "print(AuthToken.objects.create(User.objects.create_superuser('ada'))[1])"
)
# A command whose files may be no larger than so many bytes.
LIMITED = (
    "import resource, runpy, sys; most = int(sys.argv.pop(1));"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY));"
    "runpy.run_path('manage.py', run_name='__main__')"
)
Limited = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def limited(home: Path) -> Limited:
    """`manage`, where there is room for files of `room` bytes."""

    def run(
        *arguments: str, room: int = 100, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", LIMITED, str(room), *arguments],
            cwd=ROOT,
            env=os.environ | {"LYRA_HOME": str(home)} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


# --- The server -----------------------------------------------------------------------------------


@contextlib.contextmanager
def no_room_for(server: Server, *, more: int) -> Iterator[None]:
    """Its files may be of `more` bytes."""
    first = psutil.Process(server.pid)
    processes = [first, *first.children(recursive=True)]
    for process in processes:
        process.rlimit(resource.RLIMIT_FSIZE, (more, resource.RLIM_INFINITY))
    yield
    for process in processes:
        process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def send(
    server: Server, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of an answer, read by a client that sends all before it reads."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    with contextlib.closing(client):
        client.request("POST", path, body, headers)
        answer = client.getresponse()
        return answer.status, dict(answer.headers), answer.read().decode()


def lines(size: int) -> bytes:
    rows = (json.dumps({"id": str(n), **ROW}).encode() + b"\n" for n in range(20))
    return b"".join(rows).ljust(size, b"\n")


def form(content: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    return head + content + b"\r\n--x--\r\n"


@pytest.fixture
def server(home: Path, tiny: str) -> Iterator[Server]:
    with serving(home, tiny, {}) as started:
        yield started


def test_what_cannot_be_saved_is_503_in_words_and_goes_once_there_is_room(
    server: Server, home: Path, manage: Manage
) -> None:
    token = manage("shell", "--no-imports", "-c", TOKEN).stdout.strip()
    signed = {"Authorization": f"Token {token}"}
    importing, correction = "/api/v1/corrections/import", json.dumps(ROW).encode()
    # What the database writes finds no room; what is kept of a large file finds too little.
    small = {
        "a correction": ("/api/v1/corrections", correction, signed | JSON, 201),
        "a file": (importing, lines(3000), signed | LINES, 200),
        "a form": (importing, form(lines(3000)), signed | FORM, 200),
    }
    large = {
        "a large file": (importing, lines(30 * MIB), signed | LINES, 200),
        "a large form": (importing, form(lines(8 * MIB)), signed | FORM, 200),
    }
    for room, requests in ((100, small), (4 * MIB, large)):
        with no_room_for(server, more=room):
            for what, (path, body, headers, _) in requests.items():
                status, found, said = send(server, path, body, headers)
                assert (status, json.loads(said)) == (503, {"detail": full_disk.REFUSAL}), what
                assert found["Retry-After"] == "60", what
                assert list((home / "tmp").glob("*")) == [], what
    with no_room_for(server, more=4 * MIB):
        # A page's form, which is read before anybody knows who sends it.
        cookie = FORM | {"Cookie": "csrftoken=" + "a" * 32, "Host": "localhost"}
        page = "/admin/corrections/correction/import/"
        status, _, said = send(server, page, form(lines(8 * MIB)), cookie)
        assert status == 503
        assert "The server’s disk is full" in said
    with contextlib.closing(sqlite3.connect(home / "lyra.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM corrections_correction").fetchone() == (0,)
    for what, (path, body, headers, expected) in (small | large).items():
        status, _, said = send(server, path, body, headers)
        assert status == expected, (what, said)


@pytest.mark.django_db(transaction=True)
def test_what_a_database_says_of_a_full_disk_is_known(on_postgresql: None) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as small:
        small.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError, match="full") as full:
            small.execute("CREATE TABLE large AS SELECT zeroblob(100000)")
        with pytest.raises(sqlite3.OperationalError) as wrong:
            small.execute("SELECT nothing")
    assert full_disk.is_behind(full.value)
    assert not full_disk.is_behind(wrong.value)
    with connection.cursor() as cursor:
        with pytest.raises(OperationalError) as full_server:
            cursor.execute("DO 'BEGIN RAISE EXCEPTION USING ERRCODE = ''disk_full''; END'")
        with pytest.raises(OperationalError) as cancelled:
            cursor.execute("DO 'BEGIN RAISE EXCEPTION USING ERRCODE = ''query_canceled''; END'")
    assert full_disk.is_behind(full_server.value)
    assert not full_disk.is_behind(cancelled.value)


# --- Commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "backup {out}",
        "export_corrections {out}",
        "predict {file} --out {out}",
        "import_corrections {file}",
        "tokens issue ada",
        "migrate",
        "collectstatic --no-input",
    ],
)
def test_a_command_says_it_in_a_sentence_and_leaves_nothing(
    command: str, limited: Limited, manage: Manage, tmp_path: Path, tiny: str
) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_bytes(lines(0))
    assert manage("migrate", "-v0").returncode == 0
    assert manage("shell", "--no-imports", "-c", TOKEN).returncode == 0
    if command.startswith("export"):
        assert manage("import_corrections", str(file)).returncode == 0
    before = {*tmp_path.iterdir()}
    words = command.format(file=file, out=out).split()

    refused = limited(*words, LYRA_BASE_MODEL=tiny, LYRA_ENGINE="torch")

    assert refused.returncode == 1, refused.stderr
    assert "Traceback" not in refused.stderr
    (said,) = [line for line in refused.stderr.splitlines() if "no room" in line]
    assert said.endswith(("then run this again.", "then back up again."))
    assert {*tmp_path.iterdir()} == before
    again = manage(*words, LYRA_BASE_MODEL=tiny, LYRA_ENGINE="torch")
    assert again.returncode == 0, again.stderr


# --- Trainings ------------------------------------------------------------------------------------


def test_a_training_says_it_and_can_be_requested_again(
    on_postgresql: None, postgresql_url: str, limited: Limited, home: Path, tiny: str, settings
) -> None:
    settings.LYRA_BASE_MODEL = tiny
    accept()
    tina = User.objects.create_user("tina")
    run = training.request(by=tina, config=QUICK)

    # Enough for its row of output, too little for the frozen verdicts.
    done = limited(
        "run_training",
        str(run.pk),
        room=1000,
        DATABASE_URL=postgresql_url,
        LYRA_BASE_MODEL=tiny,
        LYRA_MIN_FREE_MIB="1",
    )

    run.refresh_from_db()
    assert (run.status, run.error) == ("failed", supervise.DISK_FULL)
    assert done.returncode == 1
    assert supervise.DISK_FULL in done.stderr
    assert list((home / "tmp").iterdir()) == []
    assert not any(path.is_file() for path in (home / "artifacts").rglob("*"))
    assert training.request(by=tina, config=QUICK).status == "queued"


def test_a_cache_that_cannot_be_written_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A training looks there whether to stop, and keeps answers there that took minutes."""
    cache.clear()
    cache.set("known", "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        for _ in range(2):
            cache.set("known", "meanwhile")
            training.saw_probe("lyra")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert cache.get("known") == "before"
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1
    cache.set("known", "after")
    assert cache.get("known") == "after"
