"""Scratch directories live as long as whoever works in them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters_app import scratch
from tests.conftest import ROOT

WORK = """
import os, sys, django; django.setup()
from adapters_app import scratch
with scratch.directory() as directory:
    (directory / "half").write_text("written")
    if sys.argv[1] == "fork" and os.fork():
        os._exit(0)
    print(directory, flush=True)
    input()
"""

KEEP = """
import django; django.setup()
from adapters_app import scratch; print(scratch.keep_in_memory())
"""


@pytest.fixture(autouse=True)
def place(settings, tmp_path: Path) -> Path:
    settings.LYRA_HOME = tmp_path
    return tmp_path / "tmp"


@pytest.fixture(params=["itself", "fork"])
def worker(request, place: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that works in a scratch directory, or the fork of one that has ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, request.param],
        cwd=ROOT,
        env=os.environ | {"LYRA_HOME": str(place.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process, Path(process.stdout.readline().strip())
    process.communicate()


def test_what_the_dead_left_is_removed_and_nothing_else(worker) -> None:
    process, directory = worker
    with scratch.directory() as ours:
        assert scratch.sweep() == 0
        assert directory.is_dir()
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.read()
        process.wait()
        assert scratch.sweep() == 1
        assert not directory.exists()
        assert ours.is_dir()


def test_a_directory_ends_with_its_block(place: Path) -> None:
    with scratch.directory() as directory:
        assert directory.stat().st_mode & 0o777 == 0o700
    assert list(place.iterdir()) == []


def test_a_kept_directory_is_in_memory_and_not_swept_while_its_process_lives(
    settings, tmp_path: Path
) -> None:
    """In memory: a full disk would kill who has mapped a file there. Other homes leave it alone."""
    kept = scratch.keep_in_memory()
    assert kept.parent == scratch.MEMORY
    assert kept.stat().st_mode & 0o777 == 0o700
    assert scratch.sweep() == 0
    assert kept.is_dir()
    settings.LYRA_HOME = tmp_path / "other"
    assert scratch.sweep() == 0
    kept.rmdir()


def test_what_a_killed_process_kept_in_memory_is_swept(place: Path) -> None:
    keeper = subprocess.run(
        [
            sys.executable,
            "-c",
            KEEP,
        ],
        cwd=ROOT,
        env=os.environ | {"LYRA_HOME": str(place.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    left = Path(keeper.stdout.strip())
    assert left.is_dir()
    assert scratch.sweep() == 1
    assert not left.exists()


def test_the_disk_serves_where_there_is_no_such_memory(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "MEMORY", tmp_path / "nowhere")
    assert scratch.keep_in_memory().parent == place
