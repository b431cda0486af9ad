"""The frozen guard set: general NLI pairs written for this project, never trained on.

And what can be made of its texts without labels: where two models give the same answer, neither can
have lost anything to the other, whatever the right answer is.
"""

import functools
import hashlib
import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapters_app.nli.encoding import Pair
from corrections.labels import Label

PATH = Path(__file__).parent / "bases" / "guard.jsonl"


@dataclass(frozen=True)
class GuardSet:
    """`labels`: column indices (n,); `groups` (n,): pairs of one hypothesis; `phenomena`: one name
    per row; `digest`: of the file."""

    pairs: tuple[Pair, ...]
    labels: np.ndarray
    groups: np.ndarray
    phenomena: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.pairs)


@functools.cache
def load() -> GuardSet:
    """Read the guard set that ships with the bases."""
    content = PATH.read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]
    numbers: dict[tuple[str, str], int] = {}
    return GuardSet(
        pairs=tuple((row["premise"], row["hypothesis"]) for row in rows),
        labels=np.array([Label(row["label"]).column for row in rows]),
        groups=np.array(
            [
                numbers.setdefault((row["phenomenon"], row["hypothesis"]), len(numbers))
                for row in rows
            ]
        ),
        phenomena=tuple(row["phenomenon"] for row in rows),
        digest=hashlib.sha256(content).hexdigest(),
    )


@dataclass(frozen=True)
class UnlabelledPairs:
    """General pairs nobody labelled; `groups` (n,): those that share texts."""

    pairs: tuple[Pair, ...]
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)


@functools.cache
def unlabelled() -> UnlabelledPairs:
    """3,180 pairs of the guard set's texts: the 600 of the set first, then new ones.

    Of each hypothesis and its premises: every pair turned round, every premise with each of the
    others, and all of them with the next hypothesis of the phenomenon. Most are on one matter, so
    that a model has something to change its mind about; and no text is an anchor's, on which a
    training is held to the base.
    """
    guard_set = load()
    pairs = list(guard_set.pairs)
    groups = guard_set.groups.tolist()
    premises: dict[tuple[str, str], list[str]] = defaultdict(list)
    numbers = {}
    for phenomenon, (premise, hypothesis), group in zip(
        guard_set.phenomena, guard_set.pairs, groups, strict=True
    ):
        premises[phenomenon, hypothesis].append(premise)
        numbers[phenomenon, hypothesis] = group
    for key, following in _next_of_its_phenomenon(list(premises)).items():
        own = premises[key]
        made = [(key[1], premise) for premise in own]
        made += itertools.permutations(own, 2)
        made += [(text, following) for text in (key[1], *own)]
        pairs += made
        groups += [numbers[key]] * len(made)
    return UnlabelledPairs(tuple(pairs), np.array(groups))


def _next_of_its_phenomenon(keys: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """For each (phenomenon, hypothesis) the hypothesis after it, the first after the last."""
    of: dict[str, list[str]] = defaultdict(list)
    for phenomenon, hypothesis in keys:
        of[phenomenon].append(hypothesis)
    return {
        (phenomenon, hypothesis): following
        for phenomenon, hypotheses in of.items()
        for hypothesis, following in zip(hypotheses, hypotheses[1:] + hypotheses[:1], strict=True)
    }
