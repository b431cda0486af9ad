"""Rows dealt into parts, groups whole: training and measuring share no page and no text."""

from collections.abc import Sequence

from sklearn.model_selection import StratifiedGroupKFold

from adapters_app.nli.encoding import Pair


def deal(
    labels: Sequence[str], groups: Sequence[str], *, parts: int, number: int
) -> tuple[list[int], list[int]]:
    """Split `number`: indices of the rows to learn from, and of one part in `parts`, held out.

    Labels are balanced as far as whole groups allow. Splits 0 to parts - 1 hold out every group
    once, the next `parts` do so after another shuffle, and so on.

    Raises:
        ValueError: a label with fewer rows than parts.
    """
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=number // parts)
    inside, outside = list(folds.split(labels, labels, groups))[number % parts]
    return inside.tolist(), outside.tolist()


def unseen(pairs: Sequence[Pair], inside: Sequence[int], outside: Sequence[int]) -> list[int]:
    """Those of `outside` that share neither premise nor hypothesis with a pair of `inside`.

    A held-out pair with a known text would be recognised, not understood.
    """
    known = {text for i in inside for text in pairs[i]}
    return [i for i in outside if known.isdisjoint(pairs[i])]
