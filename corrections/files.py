"""Files that appear when all of them is on disk: nobody sees half of one, also where it is full."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[IO[bytes]]:
    """A file that becomes `path` when all of it is on disk; readable by its owner only."""
    with _beside(path, mode="xb") as file:
        yield file


@contextlib.contextmanager
def text_beside(path: Path) -> Iterator[IO[str]]:
    """The same for text in UTF-8, also where `path` is a link. A pipe or a device is written to as
    it is."""
    place = path.resolve()
    if place.exists() and not place.is_file():
        with place.open("w", encoding="utf-8", newline="") as device:
            yield device
        return
    with _beside(place, mode="x", encoding="utf-8", newline="") as file:
        yield file


@contextlib.contextmanager
def _beside(path: Path, **how: Any) -> Iterator[IO[Any]]:
    """`how`: as for `open`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)  # of a process that was killed and had our number
    try:
        with open(beside, opener=private, **how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_directory(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def private(path: str, flags: int) -> int:
    """An opener for files that only their owner may read."""
    return os.open(path, flags, 0o600)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
