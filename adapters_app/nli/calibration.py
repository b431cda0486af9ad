"""Calibrators: logits in, honest probabilities out. What was learnt ends in an underscore."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax, softmax

MIN_ROWS = 30  # below this a temperature is mostly noise; the identity is used and said
_TEMPERATURES = (0.05, 20.0)
_LOG_FLOOR = 1e-12


class Calibrator(Protocol):
    """Maps logits (n, 3) to probabilities (n, 3); columns in the order of LABELS."""

    method: str

    def fit(
        self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> Self: ...
    def predict_proba(self, logits: np.ndarray) -> np.ndarray: ...
    def to_dict(self) -> dict[str, Any]: ...


class Identity:
    """No calibration: plain softmax."""

    method = "none"

    def fit(
        self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> Self:
        """Learn nothing."""
        return self

    def predict_proba(self, logits: np.ndarray) -> np.ndarray:
        """Softmax of (n, 3) logits."""
        return softmax(np.asarray(logits, dtype=np.float64), axis=1)

    def to_dict(self) -> dict[str, Any]:
        return {}


class TemperatureScaling:
    """softmax(z / T), T by maximum likelihood (Guo et al. 2017, §4.2)."""

    method = "temperature"

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
        return softmax(np.asarray(logits, dtype=np.float64) / self.temperature_, axis=1)

    def to_dict(self) -> dict[str, Any]:
        return {"temperature": self.temperature_}


class PlattScaling:
    """One sigmoid per label on its logit, then normalised (Platt 1999; as scikit-learn's
    `CalibratedClassifierCV(method="sigmoid")` does it), with Platt's smoothed targets."""

    method = "platt"

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


@dataclass(frozen=True)
class Choice:
    """The calibrator chosen, and each method's cross-validated log loss (nats)."""

    calibrator: Calibrator
    log_losses: dict[str, float]


def from_dict(method: str, parameters: Mapping[str, Any]) -> Calibrator:
    """The calibrator that was stored.

    Raises:
        ValueError: an unknown method.
    """
    if method == Identity.method:
        return Identity()
    if method == TemperatureScaling.method:
        return TemperatureScaling(**parameters)
    if method == PlattScaling.method:
        return PlattScaling(**parameters)
    raise ValueError(f"method: {method!r} is not none, temperature or platt")


def choose(
    logits: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    *,
    folds: int = 5,
) -> Choice:
    """Cross-validate none, temperature and Platt by groups; the simplest within one standard error.

    Temperature is simpler than Platt (1 parameter against 6). Too few rows: the identity.
    """
    if len(labels) < MIN_ROWS or len(np.unique(labels)) < 2:
        return Choice(Identity(), {})
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    share = _shares(weights, len(labels))
    part = _group_parts(groups, folds)
    losses: dict[str, np.ndarray] = {}
    for kind in (Identity, TemperatureScaling, PlattScaling):
        probabilities = np.empty((len(labels), logits.shape[1]))
        for k in range(folds):
            seen, held = part != k, part == k
            if not held.any() or not seen.any():
                continue
            fitted = kind().fit(logits[seen], labels[seen], share[seen])
            probabilities[held] = fitted.predict_proba(logits[held])
        right = probabilities[np.arange(len(labels)), labels]
        losses[kind.method] = -np.log(np.maximum(right, _LOG_FLOOR))
    means = {method: float((share * loss).sum()) for method, loss in losses.items()}
    best = min(means, key=lambda method: means[method])
    for kind in (Identity, TemperatureScaling, PlattScaling):
        difference = losses[kind.method] - losses[best]
        if means[kind.method] - means[best] <= _clustered_error(difference, share, groups):
            fitted = kind().fit(logits, labels, share)
            return Choice(fitted, means)
    raise AssertionError("the best method is within one standard error of itself")


def _clustered_error(values: np.ndarray, share: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of Σ share·value when rows of one group move together."""
    _, index = np.unique(groups, return_inverse=True)
    centred = share * (values - (share * values).sum())
    return float(np.sqrt((np.bincount(index, weights=centred) ** 2).sum()))


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

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-9})
    return float(found.x[0]), float(found.x[1])
