"""Django's migrate, by one process at a time: hosts that start at once share one database."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from django.core.management.commands import migrate
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from corrections.acting import Refused

LOCK = 0x6C797261  # PostgreSQL's advisory locks are numbers; this one spells “lyra”
WAIT_S = 120
LOOK_S = 0.2


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> Any:
        with _alone(connections[options["database"]]):
            return super().handle(*args, **options)


@contextlib.contextmanager
def _alone(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Hold the lock; raises Refused where another process keeps it for longer than WAIT_S.

    In a transaction, of a connection of its own: a pooler between here and PostgreSQL may give each
    transaction another session, and what one leaves behind to whoever is next. Who waits asks again
    and again: the pooler may have too few connections for one that does not let go.

    SQLite has a lock of its own for whoever writes, and one home one `run`.
    """
    if connection.vendor != "postgresql":
        yield
        return
    holder = connection.copy()
    until = time.monotonic() + WAIT_S
    try:
        holder.set_autocommit(False)
        while not _take(holder):
            if time.monotonic() > until:
                raise Refused(
                    f"Another process has been migrating this database for {WAIT_S} seconds. Wait "
                    "until it has ended, or stop it; then try again."
                )
            time.sleep(LOOK_S)
        yield
    finally:
        holder.close()  # which ends the transaction, and with it the lock


def _take(holder: BaseDatabaseWrapper) -> bool:
    with holder.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
        (taken,) = cursor.fetchone()
    if not taken:
        holder.rollback()
    return bool(taken)
