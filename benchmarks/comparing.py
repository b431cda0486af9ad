"""Paired differences between arms, with bounds, over splits, seeds and streams; recipe rotation.

Bounds: a two-stage bootstrap gives the standard error (splits are drawn with replacement, then
groups of held-out pages within each; Davison & Hinkley 1997, §3.8), both arms on the same draws,
seeds averaged; the interval is ± Student's t, with splits − 1 degrees of freedom per stream
(groups − 1 where there is one split). It covers other pages and other training sets of the same
streams; streams themselves are fixed. Stages drawn twice count test noise twice: it errs wide.
Over streams, weights are those of domains and degrees of freedom Satterthwaite's (1946).

The guard's rows are the same in every cell: splits and the guard's groups are drawn crosswise
(Owen 2007, the pigeonhole bootstrap). Imports no Django.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from corrections.labels import LABELS

DRAWS = 1000
# Streams of one domain share its weight; a stream not named here is a domain of its own.
DOMAIN = {"healthver": "biomedical", "scifact": "biomedical"}

Measure = Callable[[np.ndarray], np.ndarray]  # confusions (…, 3, 3) or losses (…, 1, 2) → (…)


@dataclass(frozen=True)
class Interval:
    """A mean difference with its two-sided 95 % bounds; without bounds where nothing varies."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class _Part:
    """One stream's share of a difference."""

    weight: float
    estimate: float
    variance: float
    freedom: float


def weights(streams: Iterable[str]) -> dict[str, float]:
    """Each stream's weight in an average over domains; they sum to 1."""
    streams = list(streams)
    sizes = Counter(map(_domain, streams))
    return {stream: 1 / len(sizes) / sizes[_domain(stream)] for stream in streams}


def _domain(stream: str) -> str:
    return DOMAIN.get(stream, stream)


