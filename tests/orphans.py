"""Whatever the tests start ends with them, also where pytest itself is killed.

A watcher beside each process that runs tests waits for its end, and then kills all that carry its
mark in their environment: children of children too, in sessions of their own or not. The mark is
inherited; who is whose parent is no longer known once a parent is dead. Linux only.

    python -m tests.orphans MARK PROCESS    waits and kills; tests.conftest starts it
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "STARTED_BY_TESTS"
ROOT = Path(__file__).resolve().parent.parent


def watch() -> subprocess.Popen[bytes]:
    """Mark what this process starts from now on, and have it watched."""
    unmarked = os.environ.copy()
    unmarked.pop(VARIABLE, None)
    mark = os.environ[VARIABLE] = uuid.uuid4().hex
    return subprocess.Popen(
        [sys.executable, "-m", "tests.orphans", mark, str(os.getpid())],
        cwd=ROOT,
        env=unmarked,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to the group of the tests is not for the watcher
    )


def marked(mark: str) -> Iterator[int]:
    """Processes that were started with the mark, and live."""
    words = f"{VARIABLE}={mark}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if words in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name)


def _wait_for(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was faster
        select.select([os.pidfd_open(process)], [], [])


def _kill_all(mark: str) -> None:
    """Until none is left: one may just be starting another."""
    while found := list(marked(mark)):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    _wait_for(int(sys.argv[2]))
    _kill_all(sys.argv[1])
