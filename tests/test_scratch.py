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


def test_a_kept_directory_is_not_swept_while_its_process_lives(place: Path) -> None:
    kept = scratch.keep()
    assert scratch.sweep() == 0
    assert kept.is_dir()
