"""Figures about predictions, and what a paired comparison of two models can and cannot say.

Columns of every (n, 3) array follow LABELS; `labels` are column indices (n,); `weights` (n,) are
inverse sampling probabilities, and every weighted mean is Hájek's (divided by the weights' sum).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import erf
from scipy.stats import binom
from scipy.stats import t as t_distribution
from sklearn.metrics import f1_score

from adapters_app.nli.bootstrap import redrawn_sums
from adapters_app.nli.hajek import effective_groups, group_sums, jackknife_error
from adapters_app.nli.probabilities import log_losses
from corrections.labels import LABELS

BINS = 10
# A loss of this much excludes “not worse” (the documents' 2 %).
TOLERATED_LOSS = 0.02
MIN_ROWS = 150
MIN_EFFECTIVE_GROUPS = 20
# The true gain whose detection “about N more pairs” speaks of.
STATED_EFFECT = 0.05
LOSS_LEVEL = 0.05  # one-sided evidence of a loss, by guard set or Brier score, that blocks
FLOOR_ROWS = 2  # discordant rows that any difference may hide, see `paired_difference`
WRONGLY_BETTER = 0.025  # of one comparison of equals: outside one side of a 95 % interval
DRAWS = 2000
# A bootstrap quantile is read where so many draws lie beyond it; for surer intervals more is drawn.
DRAWS_BEYOND = 50
MOST_DRAWS = 40_000  # enough for one-sided 0.125 %, the fifth comparison; seconds on 5,000 pages
FLOOR_DRAWS = 500  # the mean is then known to about 2 % of itself


@dataclass(frozen=True)
class Difference:
    """A weighted mean of paired differences with an interval over groups."""

    estimate: float
    standard_error: float
    low: float  # two-sided, of `confidence`
    high: float
    p_gain: float  # one-sided: chance of this much gain if there were none
    p_loss: float
    high_95: float  # of the 95 % interval, whatever `confidence` is: a loss is as easy to see
    confidence: float


@dataclass(frozen=True)
class Comparison:
    """B (candidate) against A (incumbent) on the same rows."""

    rows: int
    groups: int
    claims: int
    effective_groups: float  # of groups or of claims, whichever are fewer
    a: dict[str, Any]
    b: dict[str, Any]
    accuracy: Difference
    brier: Difference
    gained: int  # rows only B has right
    lost: int  # rows only A has right
    mcnemar_p: float  # row-wise and two-sided; shown, decides nothing: pages are clusters

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def accuracy(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Share of rows whose most probable label is right."""
    return _mean(probabilities.argmax(1) == labels, weights)


