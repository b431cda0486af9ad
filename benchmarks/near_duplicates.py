"""How long imports and near-duplicate look-ups take. Prints a table; fails where a limit is broken.

    python benchmarks/near_duplicates.py [--rows 100000] [--work DIR]

Limits: a look-up at 100,000 rows ≤ 50 ms; an import of 10,000 rows, without prediction, ≤ 10 s.
Works on an SQLite database of its own in a temporary directory.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import django

if TYPE_CHECKING:
    from corrections.drafts import ParsedRow

ROOT = Path(__file__).resolve().parent.parent
LOOKUP_LIMIT_MS, IMPORT_LIMIT_S, IMPORT_ROWS = 50, 10, 10_000
LOOKUPS = 200
LABELS = ("supports", "refutes", "neutral")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        _start(home)
        texts = _texts(arguments.rows)
        imports = _time_imports(texts)
        found, lookups = _time_lookups(texts)
    print(f"{'import of 10,000 rows':32} first {imports[0]:6.2f} s   last {imports[-1]:6.2f} s")
    print(
        f"{f'look-up at {len(texts):,} rows':32} median {statistics.median(lookups):5.1f} ms   "
        f"longest {max(lookups):5.1f} ms"
    )
    print(f"{'near-duplicates found':32} {found} of {LOOKUPS}")
    kept = max(imports) <= IMPORT_LIMIT_S and statistics.median(lookups) <= LOOKUP_LIMIT_MS
    return 0 if kept and found >= 0.99 * LOOKUPS else 1


def _start(home: str) -> None:
    sys.path.insert(0, str(ROOT))
    os.environ |= {"LYRA_HOME": home, "DJANGO_SETTINGS_MODULE": "lyra_site.settings"}
    django.setup()
    from django.core.management import call_command  # noqa: PLC0415  needs the settings

    call_command("migrate", verbosity=0)


def _texts(rows: int) -> list[str]:
    """Premises of 20 to 60 words out of 5,000, frequent words being frequent."""
    random.seed(7)
    vocabulary = [
        "".join(random.choices("aeioulnrstdmkpgb", k=random.randint(2, 11))) for _ in range(5000)
    ]
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
    return [
        " ".join(random.choices(vocabulary, weights, k=random.randint(20, 60))) for _ in range(rows)
    ]


def _time_imports(texts: list[str]) -> list[float]:
    """Seconds of each import of 10,000 rows, into a database that grows."""
    from corrections.acting import system_user  # noqa: PLC0415
    from corrections.intake import import_corrections  # noqa: PLC0415

    seconds = []
    for start in range(0, len(texts), IMPORT_ROWS):
        began = time.perf_counter()
        report = import_corrections(
            _rows(texts, start), by=system_user(), accept=True, sampling="complete"
        )
        seconds.append(time.perf_counter() - began)
        print(f"{start + report.created:>9,} rows: {seconds[-1]:.2f} s", file=sys.stderr)
    return seconds


def _rows(texts: list[str], start: int) -> "Iterator[ParsedRow]":
    from corrections.drafts import ParsedRow  # noqa: PLC0415

    for number, text in enumerate(texts[start : start + IMPORT_ROWS], start=start):
        fields = {
            "external_id": f"b{number}",
            "page_id": f"page {number // 4}",
            "premise": text,
            "hypothesis": f"Claim {number}.",
            "predicted_label": LABELS[number % 2],
            "predicted_confidence": 0.7,
            "correct_label": LABELS[number % 3],
        }
        yield ParsedRow(number - start + 1, fields)


def _time_lookups(texts: list[str]) -> tuple[int, list[float]]:
    """How many of the near-duplicates were found, and the milliseconds each look-up took."""
    from corrections.folds import near_duplicate  # noqa: PLC0415

    found, milliseconds = 0, []
    for text in random.sample(texts, LOOKUPS):
        words = text.split()
        words[random.randrange(len(words))] = "changed"
        began = time.perf_counter()
        found += near_duplicate(" ".join(words)) is not None
        milliseconds.append(1000 * (time.perf_counter() - began))
    return found, milliseconds


if __name__ == "__main__":
    sys.exit(main())
