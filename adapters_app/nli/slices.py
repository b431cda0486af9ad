"""Where a candidate gains and loses: two models compared on each slice of the same rows.

A gain over all rows can hide that one label, or one field, is answered worse.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from adapters_app.nli.hajek import effective_groups
from adapters_app.nli.metrics import LOSS_LEVEL, Difference, paired_difference

MOST = 20  # slices of a kind, the largest
# What a slice needs to be judged at all; `metrics.enough` is for the verdict on all rows.
MIN_ROWS = 20
MIN_EFFECTIVE_GROUPS = 10


@dataclass(frozen=True)
class Slice:
    """The rows of one name: shares right, weighted, of A (incumbent) and B (candidate)."""

    name: str
    rows: int
    groups: int
    effective_groups: float  # of groups or of claims, whichever are fewer
    a: float
    b: float
    difference: Difference  # with a 95 % interval
    lost: bool = False  # B is worse here, surely enough for so many slices

    @property
    def enough(self) -> bool:
        """Whether it may show anything."""
        return self.rows >= MIN_ROWS and self.effective_groups >= MIN_EFFECTIVE_GROUPS

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"enough": self.enough}


def compare_slices(
    kinds: Mapping[str, np.ndarray],
    answers_a: np.ndarray,
    answers_b: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray,
    *,
    claims: np.ndarray,
    seed: int = 0,
) -> dict[str, list[Slice]]:
    """Compare B with A on the slices of each kind, the largest first.

    A slice has lost where there is one-sided evidence at LOSS_LEVEL over the number of all slices
    that may show anything: of equals one is called lost in at most so many comparisons
    (Bonferroni's inequality).

    Args:
        kinds: by its name, (n,) the slice of each row; "" is none.
        answers_a, answers_b: (n,) columns that the models say.
        labels: (n,) columns that are right; `groups`, `weights`, `claims` (n,) as of
            `metrics.compare`.
    """

    def one(at: np.ndarray, name: str) -> Slice:
        a, b = answers_a[at] == labels[at], answers_b[at] == labels[at]
        return Slice(
            name=name,
            rows=len(a),
            groups=len(np.unique(groups[at])),
            effective_groups=min(
                effective_groups(each[at], weights[at]) for each in (groups, claims)
            ),
            a=float(np.average(a, weights=weights[at])),
            b=float(np.average(b, weights=weights[at])),
            difference=paired_difference(
                b.astype(float) - a.astype(float),
                groups[at],
                weights[at],
                claims=claims[at],
                seed=seed,
            ),
        )

    found = {
        kind: [one(names == name, name) for name, _ in Counter(_named(names)).most_common(MOST)]
        for kind, names in kinds.items()
    }
    judged = sum(each.enough for slices in found.values() for each in slices)
    return {
        kind: [
            replace(each, lost=each.enough and each.difference.p_loss < LOSS_LEVEL / judged)
            for each in slices
        ]
        for kind, slices in found.items()
    }


def _named(names: np.ndarray) -> list[str]:
    return [str(name) for name in names if name]
