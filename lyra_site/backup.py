"""A whole system into one tar file, while it runs; `archive` says what is in it.

The database is copied first: what it names is in artifact storage before it is committed, so it is
there for the copy after it. Only a snapshot that nothing kept names may have been pruned meanwhile.
"""

import contextlib
import io
import sqlite3
import tarfile
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.core.files.storage import storages
from django.db import connection

from adapters_app import scratch, storage
from corrections import full_disk
from corrections.files import written_beside
from lyra_site import postgresql
from lyra_site.archive import ARTIFACTS, DATABASES, SECRET_KEY, Member, Writer


class BackupFailed(RuntimeError):
    """The backup could not be made; nothing is left behind."""


@dataclass(frozen=True)
class Written:
    """What is in a backup, by member, and which names in artifact storage are not: not ours."""

    members: dict[str, Member]
    left_out: list[str]


def write(path: Path, *, secret_key: bool = False) -> Written:
    """Write the backup to `path`, readable by its owner.

    Safe while the server runs. Raises BackupFailed.
    """
    try:
        with scratch.directory() as directory, written_beside(path) as file:
            database = directory / DATABASES[connection.vendor]
            _dump(database)
            with tarfile.open(fileobj=file, mode="w") as tar:
                return _fill(Writer(tar), database, secret_key=secret_key)
    except (OSError, sqlite3.Error, postgresql.Failed) as error:
        if full_disk.is_behind(error):
            raise BackupFailed(
                f"There is no room for it in {path.parent}, or in {settings.LYRA_HOME}, where the "
                f"database is copied to first ({error}). Free some space, or name another file; "
                "then back up again."
            ) from error
        raise BackupFailed(
            f"{error}. Mend that, or name another file; then back up again."
        ) from error


def _fill(archive: Writer, database: Path, *, secret_key: bool) -> Written:
    archive.add(database.name, database.open("rb"))
    ours, left_out = storage.stored()
    for name in ours:
        try:
            file = storages[storage.ARTIFACTS].open(name)
        except FileNotFoundError:
            continue  # pruned meanwhile
        archive.add(ARTIFACTS + name, file)
    if secret_key:
        archive.add(SECRET_KEY, io.BytesIO(settings.SECRET_KEY.encode()))
    archive.finish()
    return Written(archive.members, left_out)


def _dump(path: Path) -> None:
    """A consistent copy of the database, whoever writes to it meanwhile."""
    if connection.vendor == "postgresql":
        postgresql.dump(path)
        return
    connection.ensure_connection()
    with contextlib.closing(sqlite3.connect(path)) as copy:
        connection.connection.backup(copy)
        (answer,) = copy.execute("PRAGMA quick_check").fetchone()
    if answer != "ok":
        raise BackupFailed(f"The database is damaged ({answer}). Restore your last good backup.")
