"""Nobody restores a home that is in use, and nobody uses one that is being restored."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import ROOT, Manage
from tests.tiny import tiny_base

COUNT = """
from django.contrib.auth.models import User
print("counted", User.objects.count(), flush=True)
input()
"""
MANAGE = (sys.executable, "manage.py")
# Each says so when it is at work, and goes on until it is killed.
AT_WORK = {
    "gunicorn": (
        (sys.executable, "-m", "gunicorn", "lyra_site.wsgi", "--bind=127.0.0.1:0"),
        "is loaded",  # its base model, after everything else
    ),
    "qcluster": ((*MANAGE, "qcluster"), "running"),
    "shell": (
        (
            *MANAGE,
            "shell",
            "--no-imports",
            "-c",
            COUNT,
        ),
        "counted",
    ),
}
ALONE = """
import django; django.setup()
from lyra_site import home
with home.alone():
    print("alone", flush=True)
    input()
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an empty database, to copy."""
    path = tmp_path_factory.mktemp("migrated")
    subprocess.run(
        [*MANAGE, "migrate", "--verbosity=0"],
        cwd=ROOT,
        env=os.environ | {"LYRA_HOME": str(path)},
        check=True,
    )
    return path


@pytest.fixture
def filled(migrated: Path, home: Path) -> Path:
    return shutil.copytree(migrated, home, dirs_exist_ok=True)


@pytest.fixture
def start(home: Path, base: str) -> Iterator[Start]:
    """Start a process in `home` and wait until it has printed `sign`; all are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def do(*command: str, sign: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"LYRA_HOME": str(home), "LYRA_BASE_MODEL": base},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        printed = []
        for line in process.stdout:
            printed.append(line)
            if sign in line:
                return process
        pytest.fail(f"it ended without saying {sign!r}:\n{''.join(printed)}")

    yield do
    for process in started:
        kill_all(process)


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the process and what it forked; returns when all of it is gone."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    if not process.stdout.closed:
        process.stdout.read()  # until the last of them has closed it
    process.wait()


@pytest.mark.parametrize("what", AT_WORK)
def test_what_is_in_use_is_not_restored_until_the_last_user_is_dead(
    what: str, filled: Path, manage: Manage, start: Start, tmp_path: Path
) -> None:
    backup = tmp_path / "backup.tar"
    assert manage("backup", str(backup)).returncode == 0
    command, sign = AT_WORK[what]
    process = start(*command, sign=sign)
    refused = manage("restore", str(backup), "--force")
    assert refused.returncode == 1
    assert "stop this first" in refused.stderr
    assert what in refused.stderr
    assert "Traceback" not in refused.stderr

    kill_all(process)
    # What a web process says of itself, which it may have done by now, is believed for 90 seconds.
    with closing(sqlite3.connect(filled / "lyra.sqlite3", isolation_level=None)) as database:
        database.execute("UPDATE adapters_app_servingprocess SET seen_at = '2026-01-01 00:00:00'")
    done = manage("restore", str(backup), "--force")
    assert done.returncode == 0, done.stderr


def test_a_new_cluster_removes_what_a_killed_one_left(filled: Path, start: Start) -> None:
    left = filled / "tmp" / "half a version"
    left.mkdir(parents=True)
    command, sign = AT_WORK["qcluster"]
    start(*command, sign=sign)
    assert not left.exists()


def test_a_home_that_is_being_restored_is_not_used(
    filled: Path, manage: Manage, start: Start
) -> None:
    restoring = start(sys.executable, "-c", ALONE, sign="alone")
    command, _ = AT_WORK["gunicorn"]
    server = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"LYRA_HOME": str(filled)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert server.returncode != 0
    assert "just being restored" in server.stderr
    for arguments in (["adapters"], ["qcluster"], ["restore", "x.tar"], ["run"]):
        refused = manage(*arguments)
        assert refused.returncode == 1
        assert "restored" in refused.stderr or "already" in refused.stderr
        assert "Traceback" not in refused.stderr

    restoring.communicate("\n")
    assert manage("adapters").returncode == 0


def test_an_idle_fork_keeps_the_home_in_use_when_its_parent_is_dead(
    filled: Path, manage: Manage, start: Start, tmp_path: Path
) -> None:
    """A worker that survives its cluster is still a worker."""
    backup = tmp_path / "backup.tar"
    assert manage("backup", str(backup)).returncode == 0
    program = (
        "import os, signal, django; django.setup()\n"
        "from lyra_site import home\n"
        "home.use()\n"
        "if os.fork(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "print('orphan', flush=True); signal.pause()\n"
    )
    parent = start(sys.executable, "-c", program, sign="orphan")
    parent.wait()
    assert manage("restore", str(backup), "--force").returncode == 1
    os.killpg(parent.pid, signal.SIGKILL)
    parent.stdout.read()
    assert manage("restore", str(backup), "--force").returncode == 0
