"""The tar file of a backup: what is in it, and that it is whole.

Members: `database.sqlite3` or `database.sql`, `artifacts/<name in artifact storage>`, `secret_key`,
and last `manifest.json` with every other member's size and SHA-256.
"""

import contextlib
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from django.db import connection

FORMAT = 1
MANIFEST = "manifest.json"
SECRET_KEY = "secret_key"  # noqa: S105  a file name
ARTIFACTS = "artifacts/"
DATABASES = {"sqlite": "database.sqlite3", "postgresql": "database.sql"}
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
CHUNK = 1 << 20


class NotWhole(ValueError):
    """The file is not, or not only, what `backup` writes; the message says what to do."""


@dataclass(frozen=True)
class Member:
    size: int
    sha256: str


class Archive:
    """An open backup whose manifest is of this kind of database and lists exactly what is there.

    Raises NotWhole where it does not.
    """

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        content = self._manifest()
        if content["database"] != connection.vendor:
            raise NotWhole(
                f"The backup is of {content['database']}; DATABASE_URL names {connection.vendor}. "
                "Set it to a database of the backup's kind."
            )
        self.members: dict[str, Member] = content["members"]
        self._check_headers()
        if self.database not in self.members:
            raise NotWhole("The backup holds no database. Choose another backup.")

    @property
    def database(self) -> str:
        """Name of the member that is the database."""
        return DATABASES[connection.vendor]

    @property
    def artifacts(self) -> list[str]:
        """Names of the members that are in artifact storage, without ARTIFACTS."""
        return [name.removeprefix(ARTIFACTS) for name in self.members if name.startswith(ARTIFACTS)]

    def open(self, name: str) -> IO[bytes]:
        """The member's content; raises KeyError where there is none, or no regular file."""
        file = self._tar.extractfile(name)
        if file is None:
            raise KeyError(name)
        return file

    def verify(self, name: str, target: IO[bytes] | None = None) -> None:
        """Read the member, into `target` if there is one; raises NotWhole if its digest differs."""
        with self.open(name) as source:
            if copy(source, target) != self.members[name]:
                raise NotWhole(
                    f"{name} in the backup is damaged: its SHA-256 differs. Choose another backup."
                )

    def _manifest(self) -> dict[str, Any]:
        try:
            with self.open(MANIFEST) as file:
                content = json.load(file)
            if content["format"] != FORMAT:
                raise NotWhole(
                    f"The backup has format {content['format']}, this code reads {FORMAT}. "
                    "Restore it with the version that made it."
                )
            members = {name: Member(**member) for name, member in content["members"].items()}
            return {"database": content["database"], "members": members}
        except NotWhole:
            raise
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise NotWhole(
                "The backup holds no manifest, or not one of ours: it is not whole. "
                "Choose another backup."
            ) from error

    def _check_headers(self) -> None:
        headers = self._tar.getmembers()
        for header in headers:
            if not header.isreg() or not SAFE_NAME.fullmatch(header.name):
                raise NotWhole(
                    f"The backup holds a member that no backup has: {header.name!r}. "
                    "Do not trust it."
                )
        present = [(header.name, header.size) for header in headers if header.name != MANIFEST]
        listed = [(name, member.size) for name, member in self.members.items()]
        if sorted(present) != sorted(listed):
            raise NotWhole(
                "The backup does not hold exactly what its manifest lists. Choose another backup."
            )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The backup at `path`; raises NotWhole."""
    try:
        with tarfile.open(path, mode="r:") as tar:
            yield Archive(tar)
    except tarfile.TarError as error:
        raise NotWhole(
            f"{path} cannot be read as a backup: {error}. Name a whole file that `backup` wrote."
        ) from error


class Writer:
    """Adds members to a tar file, hashing what is really written, and at the end the manifest."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self.members: dict[str, Member] = {}

    def add(self, name: str, source: IO[bytes]) -> None:
        """Add what `source` holds as member `name`, and close it.

        Raises ValueError where no backup may have such a name: it could not be restored.
        """
        if not SAFE_NAME.fullmatch(name):
            source.close()
            raise ValueError(f"{name!a} cannot be the name of a backup's member")
        self.members[name] = self._add(name, source)

    def finish(self) -> None:
        content = {
            "format": FORMAT,
            "made_at": datetime.now(UTC).isoformat(),
            "database": connection.vendor,
            "members": {name: asdict(member) for name, member in self.members.items()},
        }
        self._add(MANIFEST, io.BytesIO(json.dumps(content, indent=1).encode()))

    def _add(self, name: str, source: IO[bytes]) -> Member:
        with source:
            header = tarfile.TarInfo(name)
            header.size = source.seek(0, io.SEEK_END)
            header.mode = 0o600
            source.seek(0)
            hashing = _Hashing(source)
            self._tar.addfile(header, hashing)
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


def copy(source: IO[bytes], target: IO[bytes] | None) -> Member:
    """Copy `source` to `target`, if there is one; return its size and digest."""
    sha256, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        sha256.update(chunk)
        size += len(chunk)
        if target is not None:
            target.write(chunk)
    return Member(size, sha256.hexdigest())
