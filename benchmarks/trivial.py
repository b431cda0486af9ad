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
class Judged:
    """Pairs with verdicts: label columns (n,) and the permanent fold of each page (n,)."""

    view: View
    labels: np.ndarray
    folds: np.ndarray


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted arm: pairs in, probabilities (n, 3) out; learnt numbers, and all it must store."""

    predict: Callable[[View], np.ndarray]
    parameters: int
    stored: int

    @property
    def artifact_bytes(self) -> int:
        return self.stored * FLOAT_BYTES


def base(_judged: Judged) -> Fit:
    """The base as it is."""
    return Fit(lambda view: softmax(view.logits.astype(float), axis=1), 0, 0)


def majority(judged: Judged) -> Fit:
    """The verdicts' label shares, whatever is asked."""
    shares = np.bincount(judged.labels, minlength=len(LABELS)) / len(judged.labels)
    return Fit(lambda view: np.tile(shares, (len(view.pairs), 1)), len(LABELS), len(LABELS))


def bias(judged: Judged) -> Fit:
    """softmax(z / T + b) by maximum likelihood: a bias per label and one temperature.

    Bias-corrected temperature scaling (Alexandari, Kundaje & Shrikumar 2020, §2).
    """
    logits = judged.view.logits.astype(float)
    rows = np.arange(len(logits))

    def loss(at: np.ndarray) -> float:
        return float(
            -log_softmax(logits * np.exp(at[0]) + at[1:], axis=1)[rows, judged.labels].mean()
        )

    found = minimize(loss, np.zeros(1 + len(LABELS)), method="L-BFGS-B").x
    return Fit(
        lambda view: softmax(view.logits * np.exp(found[0]) + found[1:], axis=1),
        len(found),
        len(found),
    )


def probe(judged: Judged) -> Fit:
    """Logistic regression on the frozen encoder's view of the pair."""
    return _logistic(judged, lambda view: view.features)


def hypothesis_only(judged: Judged) -> Fit:
    """Logistic regression that never sees the premise (Gururangan et al. 2018)."""
    return _logistic(judged, lambda view: view.hypotheses)


def overlap(judged: Judged) -> Fit:
    """Logistic regression on four numbers about words and lengths."""
    return _logistic(judged, lambda view: np.array([overlap_features(pair) for pair in view.pairs]))


ARMS: dict[str, Callable[[Judged], Fit]] = {
    "base": base,
    "majority": majority,
    "bias": bias,
    "probe": probe,
    "hypothesis": hypothesis_only,
    "overlap": overlap,
}


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


def _logistic(judged: Judged, features: Callable[[View], np.ndarray]) -> Fit:
    """Logistic regression whose penalty is chosen over the folds of the judged pages."""
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": PENALTIES},
        cv=PredefinedSplit(judged.folds),
        scoring="accuracy",
    ).fit(features(judged.view), judged.labels)
    scaler, model = search.best_estimator_

    def predict(view: View) -> np.ndarray:
        probabilities = np.zeros((len(view.pairs), len(LABELS)))
        # A label that no verdict names has no column.
        probabilities[:, model.classes_] = search.predict_proba(features(view))
        return probabilities

    parameters = model.coef_.size + model.intercept_.size
    return Fit(predict, parameters, parameters + scaler.mean_.size + scaler.scale_.size)