def confusions(answers: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(groups, 3, 3) counts of label × answer, groups in sorted order."""
    names, index = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), len(LABELS), len(LABELS)))
    np.add.at(counts, (index, labels, answers), 1)
    return counts


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Macro-F1 of confusions (…, 3, 3); a label neither present nor answered counts 0."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    either = counts.sum(-1) + counts.sum(-2)
    return np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0).mean(-1)


def accuracy(counts: np.ndarray) -> np.ndarray:
    """Accuracy of confusions (…, 3, 3) that count at least one row."""
    return np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1))


def losses(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(groups, 1, 2) sums of losses (n,) and numbers of rows, groups in sorted order."""
    _, index = np.unique(groups, return_inverse=True)
    return np.stack([np.bincount(index, rows), np.bincount(index)], axis=-1)[:, None, :]


def mean_loss(sums: np.ndarray) -> np.ndarray:
    """Mean of `losses` (…, 1, 2) of at least one row."""
    return sums[..., 0, 0] / sums[..., 0, 1]


# One stream: split → (of A, of B), paired; each confusions (seeds, groups, 3, 3), or losses
# (seeds, groups, 1, 2).
Paired = Mapping[int, tuple[np.ndarray, np.ndarray]]


def difference(streams: Mapping[str, Paired], measure: Measure) -> Interval:
    """Mean of measure(B) − measure(A) over seeds, splits and (by domain) streams, with bounds."""
    shares = weights(streams)
    return _combined([_part(paired, measure, shares[name]) for name, paired in streams.items()])


def guard_change(streams: Mapping[str, Mapping[int, np.ndarray]], groups: np.ndarray) -> Interval:
    """Mean change of accuracy on the guard, with bounds.

    `streams`: stream → split → changes (seeds, guard rows) of being right, each −1, 0 or 1.
    """
    names, index = np.unique(groups, return_inverse=True)
    sizes = np.bincount(index)
    draw = np.random.default_rng(0)
    drawn = draw.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    totals = drawn @ sizes
    shares = weights(streams)
    estimate, values, freedom = 0.0, np.zeros(DRAWS), 0
    for name, splits in streams.items():
        changes = [change.mean(0) for change in splits.values()]
        estimate += shares[name] * float(np.mean(changes))
        by_group = np.stack([np.bincount(index, weights=change) for change in changes])
        picked = draw.multinomial(len(changes), np.full(len(changes), 1 / len(changes)), size=DRAWS)
        means = (drawn @ by_group.T) / totals[:, None]
        values += shares[name] * (picked * means).sum(1) / len(changes)
        freedom += len(changes) - 1
    return _around(estimate, float(values.var(ddof=1)), freedom or len(names) - 1)


@dataclass(frozen=True)
class Score:
    """What a recipe did on one stream: gain in macro-F1 over the base, change on the guard."""

    gain: float
    guard: float


def rotate(
    scores: Mapping[str, Mapping[str, Score]], *, tolerated_loss: float = float("inf")
) -> dict[str, str]:
    """For each stream the recipe that gained most on the streams of other domains.

    `scores`: recipe → stream → score. Only recipes that lost at most `tolerated_loss` on the guard,
    on average over those streams, are eligible; where none is, the one that lost least is chosen. A
    recipe that lacks one of those streams is not, and a stream without others has no choice.
    """
    streams = sorted({stream for by_stream in scores.values() for stream in by_stream})
    chosen = {}
    for reported in streams:
        others = [stream for stream in streams if _domain(stream) != _domain(reported)]
        means = {
            recipe: _mean_score([by_stream[stream] for stream in others])
            for recipe, by_stream in scores.items()
            if others and all(stream in by_stream for stream in others)
        }
        safe = [recipe for recipe, score in means.items() if -score.guard <= tolerated_loss]
        if safe:
            chosen[reported] = max(safe, key=lambda recipe: means[recipe].gain)
        elif means:
            chosen[reported] = max(means, key=lambda recipe: means[recipe].guard)
    return chosen


def _mean_score(scores: Sequence[Score]) -> Score:
    return Score(
        float(np.mean([score.gain for score in scores])),
        float(np.mean([score.guard for score in scores])),
    )


def _part(paired: Paired, measure: Measure, weight: float) -> _Part:
    splits = list(paired.values())
    estimate = float(np.mean([_mean_difference(a.sum(1), b.sum(1), measure) for a, b in splits]))
    draw = np.random.default_rng(0)
    values = np.zeros(DRAWS)
    for _ in splits:
        picked = draw.integers(len(splits), size=DRAWS)
        for number, (a, b) in enumerate(splits):
            at = np.flatnonzero(picked == number)
            count = a.shape[1]
            drawn = draw.multinomial(count, np.full(count, 1 / count), size=len(at))
            values[at] += _mean_difference(_redrawn(drawn, a), _redrawn(drawn, b), measure)
    freedom = len(splits) - 1 if len(splits) > 1 else splits[0][0].shape[1] - 1
    return _Part(weight, estimate, float((values / len(splits)).var(ddof=1)), freedom)


def _redrawn(drawn: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(seeds, draws, …, …): sums of drawn groups, from (draws, groups) how often each was."""
    return np.einsum("dg,sgij->sdij", drawn, counts, optimize=True)


def _mean_difference(a: np.ndarray, b: np.ndarray, measure: Measure) -> np.ndarray:
    """measure(B) − measure(A), averaged over seeds, the first axis."""
    return (measure(b) - measure(a)).mean(0)


def _combined(parts: Sequence[_Part]) -> Interval:
    estimate = sum(part.weight * part.estimate for part in parts)
    shares = [part.weight**2 * part.variance for part in parts]
    variance = sum(shares)
    below = sum(
        share**2 / part.freedom
        for share, part in zip(shares, parts, strict=True)
        if part.freedom > 0
    )
    return _around(estimate, variance, variance**2 / below if below > 0 else 0.0)


def _around(estimate: float, variance: float, freedom: float) -> Interval:
    if freedom <= 0:
        bound = 0.0 if variance == 0 else float("inf")
    else:
        bound = float(student.ppf(0.975, freedom) * np.sqrt(variance))
    return Interval(estimate, estimate - bound, estimate + bound)
