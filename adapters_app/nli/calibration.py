"""Calibrators: logits in, honest probabilities out. What was learnt ends in an underscore."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax

from adapters_app.nli.hajek import effective_groups, group_sums, jackknife_error
from adapters_app.nli.probabilities import log_losses, softmax
from corrections.labels import LABELS

# Twice the 15 rows per parameter of Harrell (2015, §4.4): rows of one page are alike.
ROWS_PER_PARAMETER = 30
MIN_ROWS = ROWS_PER_PARAMETER  # below this even a temperature is noise; the identity is used
# An offset of a label that hardly occurs is a guess about that label; and the mix of labels differs
# from page to page: that of few says nothing of the next.
ROWS_PER_LABEL = 10
SOURCES_PER_PARAMETER = 10
_TEMPERATURES = (0.05, 20.0)
CERTAIN = (
    1.001 * _TEMPERATURES[0]
)  # rows none of which is answered wrongly have no best temperature
EXACT = 1e-6  # of effective numbers: equal weights make as many as there are, but for rounding
_OFFSETS = (-10.0, 10.0)  # log odds: a label that never occurs gets a finite offset
# scikit-learn's, for the same optimum to more than six digits.
_PRECISE = {"gtol": 1e-9, "ftol": 64 * float(np.finfo(float).eps)}


class Calibrator(Protocol):
    """Maps logits (n, 3) to probabilities (n, 3); columns in the order of LABELS."""

    method: str
    parameters: int  # free ones
    by_label: bool  # whether it learns something about each label

    def fit(
        self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> Self: ...
    def predict_proba(self, logits: np.ndarray) -> np.ndarray: ...
    def to_dict(self) -> dict[str, Any]: ...


class Identity:
    """No calibration: plain softmax."""

    method = "none"
    parameters = 0
    by_label = False

    def fit(
        self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> Self:
        """Learn nothing."""
        return self

    def predict_proba(self, logits: np.ndarray) -> np.ndarray:
        """Softmax of (n, 3) logits."""
        return softmax(np.asarray(logits))

    def to_dict(self) -> dict[str, Any]:
        return {}


class TemperatureScaling:
    """softmax(z / T), T by maximum likelihood (Guo et al. 2017, §4.2)."""

    method = "temperature"
    parameters = 1
    by_label = False

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature_ = temperature

    def fit(
        self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> Self:
        """Fit T on logits (n, 3) and label indices (n,), optionally weighted (n,)."""
        logits = np.asarray(logits, dtype=np.float64)
        share = _shares(weights, len(labels))
        rows = np.arange(len(labels))

        def loss(log_temperature: float) -> float:
            scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
            return float(-(share * scaled[rows, labels]).sum())

        low, high = np.log(_TEMPERATURES)
        found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
        self.temperature_ = float(np.exp(found.x))
        return self

    def predict_proba(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities (n, 3) of logits (n, 3)."""
        return softmax(np.asarray(logits, dtype=np.float64) / self.temperature_)

    def to_dict(self) -> dict[str, Any]:
        return {"temperature": self.temperature_}