def macro_f1(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Unweighted mean of the three labels' F1; a label neither present nor predicted counts 0."""
    every = list(range(len(LABELS)))
    return float(
        f1_score(
            labels,
            probabilities.argmax(1),
            labels=every,
            average="macro",
            sample_weight=weights,
            zero_division=0,
        )
    )


def log_loss(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Mean of `log_losses`."""
    return _mean(log_losses(probabilities, labels), weights)


def brier_rows(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Brier score per row (n,): squared distance to the right label, 0 to 2 (Brier 1950)."""
    return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)


def brier(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Mean multi-class Brier score, 0 to 2."""
    return _mean(brier_rows(probabilities, labels), weights)


def brier_skill(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float | None:
    """1 - Brier score over that of always saying the labels' own shares (Murphy 1973).

    0 is no better than the label mix, 1 perfect; None where only one label occurs.
    """
    share = np.bincount(labels, weights, minlength=probabilities.shape[1])
    reference = 1.0 - float(((share / share.sum()) ** 2).sum())
    return 1.0 - brier(probabilities, labels, weights) / reference if reference > 0 else None


def ece(
    probabilities: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    bins: int = BINS,
) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error of the top label (Naeini et al. 2015), and its bins."""
    right = probabilities.argmax(1) == labels
    table = reliability_bins(probabilities.max(1), right, weights, bins=bins)
    return sum(row["share"] * abs(row["gap"]) for row in table if row["count"]), table


def reliability_bins(
    confidence: np.ndarray,
    right: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    bins: int = BINS,
) -> list[dict[str, float]]:
    """Stated confidence (n,) against what came true (n,) booleans, in bins of equal width.

    The bins cover [0, 1]; the first is closed on both sides, so that 0 has a place. A filled one
    has its share of the weight, mean confidence, share that came true (`accuracy`), and their gap.
    """
    share = _shares(weights, len(confidence))
    index = _bin_of(confidence, bins)
    table = []
    for k in range(bins):
        inside = index == k
        row = {"low": k / bins, "high": (k + 1) / bins, "count": int(inside.sum())}
        if inside.any():
            weight = float(share[inside].sum())
            row["share"] = weight
            row["accuracy"] = float((share[inside] * right[inside]).sum() / weight)
            row["confidence"] = float((share[inside] * confidence[inside]).sum() / weight)
            row["gap"] = row["accuracy"] - row["confidence"]
            # Kish's effective number of rows.
            row["effective_rows"] = weight**2 / float((share[inside] ** 2).sum())
        table.append(row)
    return table


def label_reliability(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, list[dict[str, float]]]:
    """For each label: the probability it was given against how often it was the right one."""
    return {
        label.value: reliability_bins(
            probabilities[:, label.column], labels == label.column, weights
        )
        for label in LABELS
    }


def debiased_ece(table: list[dict[str, float]]) -> float:
    """ECE less the part of it that chance adds, from the bins of `ece`; not below 0.

    Twice the ECE less its mean if each bin's accuracy were drawn anew around what was seen, as the
    l1 estimator of Kumar, Liang & Ma (2019) resamples it; that mean is the folded normal's (Leone,
    Nelson & Nottingham 1961). It takes away some two fifths of what a perfect model shows, and
    nearly nothing where the gaps are large.
    """
    filled = [row for row in table if row["count"]]
    share, gap, accuracy, rows = (
        np.array([row[name] for row in filled])
        for name in ("share", "gap", "accuracy", "effective_rows")
    )
    spread = np.sqrt(accuracy * (1 - accuracy) / np.maximum(rows - 1, 1))
    spread = np.maximum(spread, 1e-9)  # all right or all wrong: nothing to redraw
    redrawn = spread * np.sqrt(2 / np.pi) * np.exp(-((gap / spread) ** 2) / 2)
    redrawn += gap * erf(gap / (spread * np.sqrt(2)))
    return max(0.0, float(share @ (2 * np.abs(gap) - redrawn)))


def ece_floor(
    probabilities: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    bins: int = BINS,
    draws: int = FLOOR_DRAWS,
) -> float:
    """The mean ECE of a perfectly calibrated model with these n ≥ 1 confidences, by simulation.

    Rows are drawn independently; where a page's rows are alike the true floor is higher.
    """
    confidence = probabilities.max(1)
    share = _shares(weights, len(confidence))
    index = _bin_of(confidence, bins)
    rng = np.random.default_rng(0)  # the same figure each time
    total = 0.0
    for _ in range(draws):
        surprise = share * ((rng.random(len(confidence)) < confidence) - confidence)
        total += np.abs(np.bincount(index, surprise)).sum()
    return float(total / draws)


def per_label(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Rows, precision, recall and F1 of each label."""
    predicted = probabilities.argmax(1)
    share = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
    table = {}
    for label in LABELS:
        k = label.column
        hit = share[(predicted == k) & (labels == k)].sum()
        said, there = share[predicted == k].sum(), share[labels == k].sum()
        table[label.value] = {
            "n": int((labels == k).sum()),
            "precision": float(hit / said) if said else 0.0,
            "recall": float(hit / there) if there else 0.0,
            "f1": float(2 * hit / (said + there)) if said + there else 0.0,
        }
    return table


def summary(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, Any]:
    """Every figure of one model on n ≥ 1 labelled rows, with its n."""
    return {
        "n": len(labels),
        "accuracy": accuracy(probabilities, labels, weights),
        "macro_f1": macro_f1(probabilities, labels, weights),
        "log_loss": log_loss(probabilities, labels, weights),
        "brier": brier(probabilities, labels, weights),
        "ece": ece(probabilities, labels, weights)[0],
        "per_label": per_label(probabilities, labels, weights),
    }


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p value of discordant counts (binomial at one half)."""
    n = gained + lost
    return float(min(1.0, 2 * binom.cdf(min(gained, lost), n, 0.5))) if n else 1.0


def loss_p(changes: np.ndarray, groups: np.ndarray) -> float:
    """One-sided exact p value for a loss, by flipping signs of groups (Fisher 1935, §21).

    `changes` (n,) are 1 where B alone is right, -1 where A alone is, else 0. If there is no loss, a
    group's sum is as likely the other way round, however alike its rows are: the chance that all
    groups together then come as low as they did. Without groups it is the sign test of McNemar.
    """
    _, index = np.unique(groups, return_inverse=True)
    totals = np.rint(np.bincount(index, weights=changes)).astype(int)
    moves = np.abs(totals[totals != 0])
    chance = np.ones(1)  # of each sum, from -moves.sum() up in steps of 1
    for move in moves:
        chance = (np.pad(chance, (0, 2 * move)) + np.pad(chance, (2 * move, 0))) / 2
    return float(chance[: moves.sum() + totals.sum() + 1].sum())


def guard_fails(p_loss: float) -> bool:
    """Whether a p value of `loss_p` is evidence of a loss that blocks."""
    return p_loss < LOSS_LEVEL


def spent_level(attempt: int) -> float:
    """The one-sided error allowed to the `attempt`-th comparison with one incumbent.

    The first has all that a single one has, those after it share as much again: 1 / ((k - 1) k)
    over k ≥ 2 sums to 1. However often one tries, an equal comes out better in at most twice
    WRONGLY_BETTER (Bonferroni's inequality).
    """
    return WRONGLY_BETTER if attempt == 1 else WRONGLY_BETTER / ((attempt - 1) * attempt)


def paired_difference(
    values: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    claims: np.ndarray | None = None,
    level: float = WRONGLY_BETTER,
    seed: int = 0,
) -> Difference:
    """Weighted mean of per-row differences (n,) with a studentised bootstrap over groups.

    Rows of one group are alike, and so are those of one claim (n,) on whatever page: the variance
    is that of two-way clusters, by groups + by claims - by both (Cameron, Gelbach & Miller 2011),
    and at least the larger of the two; those are drawn that make more of it.

    Bootstrap-t of the ratio estimator (Cameron, Gelbach & Miller 2008; Davison & Hinkley 1997,
    §5.2) around a jackknife standard error: groups, not rows, are drawn, so copying rows inside a
    page narrows nothing. Never narrower than Student's interval with the effective number of groups
    less one as its degrees of freedom: a draw often misses the one large page. The standard error
    has a floor of two discordant rows, so that agreement on few rows is not certainty. They weigh
    what a unit of weight does: where rows on which another candidate differed were drawn more
    often, this one also differs on heavy rows of which hardly any was seen. `level` is the error on
    either side of the interval; see `_limits` for those that no draws resolve.
    """
    share = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    total, size, clustered = _clusters(values, share, groups, claims)
    estimate = float(total.sum() / size.sum())
    if len(size) < 2:
        inf = float("inf")
        return Difference(estimate, inf, -inf, inf, 1.0, 1.0, inf, 1 - 2 * level)
    row = (share**2).sum() / share.sum()  # the weight of the row that a unit of weight has
    floor = float(np.sqrt(FLOOR_ROWS) * row / share.sum())
    error = max(clustered, floor)
    draws = min(max(DRAWS, round(DRAWS_BEYOND / level)), MOST_DRAWS)
    every = _studentised(total, size, floor=floor, seed=seed, draws=draws)
    drawn = every[:DRAWS]  # the same whatever the level
    freedom = max(size.sum() ** 2 / (size**2).sum() - 1, 1.0)
    student = t_distribution(freedom)
    lower, upper = _limits(every, freedom, level)
    observed = estimate / error
    return Difference(
        estimate=estimate,
        standard_error=error,
        low=estimate - upper * error,
        high=estimate - lower * error,
        p_gain=max(float((drawn >= observed).mean()), float(student.sf(observed))),
        p_loss=max(float((drawn <= observed).mean()), float(student.cdf(observed))),
        high_95=estimate - _limits(drawn, freedom, WRONGLY_BETTER)[0] * error,
        confidence=1 - 2 * level,
    )


def _limits(drawn: np.ndarray, freedom: float, level: float) -> tuple[float, float]:
    """Quantiles of the drawn deviations with an error of `level` on either side.

    At least Student's. Where fewer than DRAWS_BEYOND draws lie beyond one it is that of as many,
    widened as Student's quantile widens from there.
    """
    resolved = max(level, DRAWS_BEYOND / len(drawn))
    at_resolved, at_level = t_distribution(freedom).isf([resolved, level])
    low, high = np.quantile(drawn, [resolved, 1 - resolved]) * (at_level / at_resolved)
    return min(float(low), -float(at_level)), max(float(high), float(at_level))


def _clusters(
    values: np.ndarray, share: np.ndarray, groups: np.ndarray, claims: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Weighted sums and weights of the clusters to draw, and the standard error of two-way ones."""
    of_groups = group_sums(values, share, groups)
    if claims is None:
        return *of_groups, _jackknife(*of_groups)
    of_claims = group_sums(values, share, claims)
    _, cells = np.unique(
        np.stack([_numbers(groups), _numbers(claims)]), axis=1, return_inverse=True
    )
    by_group, by_claim, by_both = (
        _jackknife(*sums) for sums in (of_groups, of_claims, group_sums(values, share, cells))
    )
    larger = max(by_group, by_claim)
    error = max(larger, float(np.sqrt(max(by_group**2 + by_claim**2 - by_both**2, 0.0))))
    return *(of_groups if by_group >= by_claim else of_claims), error


def _jackknife(total: np.ndarray, size: np.ndarray) -> float:
    return jackknife_error(total, size) if len(size) > 1 else float("inf")


def _numbers(names: np.ndarray) -> np.ndarray:
    """(n,) each name's number."""
    numbers: np.ndarray = np.unique(names, return_inverse=True)[1]
    return numbers


def _studentised(
    total: np.ndarray, size: np.ndarray, *, floor: float, seed: int, draws: int = DRAWS
) -> np.ndarray:
    """(draws,) deviations of bootstrapped ratios from the ratio, in their own standard errors."""
    count = len(size)
    rng = np.random.default_rng(seed)

    def copies(rows: int) -> np.ndarray:
        chosen = rng.integers(count, size=(rows, count))
        chosen += count * np.arange(rows)[:, None]
        return np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count)

    moments = np.stack([total, size, total**2, total * size, size**2], axis=1)
    sums = redrawn_sums(moments, draws, copies)
    weighted, sizes, squares, products, square_sizes = sums.T
    ratios = weighted / sizes
    # Linearised, as `ratio_error`: a jackknife of every draw costs much and changes little.
    scatter = squares - 2 * ratios * products + ratios**2 * square_sizes
    errors = np.sqrt(count / (count - 1) * np.maximum(scatter, 0.0)) / sizes
    deviations: np.ndarray = (ratios - total.sum() / size.sum()) / np.maximum(errors, floor)
    return deviations


def compare(
    probabilities_a: np.ndarray,
    probabilities_b: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    claims: np.ndarray | None = None,
    level: float = WRONGLY_BETTER,
    seed: int = 0,
) -> Comparison:
    """Compare B with A on the same n ≥ 1 rows; `groups` (n,) are pages, `claims` (n,) what is
    judged on them, by default another claim in each row. `level`: see `spent_level`."""
    right_a = probabilities_a.argmax(1) == labels
    right_b = probabilities_b.argmax(1) == labels
    gained, lost = int((right_b & ~right_a).sum()), int((right_a & ~right_b).sum())
    return Comparison(
        rows=len(labels),
        groups=len(np.unique(groups)),
        claims=len(labels) if claims is None else len(np.unique(claims)),
        effective_groups=min(
            effective_groups(each, weights) for each in (groups, claims) if each is not None
        ),
        a=summary(probabilities_a, labels, weights),
        b=summary(probabilities_b, labels, weights),
        accuracy=paired_difference(
            right_b.astype(float) - right_a.astype(float),
            groups,
            weights,
            claims=claims,
            level=level,
            seed=seed,
        ),
        brier=paired_difference(
            brier_rows(probabilities_b, labels) - brier_rows(probabilities_a, labels),
            groups,
            weights,
            claims=claims,
            seed=seed,
        ),
        gained=gained,
        lost=lost,
        mcnemar_p=mcnemar_exact(gained, lost),
    )


def gate(domain: Comparison) -> str:
    """`better`, `not_worse`, `worse` or `inconclusive`, from the domain rows alone.

    Better: the interval of the accuracy difference lies above 0. Not worse: it excludes a loss of
    more than 2 points. Both let a candidate pass, and the more were tried the surer the interval
    is. Worse: the 95 % interval lies below 0, however many were tried, or the Brier score rose on
    one-sided 5 % evidence. Nothing is said where there are not `enough` rows.
    """
    if not enough(domain.rows, domain.effective_groups):
        return "inconclusive"
    if domain.accuracy.high_95 < 0 or domain.brier.p_gain < LOSS_LEVEL:
        return "worse"
    if domain.accuracy.low > 0:
        return "better"
    if domain.accuracy.low > -TOLERATED_LOSS:
        return "not_worse"
    return "inconclusive"


def enough(rows: int, effective_groups: float) -> bool:
    """Whether so many rows and groups may show anything: 150 and 20."""
    return rows >= MIN_ROWS and effective_groups >= MIN_EFFECTIVE_GROUPS


def needed_pairs(domain: Comparison, *, level: float = WRONGLY_BETTER) -> int:
    """About how many more pairs of this kind would show a true gain of 5 points, 4 times in 5.

    Conditional power (Lachin 2005): added to the pairs at hand, whose estimate stays part of the
    sum, so many make `better` 80 % likely if the gain is STATED_EFFECT. The standard error at hand
    holds discordance and design effect; new pairs are taken to come from other pages, as many on
    each. It is an estimate from few pages, hence Student's quantiles (Stein 1945). `level`: of the
    comparison on all of them. At least what `enough` lacks.
    """
    wanted = [float(MIN_ROWS), domain.rows * (1 + _more_information(domain, level))]
    if domain.effective_groups < MIN_EFFECTIVE_GROUPS:
        wanted.append(domain.rows * MIN_EFFECTIVE_GROUPS / max(domain.effective_groups, 1.0))
    return max(1, int(np.ceil(max(wanted) - domain.rows)))


def _more_information(domain: Comparison, level: float) -> float:
    """Information still to gather, as a multiple of what is at hand; 0 where nothing can be said.

    With z the estimate and d the stated effect, both in standard errors, and r the multiple: the
    final sum is z + r·d + √r·(noise) and must exceed t·√(1 + r) with probability .8, where t has
    an error of `level`.
    """
    found = domain.accuracy
    if not np.isfinite(found.standard_error):
        return 0.0
    at_hand, effect = (x / found.standard_error for x in (found.estimate, STATED_EFFECT))
    student = t_distribution(max(domain.effective_groups - 1, 1.0))
    confident, powerful = student.isf([level, 0.2])

    def surplus(r: float) -> float:
        limit = confident * np.sqrt(1 + r) + powerful * np.sqrt(r)
        return float(at_hand + r * effect - limit)

    if surplus(0.0) >= 0:
        return 0.0
    enough = 1.0
    while surplus(enough) < 0:
        enough *= 2
    # Convex and negative at 0, so there is one root.
    return float(brentq(surplus, 0.0, enough))


def _bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def _shares(weights: np.ndarray | None, n: int) -> np.ndarray:
    share = np.ones(n) if weights is None else np.asarray(weights, dtype=float)
    return share / share.sum() if n else share


def _mean(values: np.ndarray, weights: np.ndarray | None) -> float:
    return float(np.average(values, weights=weights))
