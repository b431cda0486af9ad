"""Doubts about labels people gave, from the probabilities of models that never saw those rows.

Columns of every (n, 3) array follow LABELS; `labels` are column indices (n,).
"""

from dataclasses import dataclass

import numpy as np

from corrections.labels import LABELS

# Prior weight of (careful, confirms whatever is shown, picks any label): worth ten verdicts, so
# that a few odd ones make nobody careless.
CARELESS_PRIOR = (8.0, 1.0, 1.0)
_GRID = 60  # steps per side of the grid over shares; a step is under 2 points
_LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class CarelessShare:
    """The share of a person's verdicts that look careless: posterior mean and 95 % interval."""

    mean: float
    low: float
    high: float


def self_confidence(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) probability of the given label: the lower, the more suspicious (Northcutt, Jiang &
    Chuang 2021; Kuan & Mueller 2022; cleanlab's `self_confidence`).

    With calibrated probabilities, and labels exchanged for any other at random, no other function
    of them ranks better: the odds of an exchange fall with it alone.
    """
    return probabilities[np.arange(len(labels)), labels]


def careless_share(given: np.ndarray, confirmed: np.ndarray) -> CarelessShare:
    """How many of one person's n verdicts look careless, from the siblings' probability of the
    label given (n,) and whether it confirmed what the model had said (n,).

    MACE (Hovy et al. 2013) with two strategies of carelessness: a verdict is the label that a
    careful person gives (drawn from the siblings' probabilities), or what the model had said, or
    any label. The posterior of the shares is taken on a grid.
    """
    careful, stamps, guesses = _shares()
    careful_prior, stamps_prior, guesses_prior = CARELESS_PRIOR
    log_posterior = (
        (careful_prior - 1) * np.log(careful)
        + (stamps_prior - 1) * np.log(stamps)
        + (guesses_prior - 1) * np.log(guesses)
    )
    for probability, confirms in zip(given, confirmed, strict=True):
        likelihood = careful * probability + stamps * confirms + guesses / len(LABELS)
        log_posterior += np.log(likelihood)
    posterior = np.exp(log_posterior - log_posterior.max())
    posterior /= posterior.sum()
    careless = stamps + guesses
    order = np.argsort(careless)
    low, high = np.interp(_LEVELS, posterior[order].cumsum(), careless[order])
    return CarelessShare(float(posterior @ careless), float(low), float(high))


def _shares() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three shares that sum to 1, on an even grid inside the triangle; each (points,)."""
    row, column = np.meshgrid(np.arange(_GRID), np.arange(_GRID), indexing="ij")
    inside = row + column < _GRID
    stamps, guesses = (row[inside] + 1 / 3) / _GRID, (column[inside] + 1 / 3) / _GRID
    return 1 - stamps - guesses, stamps, guesses