class BiasCorrectedTemperature:
    """softmax(z / T + b), T and b by maximum likelihood (BCTS: Alexandari, Kundaje & Shrikumar
    2020, §2.2). The offsets sum to 0; they learn the domain's label mix, a temperature cannot."""

    method = "bcts"
    parameters = 3
    by_label = True

    def __init__(
        self, temperature: float = 1.0, offsets: Sequence[float] = (0.0, 0.0, 0.0)
    ) -> None:
        self.temperature_ = temperature
        self.offsets_ = tuple(offsets)

    def fit(
        self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> Self:
        """Fit T and b on logits (n, 3) and label indices (n,), optionally weighted (n,)."""
        logits = np.asarray(logits, dtype=np.float64)
        share = _shares(weights, len(labels))
        target = np.eye(logits.shape[1])[labels]

        def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
            # Convex in 1 / T and b, unlike in T.
            scaled = log_softmax(at[0] * logits + at[1:], axis=1)
            error = share[:, None] * (np.exp(scaled) - target)
            gradient = np.concatenate(([(error * logits).sum()], error.sum(axis=0)))
            return float(-(share[:, None] * target * scaled).sum()), gradient

        low, high = _TEMPERATURES
        found = minimize(
            loss,
            np.array([1.0, *np.zeros(logits.shape[1])]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(1 / high, 1 / low), *[_OFFSETS] * logits.shape[1]],
            options=_PRECISE,
        )
        self.temperature_ = float(1 / found.x[0])
        self.offsets_ = tuple(float(offset) for offset in found.x[1:] - found.x[1:].mean())
        return self

    def predict_proba(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities (n, 3) of logits (n, 3)."""
        scaled = np.asarray(logits, dtype=np.float64) / self.temperature_
        return softmax(scaled + np.array(self.offsets_))

    def to_dict(self) -> dict[str, Any]:
        return {"temperature": self.temperature_, "offsets": list(self.offsets_)}


class PlattScaling:
    """One sigmoid per label on its logit, then normalised (Platt 1999; as scikit-learn's
    `CalibratedClassifierCV(method="sigmoid")` does it), with Platt's smoothed targets."""

    method = "platt"
    parameters = 6
    by_label = True

    def __init__(
        self, slopes: Sequence[float] = (1.0, 1.0, 1.0), offsets: Sequence[float] = (0.0, 0.0, 0.0)
    ) -> None:
        self.slopes_ = tuple(slopes)
        self.offsets_ = tuple(offsets)

    def fit(
        self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> Self:
        """Fit slope and offset per label on logits (n, 3) and label indices (n,)."""
        logits = np.asarray(logits, dtype=np.float64)
        share = _shares(weights, len(labels))
        fits = [_sigmoid(logits[:, k], labels == k, share) for k in range(logits.shape[1])]
        self.slopes_ = tuple(slope for slope, _ in fits)
        self.offsets_ = tuple(offset for _, offset in fits)
        return self

    def predict_proba(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities (n, 3) of logits (n, 3)."""
        logits = np.asarray(logits, dtype=np.float64)
        each = expit(logits * np.array(self.slopes_) + np.array(self.offsets_))
        total = each.sum(axis=1, keepdims=True)
        even = np.full_like(each, 1 / each.shape[1])
        return np.where(total > 0, each / np.where(total > 0, total, 1), even)

    def to_dict(self) -> dict[str, Any]:
        return {"slopes": list(self.slopes_), "offsets": list(self.offsets_)}


# The simplest first.
METHODS: tuple[type[Calibrator], ...] = (
    Identity,
    TemperatureScaling,
    BiasCorrectedTemperature,
    PlattScaling,
)
# Those that learn nothing of how often labels occur.
OF_ANY_MIX = tuple(kind for kind in METHODS if not kind.by_label)


@dataclass(frozen=True)
class Choice:
    """The calibrator chosen, each method's cross-validated log loss (nats), and why others were
    not tried: {method: what they need}."""

    calibrator: Calibrator
    log_losses: dict[str, float] = field(default_factory=dict)
    not_tried: dict[str, str] = field(default_factory=dict)


def from_dict(method: str, parameters: Mapping[str, Any]) -> Calibrator:
    """The calibrator that was stored.

    Raises:
        ValueError: an unknown method.
    """
    for kind in METHODS:
        if kind.method == method:
            return kind(**parameters)
    known = ", ".join(kind.method for kind in METHODS)
    raise ValueError(f"method: {method!r} is none of {known}")


def choose(
    logits: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    *,
    methods: Sequence[type[Calibrator]] = METHODS,
    folds: int = 5,
) -> Choice:
    """Cross-validate `methods`, the simplest first, by groups; the simplest within one standard
    error of the best (Breiman et al. 1984, §3.4.3).

    A method is tried from 30 rows per free parameter on: temperature 30, bias-corrected temperature
    90, Platt 180, the latter two with at least 10 rows of each label, and from 10 sources of like
    size per parameter. Rows and sources are counted by Kish's effective number: a hundred of which
    one weighs as much as all others are few. One that would be as sure as it can, because no
    row contradicts it, has learnt nothing of how sure it may be, and is left out.
    """
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    needs = {kind.method: lacking(kind, labels, groups, weights) for kind in methods}
    tried = [kind for kind in methods if not needs[kind.method]]
    not_tried = {method: need for method, need in needs.items() if need}
    fitted = {kind.method: kind().fit(logits, labels, weights) for kind in tried}
    for method in [name for name, one in fitted.items() if _is_certain(one)]:
        not_tried[method] = "needs rows that are answered wrongly"
    tried = [kind for kind in tried if kind.method not in not_tried]
    if len(tried) == 1:
        return Choice(Identity(), not_tried=not_tried)
    share = _shares(weights, len(labels))
    part = _group_parts(groups, folds)
    losses = {kind.method: _held_out_losses(kind, logits, labels, share, part) for kind in tried}
    means = {method: float((share * loss).sum()) for method, loss in losses.items()}
    best = min(means, key=lambda method: means[method])
    for kind in tried:
        more, size = group_sums(losses[kind.method] - losses[best], share, groups)
        if means[kind.method] - means[best] <= jackknife_error(more, size):
            return Choice(fitted[kind.method], means, not_tried)
    raise AssertionError("the best method is within one standard error of itself")


def lacking(
    kind: type[Calibrator],
    labels: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None = None,
) -> str:
    """What n label indices (n,) of `groups` (n,), as they weigh (n,), are too few of to fit a
    method on, in words; empty if nothing."""
    rows = kind.parameters * ROWS_PER_PARAMETER
    share = _shares(weights, len(labels))
    effective = 1 / float((share**2).sum()) if len(labels) else 0.0
    counts = np.bincount(labels, share * effective, minlength=len(LABELS))
    if len(labels) < rows:
        return f"needs {rows} rows"
    if effective < rows - EXACT:
        return f"needs {rows} rows of like weight"
    if kind.parameters and np.count_nonzero(counts) < 2:
        return "needs two labels"
    if kind.parameters and len(np.unique(groups)) < 2:
        return "needs two sources"
    if kind.by_label and counts.min() < ROWS_PER_LABEL - EXACT:
        return f"needs {ROWS_PER_LABEL} rows of each label"
    sources = SOURCES_PER_PARAMETER * kind.parameters
    if kind.by_label and effective_groups(groups, weights) < sources - EXACT:
        return f"needs {sources} sources of like size"
    return ""


def _is_certain(fitted: Calibrator) -> bool:
    return getattr(fitted, "temperature_", 1.0) <= CERTAIN


def _held_out_losses(
    kind: type[Calibrator],
    logits: np.ndarray,
    labels: np.ndarray,
    share: np.ndarray,
    part: np.ndarray,
) -> np.ndarray:
    """(n,) log loss of each row under the method fitted on the other parts."""
    probabilities = np.empty((len(labels), logits.shape[1]))
    for k in np.unique(part):
        seen, held = part != k, part == k
        fitted = kind().fit(logits[seen], labels[seen], share[seen])
        probabilities[held] = fitted.predict_proba(logits[held])
    return log_losses(probabilities, labels)


def _group_parts(groups: np.ndarray, folds: int) -> np.ndarray:
    """Fold of each row; groups are dealt out from the largest, each to the smallest fold."""
    names, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sizes = np.zeros(folds)
    of_group = np.empty(len(names), dtype=int)
    for group in np.argsort(-counts, kind="stable"):
        smallest = int(np.argmin(sizes))
        of_group[group] = smallest
        sizes[smallest] += counts[group]
    return of_group[index]


def _shares(weights: np.ndarray | None, n: int) -> np.ndarray:
    if weights is None:
        return np.full(n, 1 / n)
    weights = np.asarray(weights, dtype=np.float64)
    return weights / weights.sum()


def _sigmoid(scores: np.ndarray, positive: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """Slope and offset of Platt's sigmoid for one label, by L-BFGS on the exact gradient."""
    counts = share * len(share)
    n_positive, n_negative = counts[positive].sum(), counts[~positive].sum()
    target = np.where(positive, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    start = np.array([1.0, np.log((n_positive + 1) / (n_negative + 1))])

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        z = at[0] * scores + at[1]
        error = share * (expit(z) - target)
        value = (share * (np.logaddexp(0, z) - target * z)).sum()
        return float(value), np.array([(error * scores).sum(), error.sum()])

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=_PRECISE)
    return float(found.x[0]), float(found.x[1])
