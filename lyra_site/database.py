"""How long a web process waits for PostgreSQL, and whether a pooler is between.

Only there it is limited: a command or a migration may need longer for one statement. SQLite waits
by itself, for SQLITE_BUSY_TIMEOUT_S.
"""

import functools
from typing import Any

from django.conf import settings
from django.db import OperationalError as DatabaseHangs
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from psycopg import Connection, OperationalError
from psycopg.pq import TransactionStatus

# A statement that the server itself ends in time keeps its connection.
GRACE_S = 1.0
LOOKS = 3  # for a pooler: another client may come between


def limit_waiting() -> None:
    """Connections that this process opens from now on wait LYRA_DATABASE_TIMEOUT_S for a statement.

    The server is told to end what takes longer. A server that hangs, or whose network is gone, does
    not: then this side lets go of it. What DATABASE_URL says wins. A pooler of transactions does
    not pass on what a session is told: then this side alone sees to it.
    """
    database = connections.settings["default"]
    if database["ENGINE"] != "django.db.backends.postgresql":
        return
    limit = f"-c statement_timeout={round(settings.LYRA_DATABASE_TIMEOUT_S * 1000)}"
    given = database["OPTIONS"].get("options", "")
    if not is_said_to_be_pooled():
        # Of two values for one parameter the server takes the last.
        database["OPTIONS"]["options"] = f"{limit} {given}".strip()
    if "statement_timeout" not in given:
        connection_created.connect(_limit, dispatch_uid="lyra_site.database")


def is_said_to_be_pooled() -> bool:
    """Whether DATABASE_URL says that a pooler gives each transaction another session: then nothing
    may be left in one, such as a cursor, for what comes after."""
    return bool(connections.settings["default"].get("DISABLE_SERVER_SIDE_CURSORS"))


def is_seen_to_be_pooled() -> bool:
    """Whether two connections were found in one session of PostgreSQL's, or one in two.

    Raises:
        django.db.Error: it cannot be reached.
    """
    one, other = connection.copy(), connection.copy()
    try:
        return any(_meet(one, other) for _ in range(LOOKS))
    finally:
        one.close()
        other.close()


def _meet(one: BaseDatabaseWrapper, other: BaseDatabaseWrapper) -> bool:
    before = _session(one)
    other.set_autocommit(False)
    taken = _session(other)  # kept for as long as the transaction is open
    after = _session(one)
    other.rollback()
    return taken in {before, after} or before != after


def _session(of: BaseDatabaseWrapper) -> int:
    with of.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (process,) = cursor.fetchone()
    return int(process)


def _limit(*, connection: BaseDatabaseWrapper, **_: Any) -> None:
    raw = connection.connection
    raw.wait = functools.partial(_wait, raw)


def _wait(raw: "Connection[Any]", *arguments: Any, **given: Any) -> Any:
    """psycopg's own waiting, which has no limit unless one is given.

    It raises Django's error and not psycopg's, which would be no news where Django tests whether a
    connection still works: it would wait once more, for a new one.
    """
    limit = settings.LYRA_DATABASE_TIMEOUT_S + GRACE_S
    try:
        return Connection.wait(raw, *arguments, **({"timeout": limit} | given))
    except OperationalError:
        if raw.info.transaction_status == TransactionStatus.ACTIVE:
            raw.close()
            raise DatabaseHangs(f"The database did not answer within {limit:g} s.") from None
        raise
