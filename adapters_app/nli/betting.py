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
# Share of the disagreements that may be left out of the bet. What is left out comes from long pages
# and frequent claims, so a bet on the rest is one on a gain per page. Up to here the gain of a
# disagreement that counts and that of any cannot lie further than about 0.1 apart.
DROPPED_AT_MOST = 0.05


@dataclass(frozen=True)
class Bet:
    """What betting on a gain has come to."""

    rows: int  # verdicts bet on
    pages: int
    disagreements: int  # rows of those that the two models answer differently
    # Both as of those pages until whose end no more than DROPPED_AT_MOST was dropped; else 1.
    wealth: float  # the e-value as of the last such page
    peak: float  # the highest e-value after any such page
    dropped: float  # share of the disagreements, by weight, that do not count; see `bet_on_gain`

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
    claims: np.ndarray | None = None,
    most: int = 1,
) -> Bet:
    """Bet that B is right more often than A, on n rows in the order of their review.

    `right_a`, `right_b` (n,) say whether each is right, `differ` (n,) whether their answers differ,
    `groups` (n,) are pages, `weights` (n,) inverse sampling probabilities, `claims` (n,) what the
    rows are about, each something else where there is None. Pages are the unit, because the rows of
    one are alike: see `first_runs` for the rows that count. A claim counts with the verdicts on the
    first page that it is judged on: what it is worth on the next is no news. `most` is how many
    disagreements a page is known to have had elsewhere, see `wealth`.

    Verdicts in mixed order leave about one row of each page, and models that are equal per row may
    well differ per page. So the e-value speaks only while nearly all disagreements count. That is
    known at each look, and leaving looks out confirms no more: Ville's inequality is of them all.
    """
    fresh = np.ones(len(groups), dtype=bool) if claims is None else _first_pages(claims, groups)
    rows = np.flatnonzero(fresh)
    runs, page = first_runs(groups[rows])
    counted = rows[runs]
    pages = int(page[-1]) + 1 if len(page) else 0
    gains = (right_b.astype(float) - right_a.astype(float))[counted]
    at_stake = np.where(differ, weights, 0.0)
    heavy = at_stake[counted]
    path = wealth(
        totals=np.bincount(page, weights=heavy * gains, minlength=pages),
        disagreements=np.bincount(page, weights=heavy > 0, minlength=pages),
        heaviest=_largest_so_far(heavy, page, pages),
        most=most,
    )
    # All that does not count, but for the last page: that one waits.
    left_out = ~fresh | np.isin(groups, groups[counted])
    left_out[counted] = False
    lost = np.where(left_out, at_stake, 0.0).cumsum()
    # A page ends with the row after its last one, which may itself be one that is left out.
    ends = rows[runs[np.searchsorted(page, np.arange(pages), side="right") - 1] + 1]
    kept = np.bincount(page, weights=heavy, minlength=pages).cumsum()
    spoken = path[lost[ends] <= DROPPED_AT_MOST * (lost[ends] + kept)]
    return Bet(
        rows=len(counted),
        pages=pages,
        disagreements=int((heavy > 0).sum()),
        wealth=float(spoken[-1]) if len(spoken) else 1.0,
        peak=float(max(spoken.max(initial=1.0), 1.0)),
        dropped=_share(at_stake[left_out].sum(), heavy.sum()),
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


def _first_pages(claims: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(n,) whether each row is on the first page that its claim is judged on."""
    _, first, claim = np.unique(claims, return_index=True, return_inverse=True)
    found: np.ndarray = groups == groups[first][claim]
    return found


def _share(part: float, rest: float) -> float:
    return float(part / (part + rest)) if part else 0.0


def _largest_so_far(weights: np.ndarray, page: np.ndarray, pages: int) -> np.ndarray:
    """(pages,) largest weight of each page and those before it."""
    largest = np.zeros(pages)
    np.maximum.at(largest, page, weights)
    return np.maximum.accumulate(largest)
