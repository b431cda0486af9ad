"""What people send of their own accord is no sample: they correct sooner than they confirm.

Who learns from their verdicts as they come takes what serves to be wrong more often than it is.
Answers drawn for audit say how often it is right, so that confirmations can count for those that
nobody bothered to send.
"""

from collections.abc import Sequence

import numpy as np

from adapters_app.nli import hajek
from adapters_app.snapshots import SnapshotRow
from corrections.models import Correction

# Reports that the audits' share of right answers is mixed with: few audits move little.
PRIOR_ROWS = 10
LIMIT = 5.0  # a verdict counts for at most so many, and for at least one in so many
# With fewer rows drawn all rows do not stand for what is asked: the prior would outweigh them.
MIN_DRAWN = PRIOR_ROWS


def training_weights(rows: Sequence[SnapshotRow]) -> np.ndarray:
    """(n,) how many verdicts each row stands for in training.

    Confirmations that people sent count `confirmation_weight(rows)`, all others one.
    """
    weights = np.ones(len(rows))
    weights[[_sent(row) and _right(row) for row in rows]] = confirmation_weight(rows)
    return weights


def sample_weights(rows: Sequence[SnapshotRow]) -> np.ndarray | None:
    """(n,) weights under which all rows together stand for what is asked; None with too few drawn.

    What people sent counts as in training. Right and wrong answers then have the shares that audits
    find; that within each it is the same answers that get reported is taken for granted, which for
    a calibrator will do and for figures will not. Samples are pooled, see `hajek.pooled_weights`.
    """
    if sum(row.sampling in Correction.DRAWN for row in rows) < MIN_DRAWN:
        return None
    weights = np.where(
        [_sent(row) for row in rows], training_weights(rows), [row.weight for row in rows]
    )
    return hajek.pooled_weights(weights, np.array([_sample(row) for row in rows]))


def confirmation_weight(rows: Sequence[SnapshotRow]) -> float:
    """The odds of a right answer among those drawn, over those odds among verdicts people sent.

    That is how much more likely a wrong answer is to be corrected than a right one is to be
    confirmed; weighting confirmations with it is post-stratification (Holt & Smith 1979) by whether
    the answer was right. 1 where no confirmation was sent, or nothing was drawn.
    """
    sent = np.array([_right(row) for row in rows if _sent(row)], dtype=float)
    drawn = [row for row in rows if row.sampling in Correction.DRAWN]
    if not sent.any() or not drawn:
        return 1.0
    # One row of each added: corrections may be missing.
    sent_right, sent_wrong = sent.sum() + 1, (1 - sent).sum() + 1
    share = sent_right / (sent_right + sent_wrong)
    weights = np.array([row.weight for row in drawn])
    weights *= len(drawn) / weights.sum()
    right = weights[[_right(row) for row in drawn]].sum()
    odds = (right + PRIOR_ROWS * share) / (len(drawn) - right + PRIOR_ROWS * (1 - share))
    return float(np.clip(odds * sent_wrong / sent_right, 1 / LIMIT, LIMIT))


def _sent(row: SnapshotRow) -> bool:
    return row.sampling == Correction.Sampling.USER


def _sample(row: SnapshotRow) -> str:
    """Which sample a row is of; audits and disagreements are one."""
    drawn = row.sampling in Correction.DRAWN
    return Correction.Sampling.AUDIT.value if drawn else row.sampling


def _right(row: SnapshotRow) -> bool:
    return row.verdict == Correction.Verdict.CONFIRMED
