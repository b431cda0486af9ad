"""Labelled pairs from files. Imports no Django."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, str]  # premise, hypothesis, label, source, group


def read(paths: Iterable[Path]) -> list[Row]:
    """All rows of gzipped JSON Lines files."""
    rows = []
    for path in sorted(paths):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    return rows


def texts(rows: Iterable[Row]) -> set[str]:
    """Every premise and hypothesis of `rows`.

    A held-out pair that shares one with training would be recognised, not understood.
    """
    return {row[text] for row in rows for text in ("premise", "hypothesis")}
