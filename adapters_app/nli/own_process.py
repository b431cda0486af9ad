"""Work in a process of its own, whose peak memory is then its own, and the reading of memory."""

import multiprocessing
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

A = TypeVar("A")
R = TypeVar("R")

PROC_STATUS, PROC_CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Every process is forked from one that has imported these and has no threads: loading torch anew
# for each would cost seconds.
PRELOADED = ["adapters_app.nli.finetuning"]
RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs


def in_own_process(act: Callable[[A], R], on: A) -> R:
    """`act(on)` in a fresh process, which ends with it; both must pickle.

    Raises:
        ChildProcessError: the process ended without a result; it has said why itself.
    """
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(PRELOADED)
    here, there = fresh.Pipe(duplex=False)
    # Not a pool: its worker would wait for more for ever where this process is killed.
    process = fresh.Process(target=_send, args=(there, act, on), daemon=True)
    process.start()
    there.close()
    try:
        result: R = here.recv()
    except EOFError as error:
        process.join()
        raise ChildProcessError(
            f"{act.__name__} ended with exit status {process.exitcode}"
        ) from error
    process.join()
    return result


def _send(to: Connection, act: Callable[[Any], Any], on: Any) -> None:
    to.send(act(on))


def forget_peak() -> None:
    """Start the kernel's high-water mark anew, e.g. once a model is loaded."""
    if PROC_CLEAR_REFS.exists():
        PROC_CLEAR_REFS.write_text(RESET_PEAK)


def peak_mb() -> float | None:
    """Resident memory at its highest, MB; None where there is no /proc.

    Not `ru_maxrss`: a child inherits its parent's.
    """
    return _status_mb("VmHWM")


def resident_mb() -> float | None:
    """Resident memory now, MB; None where there is no /proc."""
    return _status_mb("VmRSS")


def _status_mb(name: str) -> float | None:
    if not PROC_STATUS.exists():
        return None
    found = re.search(rf"{name}:\s+(\d+) kB", PROC_STATUS.read_text())
    return int(found.group(1)) / 1000 if found else None
