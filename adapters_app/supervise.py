"""Runs one training in a child process and answers for it: cancel, stop, deadline, sudden death.

A child of its own, because django-q2's workers fork (CUDA dies in a fork), because memory goes back
to the system when it ends, and because a process can be killed where a thread cannot.
"""

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection

from adapters_app import scratch, training
from adapters_app.training import CancelRequested, Lease, LeaseLost
from corrections import full_disk

POLL_S = 1.0
# From the request to the end a cancelled child gets this long, then SIGKILL: under 10 s in all.
CANCEL_GRACE_S = 6.0
STOP_GRACE_S = 20.0
APART_TIMEOUT_S = 120.0
RENEWALS_PER_LEASE = 4
OUTPUT_TAIL = 2000  # characters of the child's output worth showing
NICENESS = 10  # against 0: about a tenth of the time where both want all of it, sched(7)
KEPT_LOGS = 100  # outputs of runs; what matters of them is in the runs' rows
EXIT_LEASE_LOST = 3  # the child's status when it found, or had to assume, that it lost the run

log = logging.getLogger(__name__)


class _Ending:
    """Why the child has to end, and until when it may do so by itself."""

    def __init__(self, why: str, grace_s: float) -> None:
        self.why = why
        self.kill_at = time.monotonic() + grace_s


def train(
    run_id: int,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_poll: Callable[[], None] = lambda: None,
) -> bool:
    """Claim the run and see it through in a child process; False where it could not be claimed.

    Returns when the run is over, or back in the queue because this process was told to stop
    (SIGTERM, SIGINT or `should_stop`).
    """
    lease = training.claim(run_id, worker=_whoami(), device=device())
    if lease is None:
        return False
    try:
        output = _open_output(run_id)
    except OSError as error:
        explanation = _no_output(error)
        with contextlib.suppress(LeaseLost):
            training.outlast(lease, lambda: training.fail(lease, explanation))
        return True
    with _stop_signals() as stopped, output:
        child = _start(lease, output)
        try:
            ending = _watch(child, lease, lambda: stopped() or should_stop(), on_poll)
        finally:
            _kill(child)
        with contextlib.suppress(LeaseLost):  # somebody else settles it, or has done so
            training.outlast(lease, lambda: _settle(lease, child.returncode, ending))
    scratch.sweep()  # of a child that was killed
    prune_logs()
    return True


def run_apart(command: str, *, should_stop: Callable[[], bool]) -> int:
    """Run a short management command in a process of its own; its exit status.

    It is killed where `should_stop` says so, and after APART_TIMEOUT_S, before the queue's worker
    would be taken for gone. What it prints goes where this process prints.
    """
    child = _child(command)
    deadline = time.monotonic() + APART_TIMEOUT_S
    try:
        while time.monotonic() < deadline and not should_stop():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=POLL_S)
    finally:
        _kill(child)
    return child.returncode


def device() -> str:
    """What two trainings must not share: a host's device, as the settings name it."""
    return f"{socket.gethostname()}:{settings.LYRA_DEVICE}"


def _whoami() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _output(run_id: int) -> Path:
    """Where the child's output goes."""
    logs = Path(settings.LYRA_HOME) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs / f"run-{run_id}.log"


def _open_output(run_id: int) -> BinaryIO:
    """The child's output; locked until this process and the child have closed it."""
    file = _output(run_id).open("ab")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def prune_logs() -> None:
    """Remove all but the newest KEPT_LOGS outputs, and never one that is still being written."""
    logs = _output(0).parent.glob("run-*.log")
    for path in sorted(logs, key=_written_at, reverse=True)[KEPT_LOGS:]:
        with contextlib.suppress(OSError), path.open("rb") as file:  # in use, or gone already
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # removed meanwhile
        return 0.0


def _start(lease: Lease, output: BinaryIO) -> subprocess.Popen[bytes]:
    arguments = [str(lease.run_id), "--token", str(lease.token), "--parent", str(os.getpid())]
    return _child("run_training", *arguments, stdout=output, stderr=subprocess.STDOUT)


def _child(command: str, *arguments: str, **output: Any) -> subprocess.Popen[bytes]:
    """Start a management command in a session of its own, which gives way to requests."""
    child = subprocess.Popen(
        [sys.executable, str(settings.BASE_DIR / "manage.py"), command, *arguments],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        **output,
    )
    _give_way(child.pid)
    return child


