"""Is the released adapter itself better? A bet on its gain that may be looked at after every page.

An e-process after Waudby-Smith & Ramdas (2024, “Estimating means of bounded random variables by
betting”, JRSS B 86): money is put on the next page showing a gain. If there is none to show, no way
of betting makes money in expectation, and by Ville's inequality the wealth ever reaches 20 times
the first stake with probability 1/20 at most. So one may look as often as one likes and stop at
will. numpy only.
"""

from dataclasses import dataclass

import numpy as np

ACCEPT_AT = 20.0
# Shares of the wealth staked side by side: the mean of the e-values is one too (“diversified Kelly
# betting”), and no share has to be guessed. From the paper's limit of a half down to 1/32, Kelly's
# share (gain over variance) of a gain of 0.8 points where models disagree on a quarter of the rows.
STAKES = 0.5 ** np.arange(1, 6)


@dataclass(frozen=True)
class Bet:
    """What betting on a gain has come to."""

    rows: int  # verdicts bet on
    pages: int
    disagreements: int  # rows of those that the two models answer differently
    wealth: float  # the e-value as of the last page
    peak: float  # the highest e-value after any page

    @property
    def confirmed(self) -> bool:
        """Whether the e-value has ever reached 20; what happens afterwards takes nothing back."""
        return self.peak >= ACCEPT_AT


def bet_on_gain(
    right_a: np.ndarray,
    right_b: np.ndarray,
    differ: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray,
    *,
    most: int = 1,
) -> Bet:
    """Bet that B is right more often than A, on n rows in the order of their review.

    `right_a`, `right_b` (n,) say whether each is right, `differ` (n,) whether their answers differ,
    `groups` (n,) are pages, `weights` (n,) inverse sampling probabilities. Pages are the unit,
    because the rows of one are alike: see `first_runs` for the rows that count. `most` is how many
    disagreements a page is known to have had elsewhere, see `wealth`.
    """
    counted, page = first_runs(groups)
    gains = (right_b.astype(float) - right_a.astype(float))[counted]
    heavy = np.where(differ, weights, 0.0)[counted]
    pages = int(page[-1]) + 1 if len(page) else 0
    path = wealth(
        totals=np.bincount(page, weights=heavy * gains, minlength=pages),
        disagreements=np.bincount(page, weights=heavy > 0, minlength=pages),
        heaviest=_largest_so_far(heavy, page, pages),
        most=most,
    )
    return Bet(
        rows=len(counted),
        pages=pages,
        disagreements=int((heavy > 0).sum()),
        wealth=float(path[-1]) if pages else 1.0,
        peak=float(max(path.max(initial=1.0), 1.0)),
    )


def wealth(
    totals: np.ndarray, disagreements: np.ndarray, heaviest: np.ndarray, *, most: int = 1
) -> np.ndarray:
    """(pages,) e-value after each page, from its weighted gain, all (pages,).

    A page of k disagreements and weights of at most b has a total between -k·b and k·b, and both
    are known before anybody has judged it. With K the most of k on any page so far, `most` to begin
    with, the stake is g / b, but at most 1 / (2·K·b): no page can cost more than half of the
    wealth. It must not follow the page's own k: more would be staked per row where the models
    disagree little, and a gain there be taken for a gain on all rows. So only a page that breaks
    the record has a stake of its own, and `most` makes such pages few. Horvitz-Thompson totals have
    the mean of a full count, so the bet is fair whatever the sampling probabilities are.
    """
    scale = np.maximum(heaviest, np.finfo(float).tiny)
    limit = 0.5 / np.maximum.accumulate(np.maximum(disagreements, most))
    stakes = np.minimum(STAKES[:, None], limit[None, :]) / scale
    growth = np.log1p(stakes * totals).cumsum(axis=1)
    path: np.ndarray = np.exp(growth).mean(axis=0)
    return path


def first_runs(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions (m,) of the rows that count, and which page 0, 1, … in order each is of (m,).

    A page counts with the verdicts on it up to the first one on another page: what is said of it
    later is no news of its own once its first verdicts are known. The last page may still be in
    review, and betting on half of it and again on all of it is not one bet; it waits.
    """
    if not len(groups):
        return np.empty(0, dtype=int), np.empty(0, dtype=int)
    run = np.concatenate([[0], np.cumsum(groups[1:] != groups[:-1])])
    starts = np.flatnonzero(np.diff(run, prepend=-1))
    _, first = np.unique(groups[starts], return_index=True)
    opened = np.sort(first[first < run[-1]])
    counted = np.flatnonzero(np.isin(run, opened))
    return counted, np.searchsorted(opened, run[counted])


def _largest_so_far(weights: np.ndarray, page: np.ndarray, pages: int) -> np.ndarray:
    """(pages,) largest weight of each page and those before it."""
    largest = np.zeros(pages)
    np.maximum.at(largest, page, weights)
    return np.maximum.accumulate(largest)
