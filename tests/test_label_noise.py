"""Doubts about labels and about people, on rows whose truth is known."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adapters_app.nli.label_noise import CarelessShare, careless_share, self_confidence

RNG = np.random.default_rng(11)


def believed(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities of a middling model, and the labels drawn from them."""
    probabilities = RNG.dirichlet([0.9, 0.9, 0.9], n)
    labels = (probabilities.cumsum(1) > RNG.random((n, 1))).argmax(1)
    return probabilities, labels


def test_suspicion_is_what_cleanlab_computes() -> None:
    """`get_label_quality_scores(method="self_confidence")` of cleanlab 2.9.0 on these rows."""
    probabilities = np.array(
        [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.05, 0.9, 0.05], [0.5, 0.25, 0.25]]
    )
    found = self_confidence(probabilities, np.array([0, 1, 0, 2, 1]))
    np.testing.assert_array_equal(found, [0.7, 0.6, 0.3, 0.05, 0.25])


def test_exchanged_labels_are_the_suspicious_ones() -> None:
    probabilities, labels = believed(3000)
    flipped = RNG.random(3000) < 0.15
    given = np.where(flipped, (labels + RNG.integers(1, 3, 3000)) % 3, labels)
    assert roc_auc_score(flipped, -self_confidence(probabilities, given)) > 0.75


def verdicts(n: int, careless: float, strategy: str) -> CarelessShare:
    """How careless somebody looks who does so in that share of n verdicts on a weak model."""
    probabilities, labels = believed(n)
    shown = np.where(RNG.random(n) < 0.45, labels, (labels + 1) % 3)
    instead = shown if strategy == "stamps" else RNG.integers(0, 3, n)
    given = np.where(RNG.random(n) < careless, instead, labels)
    return careless_share(self_confidence(probabilities, given), given == shown)


@pytest.mark.parametrize("strategy", ["stamps", "guesses"])
def test_the_careless_one_of_four_looks_so(strategy: str) -> None:
    last = sum(
        verdicts(75, 0.9, strategy).mean > max(verdicts(75, 0.05, strategy).mean for _ in range(3))
        for _ in range(20)
    )
    assert last >= 19


def test_the_interval_covers_the_share_and_narrows_with_verdicts() -> None:
    few, many = verdicts(60, 0.5, "stamps"), verdicts(1200, 0.5, "stamps")
    assert many.low < 0.5 < many.high
    assert many.high - many.low < (few.high - few.low) / 2


def test_a_few_odd_verdicts_make_nobody_careless() -> None:
    found = careless_share(np.full(3, 0.05), np.full(3, True))
    assert found.mean < 0.5
    assert careless_share(np.array([]), np.array([])).mean == pytest.approx(0.2, abs=0.01)