def _give_way(session: int) -> None:
    """Whoever answers requests on this host gets the processors first.

    The kernel may share them out by session, and a niceness within one then says nothing to others:
    sched(7), autogroup. Threads that the process starts later inherit its own.
    """
    with contextlib.suppress(OSError):  # gone already, or niceness is not ours to set here
        os.setpriority(os.PRIO_PROCESS, session, NICENESS)
    with contextlib.suppress(OSError):  # no such groups here
        Path(f"/proc/{session}/autogroup").write_text(str(NICENESS))


def _watch(
    child: subprocess.Popen[bytes],
    lease: Lease,
    should_stop: Callable[[], bool],
    on_poll: Callable[[], None],
) -> str:
    """Wait for the child, ending it where that is called for; returns why, empty if it was not."""
    started = time.monotonic()
    ending: _Ending | None = None
    while True:
        try:
            child.wait(timeout=POLL_S)
            return ending.why if ending else ""
        except subprocess.TimeoutExpired:
            now = time.monotonic()
        if ending is not None:
            if now >= ending.kill_at:
                return ending.why
            continue
        try:
            training.watch(lease)
            if now - lease.written_at > settings.LYRA_LEASE_S / RENEWALS_PER_LEASE:
                training.renew(lease)
            on_poll()
        except LeaseLost:
            return "lost"
        except CancelRequested:
            ending = _end(child, "cancel", CANCEL_GRACE_S)
        except (DatabaseError, InterfaceError):
            connection.close()  # opened again by the next query
            if now - lease.written_at > settings.LYRA_LEASE_S:
                return "lost"
        if ending is None and should_stop():
            ending = _end(child, "stop", STOP_GRACE_S)
        elif ending is None and now - started > settings.LYRA_TRAINING_TIMEOUT_S:
            ending = _end(child, "deadline", 0)


def _end(child: subprocess.Popen[bytes], why: str, grace_s: float) -> _Ending:
    child.terminate()
    return _Ending(why, grace_s)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started; does nothing where it has ended."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _settle(lease: Lease, status: int, ending: str) -> None:
    """Close the run where the child could not do so itself."""
    try:
        training.watch(lease)
    except LeaseLost:
        return
    except CancelRequested:
        training.cancelled(lease)
        return
    if ending == "stop":
        training.give_back(lease)
    elif ending == "deadline":
        training.fail(
            lease,
            f"The run took longer than {settings.LYRA_TRAINING_TIMEOUT_S} s "
            "(LYRA_TRAINING_TIMEOUT_S). Lower epochs or max_length, or raise the limit.",
        )
    elif status < 0:
        training.crashed(lease, _killed_by(-status))
    elif status == EXIT_LEASE_LOST:  # it is ours after all: the child could not look
        training.crashed(lease, f"{_OUT_OF_REACH} {_last_words(lease.run_id)}")
    else:
        training.fail(lease, _unexpected(lease.run_id, status))


def _no_output(error: OSError) -> str:
    if full_disk.is_behind(error):
        return DISK_FULL
    return f"The trainer's output cannot be written to the server's logs: {error.strerror}."


DISK_FULL = (
    "There is no space left on the disk. Free some, for example with `manage.py prune_artifacts`, "
    "and request the training again."
)
_OUT_OF_REACH = (
    "The trainer could not reach the database for longer than its lease lasts (LYRA_LEASE_S), "
    "twice. When the database is back, request the training again."
)


def _killed_by(number: int) -> str:
    name = signal.Signals(number).name
    hint = (
        " The system does that when memory runs out: lower batch_size or max_length, or give the "
        "machine more memory."
        if number == signal.SIGKILL
        else " Request the training again; if it happens again, look at the worker's log."
    )
    return f"The trainer was ended by {name}, twice.{hint}"


def _unexpected(run_id: int, status: int) -> str:
    return (
        f"The trainer stopped with an error nobody foresaw (exit status {status}). "
        f"{_last_words(run_id)}"
    )


def _last_words(run_id: int) -> str:
    path = _output(run_id)
    lines = path.read_text(errors="replace")[-OUTPUT_TAIL:].strip().splitlines()
    last = f"The last it printed: {lines[-1]}" if lines else "It printed nothing."
    return f"{last} (Its whole output is in {path.name} among the server's logs.)"


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """While it lasts, SIGTERM and SIGINT do not end this process but are remembered."""
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda got, _: received.append(got)) for number in numbers]
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
