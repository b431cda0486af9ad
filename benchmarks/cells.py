"""Cells of a long benchmark in a JSON Lines file: appended as each ends, so that a run may stop."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Cells:
    """Records with a `key`, a JSON object that says which cell of which protocol each is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, Record] = {}
        if path.exists():
            _drop_torn_line(path)
            for line in path.read_text(encoding="utf-8").splitlines():
                self._hold(json.loads(line))

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return _text(key) in self._records

    def add(self, key: Mapping[str, Any], figures: Mapping[str, Any]) -> Record:
        """Write a cell, and have it on disk before anything else is computed."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key} | dict(figures), ensure_ascii=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        return self._hold(json.loads(line))

    def _hold(self, record: Record) -> Record:
        self._records[_text(record["key"])] = record
        return record


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _drop_torn_line(path: Path) -> None:
    """A process killed while it wrote leaves half a line, which is no cell."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
