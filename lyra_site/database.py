"""How long a web process waits for PostgreSQL.

Only there: a command or a migration may need longer for one statement. SQLite waits by itself, for
SQLITE_BUSY_TIMEOUT_S.
"""

import functools
from typing import Any

from django.conf import settings
from django.db import OperationalError as DatabaseHangs
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from psycopg import Connection, OperationalError
from psycopg.pq import TransactionStatus

# A statement that the server itself ends in time keeps its connection.
GRACE_S = 1.0


def limit_waiting() -> None:
    """Connections that this process opens from now on wait LYRA_DATABASE_TIMEOUT_S for a statement.

    The server is told to end what takes longer. A server that hangs, or whose network is gone, does
    not: then this side lets go of it. What DATABASE_URL says wins.
    """
    database = connections.settings["default"]
    if database["ENGINE"] != "django.db.backends.postgresql":
        return
    limit = f"-c statement_timeout={round(settings.LYRA_DATABASE_TIMEOUT_S * 1000)}"
    given = database["OPTIONS"].get("options", "")
    # Of two values for one parameter the server takes the last.
    database["OPTIONS"]["options"] = f"{limit} {given}".strip()
    if "statement_timeout" not in given:
        connection_created.connect(_limit, dispatch_uid="lyra_site.database")


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
