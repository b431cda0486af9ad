"""Redrawing groups with replacement, in blocks: memory does not grow with draws times groups."""

from collections.abc import Callable, Sequence

import numpy as np

BLOCK = 2**20  # entries (draws times groups) at a time; with its copies some 25 MB
# Matrix products add up so many rows alike: a row's sums are the same in any block of such.
KERNEL_ROWS = 8


def redrawn_sums(values: np.ndarray, draws: int, copies: Callable[[int], np.ndarray]) -> np.ndarray:
    """(draws, …) sums of values (groups, …), each group as often as it was drawn.

    `copies(rows)` says for the next so many draws how often each group is in them, (rows, groups).
    """
    return np.concatenate(
        [np.tensordot(copies(rows), values, axes=1) for rows in _blocks(draws, len(values))]
    )


def _blocks(draws: int, groups: int) -> Sequence[int]:
    """Rows of each block, about as many in the last one as in the others."""
    wanted = -(-draws // (draws * groups // BLOCK + 1))
    rows = -(-wanted // KERNEL_ROWS) * KERNEL_ROWS
    return [min(rows, draws - start) for start in range(0, draws, rows)]
