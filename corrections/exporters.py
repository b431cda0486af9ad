"""Writing verdicts to JSON Lines or CSV such that importing the file into an empty system, and
exporting again, gives the same file. The history of edits stays behind.
"""

import csv
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import IO, Any

from django.db.models import QuerySet

from corrections.models import Correction

# Columns in the order they are written; `importers.NAMES` reads every one of them.
COLUMNS = (
    "id",
    "premise",
    "hypothesis",
    "predicted_label",
    "predicted_confidence",
    "predicted_version",
    "predicted_digest",
    "correct_label",
    "sampling",
    "sampling_probability",
    "reason",
    "domain",
    "page_id",
    "group",
    "fold",
    "annotator",
    "corrected_at",
    "revision",
    "status",
    "reviewer",
    "reviewed_at",
    "review_note",
    "quarantine",
)


def write_jsonl(rows: Iterable[Correction], file: IO[str]) -> int:
    """Write one JSON object a line; how many."""
    written = 0
    for line in jsonl_lines(rows):
        file.write(line)
        written += 1
    return written


def jsonl_lines(rows: Iterable[Correction]) -> Iterator[str]:
    """One JSON object a line, with the line's end."""
    for row in rows:
        yield json.dumps(as_dict(row), ensure_ascii=False) + "\n"


def write_csv(rows: Iterable[Correction], file: IO[str]) -> int:
    """Write a header and one line a row, empty cells for what is unknown; how many rows."""
    # The default line end, CR LF, is what makes the writer quote a text that holds either.
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    written = 0
    for row in rows:
        writer.writerow(as_dict(row))
        written += 1
    return written


WRITERS: dict[str, Callable[[Iterable[Correction], IO[str]], int]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
}


def exported(rows: QuerySet[Correction]) -> Generator[Correction, None, None]:
    """Those of the rows in the order they were recorded, streamed."""
    ordered = rows.select_related("group", "reviewer").order_by("pk")
    yield from ordered.iterator(chunk_size=2000)


def as_dict(row: Correction) -> dict[str, Any]:
    """The row under its column names, JSON types only."""
    special = {
        "id": row.external_id,
        "group": row.group.key,
        "fold": row.group.fold,
        "corrected_at": row.corrected_at.isoformat(),
        "reviewer": row.reviewed_by,
        "reviewed_at": row.reviewed_at.isoformat() if row.reviewed_at else None,
    }
    return {name: special[name] if name in special else getattr(row, name) for name in COLUMNS}
