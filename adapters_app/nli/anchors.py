"""General NLI pairs without labels, written for this project: what a fit is held to the base on."""

import functools
import hashlib
import json
from pathlib import Path

from adapters_app.nli.encoding import Pair

PATH = Path(__file__).parent / "bases" / "anchors.jsonl"


@functools.cache
def load() -> tuple[Pair, ...]:
    """Read the anchors that ship with the bases; none of them stands in the guard set."""
    rows = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
    return tuple((row["premise"], row["hypothesis"]) for row in rows)


def digest() -> str:
    """SHA-256 of the file, for an artifact's manifest."""
    return hashlib.sha256(PATH.read_bytes()).hexdigest()
