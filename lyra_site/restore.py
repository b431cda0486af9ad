"""A backup back into this home: first everything is verified, then everything is replaced.

The database is replaced first, because it alone can still refuse; artifacts it names were added
before, which changes nothing for the old one. If the rest is cut off, a mark keeps every process
out of the home until the restore is run again.
"""

import contextlib
import os
import shlex
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.core.files.base import File
from django.core.files.storage import FileSystemStorage, storages
from django.db import DatabaseError, OperationalError, connection
from django.db.migrations.loader import MigrationLoader

from adapters_app import scratch, secret_key
from adapters_app.storage import SUMS
from corrections.files import private, sync_directory, written_beside
from lyra_site import home, postgresql
from lyra_site.archive import (
    ARTIFACTS,
    SECRET_KEY,
    Archive,
    Member,
    NotWhole,
    copy,
    opened,
)


class RestoreRefused(RuntimeError):
    """The backup cannot or must not be restored here; nothing was replaced."""


class RestoreUnfinished(RuntimeError):
    """Something was replaced and something was not; nobody can work here until it is run again."""


def restore(path: Path, *, force: bool = False) -> dict[str, Member]:
    """Make this system the one in the backup at `path`; return the backup's members.

    For a process that is alone in this home, by `home.alone()`.

    Raises:
        RestoreRefused: not a whole backup, of another database system or of newer code, no space,
            or, without `force`, a system that holds something already.
        RestoreUnfinished: it was cut off after the database was replaced.
    """
    try:
        _check_empty_unless(force)
        with opened(path) as archive, _staged_database() as database:
            _check_space(archive, database.parent)
            _unpack_and_verify(archive, database)
            _check_database(database)
            differing = _add_artifacts(archive)
            with _marked_unfinished(path):
                _load(database)
                _replace_artifacts(archive, differing)
                _replace_secret_key(archive)
                secret_key.forget()  # the backup may come from a host that had another one
    except NotWhole as error:
        raise RestoreRefused(str(error)) from error
    except OSError as error:
        raise RestoreRefused(
            f"{error}. Nothing was replaced; mend that, then restore again."
        ) from error
    return archive.members


def _check_empty_unless(force: bool) -> None:
    """Raise RestoreRefused where the database holds something, or nobody can tell."""
    try:
        tables = connection.introspection.table_names()
    except DatabaseError as error:
        if connection.vendor == "postgresql":
            raise RestoreRefused(
                f"The database of DATABASE_URL cannot be used: {error}".strip()
            ) from error
        tables = ["damaged, which is not empty"]
    if tables and not force:
        raise RestoreRefused(
            f"There is a system in {settings.LYRA_HOME} already. Add --force to replace it by the "
            "backup's, or set LYRA_HOME to an empty directory."
        )


@contextlib.contextmanager
def _marked_unfinished(path: Path) -> Iterator[None]:
    """Nobody can work in this home from here on until this block, or a later one, has ended well.

    A database that refuses is as it was, and so is everything else.
    """
    mark = settings.LYRA_HOME / home.UNFINISHED
    cut_off_before = mark.exists()
    again = shlex.quote(str(path.absolute()))
    with written_beside(mark) as file:
        file.write(again.encode())
    try:
        yield
    except RestoreRefused:
        if not cut_off_before:
            mark.unlink()
        raise
    except OSError as error:
        raise RestoreUnfinished(
            f"The restore was cut off halfway: {error}. Mend that, then run it again: "
            f"manage.py restore --force {again}"
        ) from error
    mark.unlink()
    sync_directory(mark.parent)


# --- Before: nothing is replaced ------------------------------------------------------------------


@contextlib.contextmanager
def _staged_database() -> Iterator[Path]:
    """Where the backup's database is unpacked: SQLite's where it can be renamed into its place."""
    if connection.vendor == "postgresql":
        postgresql.program("psql")
        with scratch.directory() as directory:
            yield directory / "database.sql"
        return
    database = _sqlite_file()
    staged = database.with_name(f".{database.name}.restoring")
    staged.unlink(missing_ok=True)  # of a restore that was killed; there is only one at a time
    try:
        yield staged
    finally:
        staged.unlink(missing_ok=True)


