"""Django's migrate, by one process at a time: hosts that start at once share one database."""

import contextlib
from collections.abc import Iterator
from typing import Any

from django.core.management.commands import migrate
from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from corrections.acting import Refused

LOCK = 0x6C797261  # PostgreSQL's advisory locks are numbers; this one spells “lyra”
WAIT_S = 120


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> Any:
        with _alone(connections[options["database"]]):
            return super().handle(*args, **options)


@contextlib.contextmanager
def _alone(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Hold the lock; raises Refused where another process keeps it for longer than WAIT_S.

    SQLite has a lock of its own for whoever writes, and one home one `run`.
    """
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", [f"{WAIT_S}s"])
        try:
            cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        except OperationalError as error:
            raise Refused(
                f"Another process has been migrating this database for {WAIT_S} seconds. Wait "
                "until it has ended, or stop it; then try again."
            ) from error
        cursor.execute("RESET lock_timeout")
    try:
        yield
    finally:
        if connection.connection is not None:  # the lock ends with the connection at the latest
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
