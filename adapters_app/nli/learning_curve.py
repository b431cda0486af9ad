"""How a figure grows with the verdicts learnt from, and what more of them would bring.

A curve is measured on nested subsets of a user's own data and continued by a power law, the form
that fits most learning curves (Viering & Loog 2023, §4): from what the base shows towards a top.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from adapters_app.nli.bootstrap import redrawn_sums
from corrections.labels import LABELS

LEVEL = 0.8  # of every interval here
# Beyond four times the data a continued curve is a guess.
HORIZON = 4
# Chance of being reached within the horizon below which a target is out of reach.
OUT_OF_REACH = 0.1
_DRAWS = 100_000
_BOOTSTRAP_DRAWS = 1000
# Priors of the power law. What learning adds in the end: half-normal, median 13 points, nine in ten
# below 33; while any top was as likely as another, growth that was nearly over was continued.
# Exponents: median 0.5, nine in ten from 0.16 to 1.6, which spans those reported (Viering & Loog
# 2023, table 1; Hestness et al. 2017). Where the curve bends: 10 to 1,000 verdicts. What one
# training differs from the next by luck: half a point to 3 points.
_GAIN = 0.2
_RATE_MEDIAN, _RATE_SPREAD = 0.5, 0.7
_BENDS = (10.0, 1000.0)
_LUCK = (0.005, 0.03)


@dataclass(frozen=True, eq=False)
class Measured:
    """A figure at m sizes: values (m,), and how they err together over groups, (m, m)."""

    values: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class Range:
    """A median and the 80 % interval around it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Needed:
    """How many verdicts in all a target takes. Infinity: more than the horizon."""

    chance: float  # of reaching it within the horizon
    verdicts: Range


def measure(
    predicted: np.ndarray, labels: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> dict[str, Measured]:
    """Accuracy and macro-F1 at m sizes from the predicted columns (m, n) of n judged rows.

    The covariance is a bootstrap's over groups, drawn for all sizes at once: what is hard is hard
    at every size.
    """
    tables = _confusions(predicted, labels, groups, weights)
    count = len(tables)
    rng = np.random.default_rng(0)
    even = np.full(count, 1 / count)
    redrawn = redrawn_sums(
        tables, _BOOTSTRAP_DRAWS, lambda rows: rng.multinomial(count, even, size=rows)
    )
    every = tables.sum(axis=0)
    return {
        name: Measured(figure(every), np.atleast_2d(np.cov(figure(redrawn), rowvar=False)))
        for name, figure in (("accuracy", _accuracy), ("macro_f1", _macro_f1))
    }


class Projection:
    """The posterior of a power law under a curve that was measured.

    value(n) = top - (top - start) (1 + n / bend)^-rate, by importance sampling from the priors with
    a fixed seed; the likelihood is normal with the measured covariance and a training's luck.
    """

    def __init__(self, verdicts: np.ndarray, measured: Measured) -> None:
        """Fit to values at m sizes, `verdicts` (m,) learnt from; 0 is the base."""
        rng = np.random.default_rng(0)
        self._start = rng.random(_DRAWS)
        gain = _GAIN * np.abs(rng.standard_normal(_DRAWS))
        self._top = np.minimum(self._start + gain, 1.0)
        self._rate = _RATE_MEDIAN * np.exp(_RATE_SPREAD * rng.standard_normal(_DRAWS))
        earliest, latest = np.log(_BENDS)
        self._bend = np.exp(rng.uniform(earliest, latest, _DRAWS))
        luck = rng.uniform(*_LUCK, _DRAWS)
        self._weight = self._posterior(np.asarray(verdicts, dtype=float), measured, luck)
        # What is seen at a size is one training's, with its luck.
        self._seen_off = luck * rng.standard_normal(_DRAWS)

    def at(self, verdicts: float) -> Range:
        """The figure that one training on so many verdicts would show."""
        seen = np.clip(self._values(verdicts) + self._seen_off, 0.0, 1.0)
        return _range(seen, self._weight)

    def needed(self, target: float, *, now: int) -> Needed:
        """How many verdicts reach `target`, looking at most HORIZON times as far as `now`."""
        # (value - top) / (start - top) = (1 + n / bend)^-rate, solved for n.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            left = (self._top - target) / (self._top - self._start)
            verdicts = self._bend * (left ** (-1 / self._rate) - 1)
        verdicts = np.where(self._top > target, verdicts, np.inf)
        verdicts = np.where(self._start >= target, 0.0, verdicts)
        within = verdicts <= HORIZON * now
        verdicts = np.where(within, verdicts, np.inf)
        return Needed(float(self._weight[within].sum()), _range(verdicts, self._weight))

    def _values(self, verdicts: float) -> np.ndarray:
        left = (1 + verdicts / self._bend) ** -self._rate
        return self._top - (self._top - self._start) * left

    def _posterior(self, verdicts: np.ndarray, measured: Measured, luck: np.ndarray) -> np.ndarray:
        """(draws,) weight of each draw from the prior."""
        variances, axes = np.linalg.eigh(measured.covariance)
        residual = np.stack(
            [self._values(n) - value for n, value in zip(verdicts, measured.values, strict=True)],
            axis=1,
        )
        spread = np.maximum(variances, 0.0) + luck[:, None] ** 2
        log_likelihood = -((residual @ axes) ** 2 / spread + np.log(spread)).sum(axis=1) / 2
        weight = np.exp(log_likelihood - log_likelihood.max())
        return weight / weight.sum()


def flat(measured: Measured) -> Range:
    """What is expected if nothing more is gained: the last value, with its own interval."""
    last, error = float(measured.values[-1]), float(np.sqrt(measured.covariance[-1, -1]))
    half = float(norm.ppf((1 + LEVEL) / 2)) * error
    return Range(last, last - half, last + half)


def interval_score(found: Range, value: float) -> float:
    """Width of the interval and a penalty where it misses `value`; the lower, the better
    (Gneiting & Raftery 2007, eq. 43)."""
    missed = max(found.low - value, value - found.high, 0.0)
    return found.high - found.low + 2 / (1 - LEVEL) * missed


def _confusions(
    predicted: np.ndarray, labels: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(groups, m, 3, 3) weight of each true (row) and predicted (column) label."""
    names, group = np.unique(groups, return_inverse=True)
    shape = (len(names), len(LABELS), len(LABELS))
    tables = [
        np.bincount(
            np.ravel_multi_index((group, labels, columns), shape),
            weights,
            minlength=len(names) * len(LABELS) ** 2,
        ).reshape(shape)
        for columns in predicted
    ]
    return np.stack(tables, axis=1)


def _accuracy(tables: np.ndarray) -> np.ndarray:
    """Of confusions (…, 3, 3)."""
    return np.trace(tables, axis1=-2, axis2=-1) / tables.sum(axis=(-2, -1))


def _macro_f1(tables: np.ndarray) -> np.ndarray:
    """Of confusions (…, 3, 3); a label neither present nor predicted counts 0."""
    hits = np.diagonal(tables, axis1=-2, axis2=-1)
    both = tables.sum(axis=-1) + tables.sum(axis=-2)
    return np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0).mean(axis=-1)


def _range(values: np.ndarray, weight: np.ndarray) -> Range:
    """Weighted median and 80 % interval."""
    order = np.argsort(values)
    reached = weight[order].cumsum()
    at = np.searchsorted(reached, [0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Range(*(float(values[order[min(i, len(order) - 1)]]) for i in at))