def _check_space(archive: Archive, staging: Path) -> None:
    """Raise RestoreRefused where a disk of this host has too little for what goes there."""
    needs = [(staging, archive.members[archive.database].size)]
    storage = storages["artifacts"]
    if isinstance(storage, FileSystemStorage):
        missing = [name for name in archive.artifacts if not storage.exists(name)]
        size = sum(archive.members[ARTIFACTS + name].size for name in missing)
        needs.append((_nearest(Path(storage.location)), size))
    by_disk: Counter[int] = Counter()
    for place, size in needs:
        disk = place.stat().st_dev
        by_disk[disk] += size
        free = shutil.disk_usage(place).free
        if free < by_disk[disk]:
            raise RestoreRefused(
                f"The disk of {place} has {free / 1e6:.0f} MB free; the restore needs "
                f"{by_disk[disk] / 1e6:.0f} MB. Free some space, then restore again."
            )


def _nearest(path: Path) -> Path:
    """`path`, or the nearest directory above it that there is."""
    return next(place for place in (path, *path.parents) if place.exists())


def _unpack_and_verify(archive: Archive, database: Path) -> None:
    """Write the database to `database` and to disk; read everything else, too."""
    with open(database, "xb", opener=private) as file:
        archive.verify(archive.database, file)
        file.flush()
        os.fsync(file.fileno())
    for name in archive.members:
        archive.verify(name)


def _check_database(path: Path) -> None:
    """Raise RestoreRefused where the unpacked database is damaged or of newer code."""
    read = postgresql.migrations_in if connection.vendor == "postgresql" else _migrations_in
    applied = read(path)
    if not applied:
        raise RestoreRefused(
            "The backup's database has no migrations: it is none of this system. "
            "Choose another backup."
        )
    migrations = MigrationLoader(None, ignore_no_migrations=True).disk_migrations
    replaced = {old for migration in migrations.values() for old in migration.replaces}
    if unknown := sorted(applied - set(migrations) - replaced):
        raise RestoreRefused(
            f"The backup was made by newer code: its database has {'.'.join(unknown[0])}. "
            "Install that version here, then restore again."
        )


def _migrations_in(path: Path) -> set[tuple[str, str]]:
    """(app, name) of a SQLite file's migrations; the file is checked from end to end."""
    address = f"{path.as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            (answer,) = database.execute("PRAGMA integrity_check").fetchone()
            rows = set(database.execute("SELECT app, name FROM django_migrations"))
    except sqlite3.DatabaseError as error:
        answer = str(error)
    if answer != "ok":
        raise RestoreRefused(
            f"The backup's database is damaged, or none of this system ({answer}). "
            "Choose another backup."
        )
    return rows


def _add_artifacts(archive: Archive) -> list[str]:
    """Add to storage what it lacks; return the names of what it has, but differently."""
    storage = storages["artifacts"]
    differing = []
    # Without its sums an artifact does not count as there: they come last.
    for name in sorted(archive.artifacts, key=lambda name: (name.endswith(f"/{SUMS}"), name)):
        if not storage.exists(name):
            _save(archive, name)
            continue
        with storage.open(name) as present:
            if copy(present, None) != archive.members[ARTIFACTS + name]:
                differing.append(name)
    return differing


def _save(archive: Archive, name: str) -> None:
    with archive.open(ARTIFACTS + name) as source:
        storages["artifacts"].save(name, File(source))


# --- After: an interruption means to run it again -------------------------------------------------


def _load(path: Path) -> None:
    """Replace the database by the unpacked one: all of it, or RestoreRefused."""
    if connection.vendor == "postgresql":
        try:
            postgresql.load(path)
        except (postgresql.Failed, OperationalError) as error:
            raise RestoreRefused(
                f"{error}. Nothing was replaced. Stop whatever else uses the database, or mend "
                "what it says; then restore again."
            ) from error
        return
    connection.close()
    database = _sqlite_file()
    if database.exists():
        _settle_log(database)
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    os.replace(path, database)
    sync_directory(database.parent)


def _settle_log(database: Path) -> None:
    """Write the old database's log into it, so that its log can be removed before it is."""
    with contextlib.closing(sqlite3.connect(database)) as old:
        try:
            (busy, _, _) = old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError:
            busy = True
        except sqlite3.DatabaseError:
            return  # damaged: nothing in it is worth keeping
    if busy:
        raise RestoreRefused(
            f"Another process uses {database}, and it is none of this home's. Stop it, then "
            "restore again."
        )


def _sqlite_file() -> Path:
    return Path(connection.settings_dict["NAME"]).absolute()


def _replace_artifacts(archive: Archive, differing: list[str]) -> None:
    for name in differing:
        storages["artifacts"].delete(name)
        _save(archive, name)


def _replace_secret_key(archive: Archive) -> None:
    if SECRET_KEY not in archive.members:
        return
    with (
        archive.open(SECRET_KEY) as source,
        written_beside(settings.LYRA_HOME / SECRET_KEY) as file,
    ):
        copy(source, file)
