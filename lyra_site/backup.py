"""A whole system in one tar file: database, artifacts, snapshots, on wish the secret key.

Members: `database.sqlite3` or `database.sql`, `artifacts/<name in artifact storage>`, `secret_key`,
and last `manifest.json` with every other member's size and SHA-256. The database is copied first:
what it names is in artifact storage before it is committed, so it is there for the copy after it.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.files.storage import Storage, storages
from django.db import DatabaseError, connection
from django.db.backends.postgresql.client import DatabaseClient

FORMAT = 1
MANIFEST = "manifest.json"
SECRET_KEY = "secret_key"  # noqa: S105  a file name
ARTIFACTS = "artifacts/"
DATABASES = {"sqlite": "database.sqlite3", "postgresql": "database.sql"}
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
CHUNK = 1 << 20


class BackupFailed(RuntimeError):
    """The backup could not be made; nothing is left behind."""


class RestoreRefused(RuntimeError):
    """The backup cannot or must not be restored here; nothing was changed."""


@dataclass(frozen=True)
class Member:
    size: int
    sha256: str


def write(path: Path, *, secret_key: bool = False) -> dict[str, Member]:
    """Write the backup to `path`, readable by its owner; return its members.

    Safe while the server runs. Raises BackupFailed.
    """
    with tempfile.TemporaryDirectory(dir=settings.LYRA_HOME, prefix=".backup-") as directory:
        database = Path(directory) / DATABASES[connection.vendor]
        _dump(database)
        with _written_beside(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
            members = {database.name: _add(tar, database.name, database.open("rb"))}
            storage = storages["artifacts"]
            for name in sorted(_walk(storage)):
                try:
                    file_in_storage = storage.open(name)
                except FileNotFoundError:
                    continue  # an orphan, pruned meanwhile: no row of the copy names it
                members[ARTIFACTS + name] = _add(tar, ARTIFACTS + name, file_in_storage)
            if secret_key:
                members[SECRET_KEY] = _add(
                    tar, SECRET_KEY, io.BytesIO(settings.SECRET_KEY.encode())
                )
            _add(tar, MANIFEST, io.BytesIO(_manifest(members)))
    return members


def restore(path: Path, *, force: bool = False) -> dict[str, Member]:
    """Make this system the one in the backup at `path`; return the backup's members.

    Every member is verified before anything changes; the database is replaced last and at once.
    Raises RestoreRefused: not a whole backup, of another database system, or, without `force`, a
    system that holds something already.
    """
    if not force and not is_empty():
        raise RestoreRefused(
            f"There is a system in {settings.LYRA_HOME} already; --force replaces its database."
        )
    with (
        tempfile.TemporaryDirectory(dir=_workplace(), prefix=".restore-") as directory,
        _opened(path) as tar,
    ):
        members = _verified_manifest(tar)
        unpacked = Path(directory)
        for name, member in members.items():
            _unpack(tar, name, member, unpacked / name)
        _put_artifacts(unpacked / ARTIFACTS, members)
        if SECRET_KEY in members:
            os.replace(unpacked / SECRET_KEY, settings.LYRA_HOME / SECRET_KEY)
        _load(unpacked / DATABASES[connection.vendor])
    return members


def is_empty() -> bool:
    """Whether neither the database nor artifact storage holds anything."""
    try:
        tables = connection.introspection.table_names()
    except DatabaseError:  # a damaged one is not nothing
        return False
    return not tables and not any(_walk(storages["artifacts"]))


# --- Database -------------------------------------------------------------------------------------


def _workplace() -> Path:
    """A directory from which the database can be renamed into its place."""
    if connection.vendor == "postgresql":
        return settings.LYRA_HOME
    return Path(connection.settings_dict["NAME"]).parent


def _dump(path: Path) -> None:
    """A consistent copy of the database, whoever writes to it meanwhile."""
    if connection.vendor == "postgresql":
        # Objects are dropped before they are made again, all in the one transaction of _load().
        flags = ["--clean", "--if-exists", "--no-owner", "--no-privileges"]
        _postgresql("pg_dump", *flags, "--file", str(path))
        return
    connection.ensure_connection()
    with contextlib.closing(sqlite3.connect(path)) as copy:
        connection.connection.backup(copy)
        _check_integrity(copy)


def _load(path: Path) -> None:
    """Replace the database by the copy at `path`: all of it or nothing."""
    if connection.vendor == "postgresql":
        try:
            _postgresql(
                "psql",
                "--no-psqlrc",
                "--quiet",
                "--single-transaction",
                "--set=ON_ERROR_STOP=1",
                f"--file={path}",
            )
        except BackupFailed as error:
            raise RestoreRefused(str(error)) from error
        return
    connection.close()
    database = Path(connection.settings_dict["NAME"])
    if database.exists():
        _settle_log(database)
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    os.replace(path, database)
    _sync_directory(database.parent)


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
        raise RestoreRefused(f"Another process uses {database}; stop it first.")


def _check_integrity(database: sqlite3.Connection) -> None:
    (answer,) = database.execute("PRAGMA quick_check").fetchone()
    if answer != "ok":
        raise BackupFailed(f"The database is damaged: {answer}")


def _postgresql(program: str, *arguments: str) -> None:
    """Run pg_dump or psql on our database; the password goes by environment, never by argument."""
    if not shutil.which(program):
        raise BackupFailed(f"{program} is missing: apt-get install postgresql-client")
    given, environment = DatabaseClient.settings_to_cmd_args_env(connection.settings_dict, [])
    # libpq's own programs all take psql's connection flags; the database is the last of them.
    *flags, database = given[1:]
    done = subprocess.run(
        [program, *flags, *arguments, f"--dbname={database}"],
        env=os.environ | (environment or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BackupFailed(f"{program} failed: {done.stderr.strip()}")


# --- Artifacts ------------------------------------------------------------------------------------


def _walk(storage: Storage, directory: str = "") -> Iterator[str]:
    """Names of all files in `storage` below `directory`."""
    try:
        directories, files = storage.listdir(directory)
    except FileNotFoundError:
        return
    for name in files:
        if not name.startswith("."):  # still being written
            yield f"{directory}{name}"
    for name in directories:
        yield from _walk(storage, f"{directory}{name}/")


def _put_artifacts(directory: Path, members: dict[str, Member]) -> None:
    """Add the backup's artifacts to storage; what is there and intact stays untouched."""
    storage = storages["artifacts"]
    for member_name, member in members.items():
        if not member_name.startswith(ARTIFACTS):
            continue
        name = member_name.removeprefix(ARTIFACTS)
        if storage.exists(name):
            with storage.open(name) as present:
                if _copy(present, None) == member:
                    continue
            storage.delete(name)
        with (directory / name).open("rb") as file:
            storage.save(name, file)


