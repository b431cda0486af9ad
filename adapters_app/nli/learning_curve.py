"""How a figure grows with the verdicts learnt from, and what more of them would bring.

A curve is measured on nested subsets of a user's own data and continued by a power law, the form
that fits most learning curves (Viering & Loog 2023, §4): from what the base shows towards a top.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import norm

from adapters_app.nli.bootstrap import redrawn_sums
from corrections.labels import LABELS

LEVEL = 0.8  # of every interval here
# Beyond four times the data a continued curve is a guess.
HORIZON = 4
# Chance of being reached within the horizon below which a target is out of reach.
OUT_OF_REACH = 0.1
_DRAWS = 100_000
# Draws that are to be left by Kish's effective number; of 16 among 100,000 the seed decides.
_ENOUGH = 2000
_MOST_ROUNDS = 20  # two are usual
_PARAMETERS = 5  # start, gain, rate, bend, luck
_FREEDOM = 5  # of the t distribution that is drawn from after the prior
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

    value(n) = top - (top - start) (1 + n / bend)^-rate, with the priors above; the likelihood is
    normal with the measured covariance and a training's luck. By importance sampling with a fixed
    seed: from the prior, and where what is known leaves too few of those draws, from a t
    distribution fitted to them, and again (Cappé et al. 2004, “Population Monte Carlo”; Oh & Berger
    1992). Takes 0.05 to 0.3 seconds.
    """

    def __init__(self, verdicts: np.ndarray, measured: Measured, *, seed: int = 0) -> None:
        """Fit to values at m sizes, `verdicts` (m,) learnt from; 0 is the base."""
        rng = np.random.default_rng(seed)
        sizes = np.asarray(verdicts, dtype=float)
        best = -1.0
        point, drawn_with = rng.standard_normal((_DRAWS, _PARAMETERS)), None
        for _ in range(_MOST_ROUNDS):
            prior = -(point**2).sum(axis=1) / 2
            drawn = _Drawn.at(point)
            likelihood = drawn.log_likelihood(sizes, measured)
            more = prior - (prior if drawn_with is None else drawn_with)
            weight = _normalised(more + likelihood)
            effective = _effective(weight)
            if effective > best:
                best, self._drawn, self._weight = effective, drawn, weight
            if effective >= _ENOUGH:
                break
            point, drawn_with = _closer(rng, point, more, likelihood)
        # What is seen at a size is one training's, with its luck.
        self._seen_off = self._drawn.luck * rng.standard_normal(_DRAWS)

    @property
    def effective_draws(self) -> float:
        """Kish's effective number of the draws that stand for the posterior."""
        return _effective(self._weight)

    def at(self, verdicts: float) -> Range:
        """The figure that one training on so many verdicts would show."""
        seen = np.clip(self._drawn.values(verdicts) + self._seen_off, 0.0, 1.0)
        return _range(seen, self._weight)

    def needed(self, target: float, *, now: int) -> Needed:
        """How many verdicts reach `target`, looking at most HORIZON times as far as `now`."""
        # (value - top) / (start - top) = (1 + n / bend)^-rate, solved for n.
        drawn = self._drawn
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            left = (drawn.top - target) / (drawn.top - drawn.start)
            verdicts = drawn.bend * (left ** (-1 / drawn.rate) - 1)
        verdicts = np.where(drawn.top > target, verdicts, np.inf)
        verdicts = np.where(drawn.start >= target, 0.0, verdicts)
        within = verdicts <= HORIZON * now
        verdicts = np.where(within, verdicts, np.inf)
        return Needed(float(self._weight[within].sum()), _range(verdicts, self._weight))


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


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Power laws, (draws,) each, and the luck of a training under each."""

    start: np.ndarray
    top: np.ndarray
    rate: np.ndarray
    bend: np.ndarray
    luck: np.ndarray

    @classmethod
    def at(cls, point: np.ndarray) -> "_Drawn":
        """From points (draws, _PARAMETERS), of which the prior is standard normal."""
        share = ndtr(point)
        start = share[:, 0]
        gain = -_GAIN * ndtri((1 - share[:, 1]) / 2)  # half-normal
        return cls(
            start=start,
            top=np.minimum(start + gain, 1.0),
            rate=_RATE_MEDIAN * np.exp(_RATE_SPREAD * point[:, 2]),
            bend=np.exp(_between(np.log(_BENDS), share[:, 3])),
            luck=_between(np.array(_LUCK), share[:, 4]),
        )

    def values(self, verdicts: float) -> np.ndarray:
        """(draws,) figures at so many verdicts."""
        left = (1 + verdicts / self.bend) ** -self.rate
        figures: np.ndarray = self.top - (self.top - self.start) * left
        return figures

    def log_likelihood(self, verdicts: np.ndarray, measured: Measured) -> np.ndarray:
        """(draws,) of the values measured at m sizes, but for a constant."""
        variances, axes = np.linalg.eigh(measured.covariance)
        residual = np.stack(
            [self.values(n) - value for n, value in zip(verdicts, measured.values, strict=True)],
            axis=1,
        )
        spread = np.maximum(variances, 0.0) + self.luck[:, None] ** 2
        found: np.ndarray = -((residual @ axes) ** 2 / spread + np.log(spread)).sum(axis=1) / 2
        return found


def _closer(
    rng: np.random.Generator, point: np.ndarray, more: np.ndarray, likelihood: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Points nearer to the posterior, and the log density (draws,) they are drawn with.

    From a t distribution around the mean of `point`, with their covariance, under as much of the
    likelihood as leaves half of _ENOUGH draws: of a handful neither can be told. `more` is the
    prior's log density less that which they were drawn with.
    """
    none, all_of_it = 0.0, 1.0
    for _ in range(30):
        part = (none + all_of_it) / 2
        enough = _effective(_normalised(more + part * likelihood)) >= _ENOUGH / 2
        none, all_of_it = (part, all_of_it) if enough else (none, part)
    weight = _normalised(more + none * likelihood)
    mean = weight @ point
    off = point - mean
    # A little wider than they are: what lies outside is drawn too seldom otherwise.
    covariance = 1.2 * (off * weight[:, None]).T @ off + 1e-9 * np.eye(_PARAMETERS)
    normal = rng.standard_normal(point.shape)
    stretch = np.sqrt(_FREEDOM / rng.chisquare(_FREEDOM, len(point)))
    closer = mean + (normal * stretch[:, None]) @ np.linalg.cholesky(covariance).T
    distance = (normal**2).sum(axis=1) * stretch**2
    return closer, -(_FREEDOM + _PARAMETERS) / 2 * np.log1p(distance / _FREEDOM)


def _between(ends: np.ndarray, share: np.ndarray) -> np.ndarray:
    """From the first (share 0) to the last of both ends (share 1)."""
    found: np.ndarray = ends[0] + (ends[1] - ends[0]) * share
    return found


def _normalised(log_weight: np.ndarray) -> np.ndarray:
    weight: np.ndarray = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def _effective(weight: np.ndarray) -> float:
    """Kish's effective number of draws whose weights sum to 1."""
    return float(1 / (weight**2).sum())


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
