"""Weighted shares of clustered rows: Hájek's ratio, its standard error over groups, its interval.

numpy only: the first page and the API compute live figures with it and import neither scipy nor
torch. `weights` (n,) are inverse sampling probabilities, `groups` (n,) the pages rows come from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """The share of something among all rows, estimated from those drawn, with a 95 % interval."""

    estimate: float
    low: float
    high: float
    rows: int
    groups: int
    effective_groups: float

    @property
    def complement(self) -> "Share":
        """The share of everything else."""
        return Share(
            1 - self.estimate,
            1 - self.high,
            1 - self.low,
            self.rows,
            self.groups,
            self.effective_groups,
        )


def share(
    hits: np.ndarray,
    weights: np.ndarray,
    groups: np.ndarray,
    claims: np.ndarray | None = None,
) -> Share:
    """Hájek's estimate of the share of rows with `hits` (n,) 0 or 1, n ≥ 1.

    The interval is Wilson's at the effective sample size, p (1 - p) over the variance between
    groups (Korn & Graubard 1998; Dean & Pagano 2015), with the t quantile of Kish's effective
    number of groups: it stays inside [0, 1], copying rows inside a page does not narrow it, and
    unlike ± 1.96 standard errors it holds near 1 and with few pages. Answers to one claim (n,) are
    alike on whatever page, so that the variance is that of two-way clusters, see
    `two_way_error`, and the smaller of both effective numbers counts. One group tells nothing about
    others, nor does one claim: the interval is everything.
    """
    total, size = group_sums(hits, weights, groups)
    estimate = float(total.sum() / size.sum())
    both = [groups] if claims is None else [groups, claims]
    effective = min(effective_groups(of, weights) for of in both)
    fewest = min(len(np.unique(of)) for of in both)
    if fewest < 2:
        return Share(estimate, 0.0, 1.0, len(hits), len(size), effective)
    error = two_way_error(hits, weights, both, estimate)
    # Where all rows agree nothing is known of how alike a page's rows are: its pages count. Pages
    # that agree by chance are not more than their rows, of which few heavy ones among many light
    # ones are few (Kish's effective number): the light ones say nothing of what those stand for.
    n = effective
    if error > 0:
        n = min(estimate * (1 - estimate) / error**2, weights.sum() ** 2 / (weights**2).sum())
    t2 = t_quantile(max(effective - 1, 1.0)) ** 2
    centre = (estimate + t2 / (2 * n)) / (1 + t2 / n)
    half = math.sqrt(t2 * estimate * (1 - estimate) / n + (t2 / (2 * n)) ** 2) / (1 + t2 / n)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Share(estimate, low, high, len(hits), len(size), effective)


def group_sums(
    values: np.ndarray, weights: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each group's weighted sum of `values` (n,) and its weight, both (number of groups,)."""
    _, index = np.unique(groups, return_inverse=True)
    return np.bincount(index, weights=weights * values), np.bincount(index, weights=weights)


def pooled_weights(weights: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Weights (n,) with which several samples are pooled, each counting as much as it has rows.

    `samples` (n,) says which one a row is of. Inverse probabilities compare rows of one sample
    only: taken as they are, they mix the populations by their sizes, so that what many rows tell of
    a small one is drowned by few rows from a large one, and twice the traffic shifts the figure.
    Scaled to their numbers of rows, each sample's own estimate stays and is weighted about as well
    as it is known (Kish 1999, “Cumulating/combining population surveys”, Survey Methodology 25).
    """
    _, index, rows = np.unique(samples, return_inverse=True, return_counts=True)
    pooled: np.ndarray = weights * (rows / np.bincount(index, weights=weights))[index]
    return pooled


def ratio_error(total: np.ndarray, size: np.ndarray, ratio: float) -> float:
    """Linearised standard error of sum(total) / sum(size) over ≥ 2 groups (Cochran 1977, §6.4)."""
    count = len(size)
    residual = total - ratio * size
    return float(np.sqrt(count / (count - 1) * (residual**2).sum()) / size.sum())


def two_way_error(
    hits: np.ndarray, weights: np.ndarray, clusters: Sequence[np.ndarray], ratio: float
) -> float:
    """`ratio_error` of n rows by one or two kinds of clusters (n,), each ≥ 2 of them.

    Of two the variances are added, less that by both at once (Cameron, Gelbach & Miller 2011); it
    is at least the larger of the two, which that difference may fall short of by chance.
    """
    errors = [ratio_error(*group_sums(hits, weights, of), ratio) for of in clusters]
    if len(clusters) < 2:
        return errors[0]
    numbers = np.stack([np.unique(of, return_inverse=True)[1] for of in clusters])
    _, cells = np.unique(numbers[0] * len(hits) + numbers[1], return_inverse=True)
    of_both = ratio_error(*group_sums(hits, weights, cells), ratio)
    return max(*errors, math.sqrt(max(errors[0] ** 2 + errors[1] ** 2 - of_both**2, 0.0)))


def jackknife_error(total: np.ndarray, size: np.ndarray) -> float:
    """Standard error of sum(total) / sum(size), leaving out one of ≥ 2 groups at a time.

    CV3 of MacKinnon, Nielsen & Webb (2023, “Cluster-robust inference: a guide to empirical
    practice”): where one group holds much of the weight the linearised error is too small, because
    the ratio follows that group.
    """
    count = len(size)
    without = (total.sum() - total) / (size.sum() - size)
    change = without - total.sum() / size.sum()
    return float(np.sqrt((count - 1) / count * (change**2).sum()))


def effective_groups(groups: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Kish's effective number of groups: (Σw)² / Σ(w of a group)²."""
    even = np.ones(len(groups)) if weights is None else np.asarray(weights, dtype=float)
    size, _ = group_sums(even, np.ones(len(even)), groups)
    return float(size.sum() ** 2 / (size**2).sum())


def t_quantile(freedom: float) -> float:
    """Two-sided 95 % quantile of Student's t, from the normal one (Abramowitz & Stegun 26.7.5).

    Within 0.3 % from 4 degrees of freedom on, 3 % short at 2, a quarter short at 1.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