# --- The tar file ---------------------------------------------------------------------------------


def _manifest(members: dict[str, Member]) -> bytes:
    content = {
        "format": FORMAT,
        "made_at": datetime.now(UTC).isoformat(),
        "database": connection.vendor,
        "members": {name: asdict(member) for name, member in members.items()},
    }
    return json.dumps(content, indent=1).encode()


def _add(tar: tarfile.TarFile, name: str, source: IO[bytes]) -> Member:
    """Add what `source` holds as member `name`, hashing what is really written."""
    with source:
        source.seek(0, io.SEEK_END)
        header = tarfile.TarInfo(name)
        header.size = source.tell()
        header.mode = 0o600
        source.seek(0)
        hashing = _Hashing(source)
        tar.addfile(header, hashing)
    return Member(header.size, hashing.sha256.hexdigest())


class _Hashing:
    """A readable file that hashes what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self.sha256.update(chunk)
        return chunk


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, mode="r:") as tar:
            yield tar
    except (OSError, tarfile.TarError) as error:
        raise RestoreRefused(f"{path} cannot be read as a backup: {error}") from error


def _verified_manifest(tar: tarfile.TarFile) -> dict[str, Member]:
    """The members by the manifest; raises RestoreRefused where the tar holds anything else."""
    content = _read_manifest(tar)
    if content.get("format") != FORMAT:
        raise RestoreRefused(f"The backup has format {content.get('format')}, known is {FORMAT}.")
    if content["database"] != connection.vendor:
        raise RestoreRefused(
            f"The backup is of {content['database']}; DATABASE_URL names {connection.vendor}."
        )
    members = {name: Member(**member) for name, member in content["members"].items()}
    present = [header.name for header in tar.getmembers() if header.name != MANIFEST]
    if sorted(present) != sorted(members):
        raise RestoreRefused("The backup does not hold exactly what its manifest lists.")
    unsafe = [
        header.name
        for header in tar.getmembers()
        if not header.isreg() or not SAFE_NAME.fullmatch(header.name)
    ]
    if unsafe:
        raise RestoreRefused(f"The backup holds a member that no backup has: {unsafe[0]!r}")
    if DATABASES[connection.vendor] not in members:
        raise RestoreRefused("The backup holds no database.")
    return members


def _read_manifest(tar: tarfile.TarFile) -> dict[str, Any]:
    try:
        file = tar.extractfile(MANIFEST)
    except KeyError:
        file = None
    if file is None:
        raise RestoreRefused("The backup holds no manifest; it is not whole.")
    with file:
        content: dict[str, Any] = json.load(file)
    return content


def _unpack(tar: tarfile.TarFile, name: str, member: Member, target: Path) -> None:
    """Write the member to `target` and to disk; raises RestoreRefused where its digest differs."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(name)
    assert source is not None  # noqa: S101  a regular file, by _verified_manifest()
    with source, open(target, "xb", opener=_private) as file:
        if _copy(source, file) != member:
            raise RestoreRefused(f"{name} in the backup is damaged: its SHA-256 differs.")
        file.flush()
        os.fsync(file.fileno())


def _copy(source: IO[bytes], target: IO[bytes] | None) -> Member:
    """Copy `source` to `target`, if there is one; return its size and digest."""
    sha256, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        sha256.update(chunk)
        size += len(chunk)
        if target is not None:
            target.write(chunk)
    return Member(size, sha256.hexdigest())


@contextlib.contextmanager
def _written_beside(path: Path) -> Iterator[IO[bytes]]:
    """A file that becomes `path` when all of it is on disk; readable by its owner only."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "xb", opener=_private) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_directory(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
