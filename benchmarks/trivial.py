"""Arms that train no encoder: what the mere label mix, the base's own view or a shortcut is worth.

They see the frozen base's logits and token means. An adapter that does not beat them has taught
the domain's habits, not the domain. Imports no Django.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adapters_app.nli.base_model import Base
from adapters_app.nli.data import collate
from adapters_app.nli.encoding import Pair, batches_by_length
from adapters_app.nli.predict import BATCH, Predictor
from corrections.labels import LABELS

# Inverse strengths of the L2 penalty a probe may choose from, by its folds.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FLOAT_BYTES = 4


class View:
    """What the frozen base makes of n pairs: one pass for each array, when it is first wanted."""

    def __init__(self, base: Base, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self._base = base

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """(n, 3), columns in the order of LABELS."""
        return Predictor(self._base).logits(self.pairs)

    @functools.cached_property
    def features(self) -> np.ndarray:
        """(n, hidden): token means of the encoder's last layer."""
        return token_means(self._base, self.pairs)

    @functools.cached_property
    def hypotheses(self) -> np.ndarray:
        """(n, hidden): the same with the premise left out."""
        return token_means(self._base, [("", hypothesis) for _, hypothesis in self.pairs])

    def at(self, index: Sequence[int]) -> "View":
        """The same of some of the pairs, taken from here."""
        return _Part(self, index)


class _Part(View):
    def __init__(self, whole: View, index: Sequence[int]) -> None:
        self.pairs = [whole.pairs[i] for i in index]
        self._whole = whole
        self._index = list(index)

    @functools.cached_property
    def logits(self) -> np.ndarray:
        return self._whole.logits[self._index]

    @functools.cached_property
    def features(self) -> np.ndarray:
        return self._whole.features[self._index]

    @functools.cached_property
    def hypotheses(self) -> np.ndarray:
        return self._whole.hypotheses[self._index]


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted arm: what it sees of n pairs in, probabilities (n, 3) out; and what it must store.

    `parameters` were learnt, `stored` numbers are needed to answer.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    parameters: int
    stored: int

    @property
    def artifact_bytes(self) -> int:
        return self.stored * FLOAT_BYTES


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What n verdicts say: label columns, folds of their pages, how much each counts; each (n,)."""

    labels: np.ndarray
    folds: np.ndarray
    weights: np.ndarray


def untouched(_logits: np.ndarray, _verdicts: Verdicts) -> Fit:
    """The base as it is."""
    return Fit(lambda asked: softmax(asked.astype(float), axis=1), 0, 0)


def majority(_logits: np.ndarray, verdicts: Verdicts) -> Fit:
    """The verdicts' label shares, whatever is asked."""
    counts = np.bincount(verdicts.labels, verdicts.weights, minlength=len(LABELS))
    shares = counts / counts.sum()
    return Fit(lambda asked: np.tile(shares, (len(asked), 1)), len(LABELS), len(LABELS))


def bias(logits: np.ndarray, verdicts: Verdicts) -> Fit:
    """softmax(z / T + b) by maximum likelihood: a bias per label and one temperature.

    Bias-corrected temperature scaling (Alexandari, Kundaje & Shrikumar 2020, §2).
    """
    rows = np.arange(len(logits))

    def scaled(at: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return seen.astype(float) * np.exp(at[0]) + at[1:]

    def loss(at: np.ndarray) -> float:
        losses = -log_softmax(scaled(at, logits), axis=1)[rows, verdicts.labels]
        return float(np.average(losses, weights=verdicts.weights))

    found = minimize(loss, np.zeros(1 + len(LABELS)), method="L-BFGS-B").x
    return Fit(lambda asked: softmax(scaled(found, asked), axis=1), len(found), len(found))


def logistic(features: np.ndarray, verdicts: Verdicts) -> Fit:
    """Logistic regression whose penalty is chosen over the folds of the judged pages."""
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": PENALTIES},
        cv=PredefinedSplit(verdicts.folds),
        scoring="accuracy",
    ).fit(features, verdicts.labels, logisticregression__sample_weight=verdicts.weights)
    scaler, model = search.best_estimator_

    def predict(asked: np.ndarray) -> np.ndarray:
        probabilities = np.zeros((len(asked), len(LABELS)))
        # A label that no verdict names has no column.
        probabilities[:, model.classes_] = search.predict_proba(asked)
        return probabilities

    parameters = model.coef_.size + model.intercept_.size
    return Fit(predict, parameters, parameters + scaler.mean_.size + scaler.scale_.size)


def overlaps(view: View) -> np.ndarray:
    """(n, 4): the overlap features of n pairs."""
    return np.array([overlap_features(pair) for pair in view.pairs])


def overlap_features(pair: Pair) -> tuple[float, float, float, float]:
    """Share of the hypothesis's words in the premise, Jaccard of words, log length of each."""
    premise, hypothesis = (re.findall(r"\w+", text.casefold()) for text in pair)
    shared = set(premise) & set(hypothesis)
    return (
        len(shared) / max(1, len(set(hypothesis))),
        len(shared) / max(1, len(set(premise) | set(hypothesis))),
        float(np.log1p(len(premise))),
        float(np.log1p(len(hypothesis))),
    )


@dataclass(frozen=True)
class Shortcut:
    """An arm: what it sees of pairs, (n, any), and how it learns from that and the verdicts."""

    sees: Callable[[View], np.ndarray]
    fit: Callable[[np.ndarray, Verdicts], Fit]


ARMS = {
    "base": Shortcut(lambda view: view.logits, untouched),
    "majority": Shortcut(lambda view: view.logits, majority),
    "bias": Shortcut(lambda view: view.logits, bias),
    "probe": Shortcut(lambda view: view.features, logistic),
    # Gururangan et al. 2018: what the hypothesis alone gives away.
    "hypothesis": Shortcut(lambda view: view.hypotheses, logistic),
    "overlap": Shortcut(overlaps, logistic),
}


@torch.inference_mode()
def token_means(base: Base, pairs: Sequence[Pair]) -> np.ndarray:
    """(n, hidden) float32: the mean of the last layer over a pair's tokens."""
    encoded = base.encoder.encode(pairs)
    means = np.empty((len(pairs), base.model.config.hidden_size), dtype=np.float32)
    for rows in batches_by_length([len(row) for row in encoded], BATCH):
        batch = collate([encoded[i] for i in rows], pad_id=base.pad_id, type_ids=base.uses_type_ids)
        batch = {key: value.to(base.device) for key, value in batch.items()}
        hidden = base.model.base_model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        means[rows] = ((hidden * mask).sum(1) / mask.sum(1)).float().cpu().numpy()
    return means
