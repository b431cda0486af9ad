"""The frozen guard set: general NLI pairs written for this project, never trained on."""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapters_app.nli.encoding import Pair
from corrections.labels import Label

PATH = Path(__file__).parent / "bases" / "guard.jsonl"


@dataclass(frozen=True)
class GuardSet:
    """`labels`: column indices (n,); `phenomena`: one name per row; `digest`: of the file."""

    pairs: tuple[Pair, ...]
    labels: np.ndarray
    phenomena: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.pairs)


@functools.cache
def load() -> GuardSet:
    """Read the guard set that ships with the bases."""
    content = PATH.read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]
    return GuardSet(
        pairs=tuple((row["premise"], row["hypothesis"]) for row in rows),
        labels=np.array([Label(row["label"]).column for row in rows]),
        phenomena=tuple(row["phenomenon"] for row in rows),
        digest=hashlib.sha256(content).hexdigest(),
    )
