"""A learner that takes a second: a logistic probe on frozen features of the base's pairs.

Where only what is computed from answers is under test, it stands in for the adapter.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from adapters_app.fitting import blind
from adapters_app.nli.base_model import Base
from adapters_app.nli.embedding import SentenceEncoder
from adapters_app.nli.encoding import Pair
from adapters_app.nli.predict import Predictor
from adapters_app.snapshots import SnapshotRow
from benchmarks.rows import Row
from corrections.labels import LABELS, Label

# A strong ridge, not tuned: there are more features than verdicts.
INVERSE_RIDGE = 0.01


class Probe:
    """Logistic regression on what the base and the sentence encoder say of a pair."""

    def __init__(self, features: dict[Pair, np.ndarray]) -> None:
        self._features = features

    def out_of_fold(self, rows: Sequence[SnapshotRow], groups: set[int]) -> np.ndarray:
        """(rows, 3): each by a probe that learnt from `groups`, blind to the row's fold."""
        probabilities = np.empty((len(rows), len(LABELS)))
        folds = np.array([row.fold for row in rows])
        for fold in np.unique(folds):
            held = np.flatnonzero(folds == fold).tolist()
            part = [row for row in rows if row.group_id in groups]
            seen = blind(part, [rows[i] for i in held])
            probabilities[held] = self.learnt(seen, [rows[i].pair for i in held])
        return probabilities

    def learnt(self, rows: Sequence[SnapshotRow], asked: Sequence[Pair]) -> np.ndarray:
        """(asked, 3) by a probe that learnt from all rows; 0 for a label they do not have."""
        regression = LogisticRegression(C=INVERSE_RIDGE, max_iter=500)
        model: Pipeline = make_pipeline(StandardScaler(), regression)
        model.fit(self._of([row.pair for row in rows]), [Label(row.label).column for row in rows])
        probabilities = np.zeros((len(asked), len(LABELS)))
        probabilities[:, model.classes_] = model.predict_proba(self._of(asked))
        return probabilities

    def _of(self, pairs: Sequence[Pair]) -> np.ndarray:
        return np.stack([self._features[pair] for pair in pairs])


def features(rows: Sequence[Row], base: Base, cache: Path) -> dict[Pair, np.ndarray]:
    """Pair → base's logits, |u - v| and u · v of the two sentence embeddings; kept in `cache`."""
    pairs = [(row["premise"], row["hypothesis"]) for row in rows]
    if not cache.exists():
        encoder = SentenceEncoder()
        premises, hypotheses = (encoder.embed(list(texts)) for texts in zip(*pairs, strict=True))
        logits = Predictor(base).logits(pairs)
        cache.parent.mkdir(parents=True, exist_ok=True)
        both = [logits, np.abs(premises - hypotheses), premises * hypotheses]
        np.save(cache, np.concatenate(both, axis=1))
    return dict(zip(pairs, np.load(cache), strict=True))
