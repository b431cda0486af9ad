"""The documents' eight measures of a sentence encoder on compatible and incompatible pairs.

Scores are cosines (n,); `compatible` (n,) booleans; `weights` (n,) are inverse sampling
probabilities, and a row of weight 2 counts as two rows. Both kinds of pairs must occur.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import precision_recall_curve, roc_auc_score

_KMEANS_STARTS = 10


def measures(
    first: np.ndarray,
    second: np.ndarray,
    compatible: np.ndarray,
    weights: np.ndarray,
    categories: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """All eight of pairs whose texts have the unit embeddings `first` and `second`, (n, d) each.

    `categories`: name → (n,) booleans; one without both kinds of pairs is left out. Best F1 and
    purity come with what they are where nothing is known (`f1_of_all`, `purity_of_one`).
    """
    cosines = (first * second).sum(axis=1)
    f1, threshold = best_f1(cosines, compatible, weights)
    wrong = ~compatible & (cosines >= threshold)
    share = float(np.average(compatible, weights=weights))
    return {
        "n": len(cosines),
        "compatible": int(compatible.sum()),
        "spearman": spearman(cosines, compatible, weights),
        "margin": margin(cosines, compatible, weights),
        "cohens_d": cohens_d(cosines, compatible, weights),
        "auc": auc(cosines, compatible, weights),
        "best_f1": f1,
        "threshold": threshold,
        "f1_of_all": 2 * share / (1 + share),
        "purity": purity(first * second, compatible, weights),
        "purity_of_one": max(share, 1 - share),
        "false_positives": int(wrong.sum()),
        "false_positive_rate": float(np.average(wrong[~compatible], weights=weights[~compatible])),
        "categories": {
            name: _category(cosines[inside], compatible[inside], weights[inside])
            for name, inside in categories.items()
            if len(np.unique(compatible[inside])) == 2
        },
    }


def _category(cosines: np.ndarray, compatible: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    return {
        "n": len(cosines),
        "compatible": int(compatible.sum()),
        "spearman": spearman(cosines, compatible, weights),
        "margin": margin(cosines, compatible, weights),
        "auc": auc(cosines, compatible, weights),
    }


def spearman(cosines: np.ndarray, compatible: np.ndarray, weights: np.ndarray) -> float:
    """Spearman's rank correlation with the labels, tied values at their mid-rank; 0 if all tie."""
    ranks = np.stack([_mid_ranks(values, weights) for values in (cosines, compatible)])
    covariance = np.cov(ranks, aweights=weights, ddof=0)
    scale = float(np.sqrt(covariance[0, 0] * covariance[1, 1]))
    return float(covariance[0, 1]) / scale if scale > 0 else 0.0


def margin(cosines: np.ndarray, compatible: np.ndarray, weights: np.ndarray) -> float:
    """The documents' compatibility margin: mean cosine of compatible less of incompatible pairs."""
    (one, _), (other, _) = _moments(cosines, compatible, weights)
    return one - other


def cohens_d(cosines: np.ndarray, compatible: np.ndarray, weights: np.ndarray) -> float:
    """The margin in pooled standard deviations (Cohen 1988, §2.5); 0 where nothing varies."""
    (one, first_squares), (other, other_squares) = _moments(cosines, compatible, weights)
    variance = (first_squares + other_squares) / max(float(weights.sum()) - 2, 1.0)
    return (one - other) / float(np.sqrt(variance)) if variance > 0 else 0.0


def auc(cosines: np.ndarray, compatible: np.ndarray, weights: np.ndarray) -> float:
    """Chance that a compatible pair has a higher cosine than an incompatible one; ties are half."""
    return float(roc_auc_score(compatible, cosines, sample_weight=weights))


def best_f1(
    cosines: np.ndarray, compatible: np.ndarray, weights: np.ndarray
) -> tuple[float, float]:
    """The highest F1 that any threshold reaches, and that threshold (cosine ≥ it: compatible).

    As the documents have it, the threshold is chosen on the very rows it is measured on.
    """
    precision, recall, thresholds = precision_recall_curve(
        compatible, cosines, sample_weight=weights
    )
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)[:-1]
    best = int(f1.argmax())
    return float(f1[best]), float(thresholds[best])


def purity(features: np.ndarray, compatible: np.ndarray, weights: np.ndarray) -> float:
    """Share of pairs of the commoner kind of their cluster (Manning et al. 2008, §16.3).

    The documents do not say what they cluster. Here: the pairs, by k-means with two clusters of
    `features` (n, d), the products of their embeddings' elements, which add up to the cosine.
    """
    found = KMeans(2, n_init=_KMEANS_STARTS, random_state=0).fit_predict(
        features, sample_weight=weights
    )
    table = np.zeros((2, 2))
    np.add.at(table, (found, compatible.astype(int)), weights)
    return float(table.max(axis=1).sum() / table.sum())


def _moments(
    cosines: np.ndarray, compatible: np.ndarray, weights: np.ndarray
) -> list[tuple[float, float]]:
    """(mean, weighted sum of squares around it) of compatible, then of incompatible pairs."""
    moments = []
    for kind in (compatible, ~compatible):
        mean = float(np.average(cosines[kind], weights=weights[kind]))
        moments.append((mean, float((weights[kind] * (cosines[kind] - mean) ** 2).sum())))
    return moments


def _mid_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    _, place = np.unique(values, return_inverse=True)
    mass = np.bincount(place, weights)
    ranks: np.ndarray = (mass.cumsum() - mass / 2)[place]
    return ranks
