"""The three NLI labels, in the one order that every array in the project uses. Stdlib only."""

from enum import StrEnum


class Label(StrEnum):
    SUPPORTS = "supports"
    REFUTES = "refutes"
    NEUTRAL = "neutral"

    @property
    def column(self) -> int:
        """Column of this label in every (n, 3) array of logits or probabilities."""
        return LABELS.index(self)


LABELS: tuple[Label, ...] = tuple(Label)
