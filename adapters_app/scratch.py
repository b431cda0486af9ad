"""Directories for files on their way elsewhere, in LYRA_HOME/tmp; what the dead left is swept away.

A directory belongs to whoever holds a lock on it (flock's), which ends with its process however
that ends: process ids say nothing across containers that share a home.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

MEMORY = Path("/dev/shm")  # noqa: S108  directories that only we can read


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """An empty directory on the disk of LYRA_HOME, readable by its owner only, gone afterwards."""
    with _locked_place() as locked:
        made = Path(tempfile.mkdtemp(dir=locked))
        owner = _lock(made)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(owner)


def keep_in_memory() -> Path:
    """An empty directory for as long as this process and its forks live; then it is swept away.

    In memory where the system offers that: a file that is mapped, as Prometheus' are, kills its
    process where the disk is full.
    """
    memory = os.access(MEMORY, os.W_OK | os.X_OK)
    with _locked_place() as locked:
        made = Path(tempfile.mkdtemp(dir=MEMORY if memory else locked, prefix=_prefix()))
        _lock(made)  # open until the process ends
    return made


def sweep() -> int:
    """Remove directories whose owners are dead; return how many."""
    with _locked_place() as locked:
        found = [*locked.iterdir(), *MEMORY.glob(f"{_prefix()}*")]
        left = [path for path in found if _is_our_directory(path) and not _is_owned(path)]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
    return len(left)


def place() -> Path:
    """LYRA_HOME/tmp, for files that have no name there: they end with whoever has them open."""
    path = Path(settings.LYRA_HOME) / "tmp"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _prefix() -> str:
    """What names in MEMORY begin with, where other homes have theirs."""
    home = hashlib.sha256(os.fsencode(settings.LYRA_HOME)).hexdigest()
    return f"lyra-{home[:16]}-"


def _is_our_directory(path: Path) -> bool:
    """Everybody may write to MEMORY."""
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


@contextlib.contextmanager
def _locked_place() -> Iterator[Path]:
    """Nobody sweeps between the making of a directory and its lock."""
    path = place()
    descriptor = _lock(path)
    try:
        yield path
    finally:
        os.close(descriptor)


def _lock(path: Path, flags: int = fcntl.LOCK_EX) -> int:
    """An open descriptor of the directory that holds its lock; BlockingIOError only by LOCK_NB."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, flags)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_owned(path: Path) -> bool:
    try:
        os.close(_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    return False
