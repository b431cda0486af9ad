"""Redrawn in blocks, the figures are those of one large draw, and memory stays what it was."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from adapters_app.nli import learning_curve, metrics

MEMORY = 64e6
SIZES = [40, 525, 3000, 5001]  # from one block of draws to ten


def peak(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def drawn_at_once(total: np.ndarray, size: np.ndarray, *, floor: float, seed: int) -> np.ndarray:
    count = len(size)
    chosen = np.random.default_rng(seed).integers(count, size=(metrics.DRAWS, count))
    copies = np.stack([np.bincount(row, minlength=count) for row in chosen])
    moments = np.stack([total, size, total**2, total * size, size**2], axis=1)
    weighted, sizes, squares, products, square_sizes = (copies @ moments).T
    ratios = weighted / sizes
    scatter = squares - 2 * ratios * products + ratios**2 * square_sizes
    errors = np.sqrt(count / (count - 1) * np.maximum(scatter, 0.0)) / sizes
    return (ratios - total.sum() / size.sum()) / np.maximum(errors, floor)


@pytest.mark.parametrize("groups", SIZES)
def test_the_gates_draws_are_those_of_one_large_draw(groups: int) -> None:
    rng = np.random.default_rng(groups)
    # Whole numbers: their sums are exact, in whatever order a processor adds them up.
    size = rng.integers(1, 9, groups).astype(float)
    total = rng.integers(-3, 4, groups).astype(float)
    found = metrics._studentised(total, size, floor=0.01, seed=7)
    np.testing.assert_array_equal(found, drawn_at_once(total, size, floor=0.01, seed=7))
    size, total = size * rng.random(groups), total * rng.random(groups)
    found = metrics._studentised(total, size, floor=0.01, seed=7)
    np.testing.assert_allclose(
        found, drawn_at_once(total, size, floor=0.01, seed=7), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("groups", SIZES)
def test_a_learning_curves_errors_are_those_of_one_large_draw(groups: int) -> None:
    rng = np.random.default_rng(groups)
    labels, pages = rng.integers(0, 3, 2 * groups), np.arange(2 * groups) // 2
    weights = rng.integers(1, 5, 2 * groups).astype(float)
    predicted = np.stack([np.where(rng.random(2 * groups) < p, labels, 0) for p in (0.3, 0.6)])
    drawn = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), size=1000)
    right = np.stack([np.bincount(pages, weights * (row == labels)) for row in predicted], axis=1)
    expected = (drawn @ right) / (drawn @ np.bincount(pages, weights))[:, None]
    found = learning_curve.measure(predicted, labels, pages, weights)["accuracy"]
    np.testing.assert_array_equal(found.covariance, np.cov(expected, rowvar=False))


def test_a_gate_over_many_pages_takes_little_memory() -> None:
    pages = np.arange(20_000)
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], len(pages))
    assert peak(lambda: metrics.paired_difference(values, pages)) < MEMORY


def test_a_learning_curve_over_many_pages_takes_little_memory() -> None:
    rng = np.random.default_rng(2)
    labels, pages = rng.integers(0, 3, 20_000), np.arange(20_000)
    predicted = rng.integers(0, 3, (3, 20_000))
    taken = peak(lambda: learning_curve.measure(predicted, labels, pages, np.ones(20_000)))
    assert taken < MEMORY
