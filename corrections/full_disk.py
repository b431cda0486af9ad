"""What a full disk looks like, and what is said of it: on HTTP here, to who types commands, to who
asked for a training.

A quota and a limit on the size of files are alike: nothing can be written until somebody acts.
"""

import errno
import sqlite3

ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Full; and a write that failed otherwise, as for a quota: SQLite tells apart no more.
SQLITE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
POSTGRESQL = "53100"

REFUSAL = "The server's disk is full: nothing can be saved until an administrator makes room on it."


def is_behind(error: BaseException | None) -> bool:
    """Whether an error says so, or is raised from one that does."""
    while error is not None:
        if _says_so(error):
            return True
        error = error.__cause__
    return False


def _says_so(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in ERRNOS
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in SQLITE
    return getattr(error, "sqlstate", None) == POSTGRESQL  # psycopg's


def in_a_command(error: BaseException) -> str:
    """A sentence for whoever typed the command."""
    why = (error.strerror if isinstance(error, OSError) else "") or error
    return f"There is no room on the disk ({why}). Free some space, then run this again."
