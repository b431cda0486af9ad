"""Who is in this LYRA_HOME: at most one `manage.py run`; processes that work in it; or one restore.

Locks are flock's on files that stay: they end with the last process that holds them, however it
ends, and a forked process holds them with its parent. Only processes of this home are seen: others
may use the same database or artifact storage from other homes and hosts.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TextIO

from django.conf import settings
from django.core.management.base import CommandError
from django.db.backends.base.base import BaseDatabaseWrapper

RUN = "run.lock"
IN_USE = "in-use.lock"
# There from the moment a restore begins to replace things until it has replaced them all.
UNFINISHED = "restore.unfinished"

_held: IO[str] | None = None  # IN_USE, for as long as this process works here


class HomeTaken(CommandError):
    """Somebody else is in this home; the message says who and what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, returncode=1)


def lock() -> TextIO:
    """Be the one `run` of this home while the returned file is open; raises HomeTaken."""
    file = open(settings.LYRA_HOME / RUN, "a+")  # noqa: SIM115  the caller keeps it open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise HomeTaken(
            f"A server or a restore is running in {settings.LYRA_HOME} already "
            f"(process {holder}). Stop it first, or give this one a LYRA_HOME of its own."
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def use() -> None:
    """Work in this home, beside others, until this process ends.

    Servers and workers call it when they start; for every other process its first connection to
    the database does. Raises HomeTaken while a restore replaces what is here, or after one that was
    cut off.
    """
    global _held
    if _held is not None:
        return
    file = open(settings.LYRA_HOME / IN_USE, "a")  # noqa: SIM115  held until the process ends
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _refuse_half_restored()
    except BlockingIOError:
        file.close()
        raise HomeTaken(
            f"{settings.LYRA_HOME} is just being restored; try again when that has ended."
        ) from None
    except HomeTaken:
        file.close()
        raise
    _held = file


def connected(*, connection: BaseDatabaseWrapper, **_: Any) -> None:
    """The signal that this process has connected to the database."""
    try:
        use()
    except HomeTaken:
        connection.close()  # it is about to be replaced
        raise


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep everybody else out of this home; raises HomeTaken, naming who is in it."""
    global _held
    path = settings.LYRA_HOME / IN_USE
    with lock(), open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HomeTaken(
                f"{settings.LYRA_HOME} is in use; stop this first: {_users(path)}"
            ) from None
        _held = file
        try:
            yield
        finally:
            _held = None


def _refuse_half_restored() -> None:
    mark = settings.LYRA_HOME / UNFINISHED
    if mark.exists():
        raise HomeTaken(
            f"A restore of {settings.LYRA_HOME} was cut off halfway (is its backup lost? Delete "
            f"{UNFINISHED} there and look at what is left). Run it again: "
            f"manage.py restore --force {mark.read_text()}"
        )


def _users(path: Path) -> str:
    """Commands that have the file open, with their process ids, as far as /proc tells."""
    found: dict[str, str] = {}
    for link in sorted(Path("/proc").glob("[0-9]*/fd/*"), key=lambda link: int(link.parts[2])):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            process = link.parent.parent
            if link.readlink() == path and int(process.name) != os.getpid():
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                # The forks of one command share its words; the first is the one to stop.
                found.setdefault(" ".join(words).strip(), process.name)
    listed = [f"{command} (process {number})" for command, number in found.items()]
    return "; ".join(listed) or "web servers (gunicorn), workers (qcluster), trainings, commands"
