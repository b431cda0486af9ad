"""What people send of their own accord is no sample: they correct sooner than they confirm.

Who learns from their verdicts as they come takes what serves to be wrong more often than it is.
Answers drawn for audit say how often it is right, so that confirmations can count for those that
nobody bothered to send.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    the answer was right. Odds of one model only are compared, since the next is right more often:
    the ratios of all that have both kinds are pooled (Mantel & Haenszel 1959), and it holds for
    those that have not. Where these have few of either kind, all rows are taken for one model's.
    1 where no confirmation was sent, or nothing was drawn.
    """
    sent = [row for row in rows if _sent(row)]
    drawn = [row for row in rows if row.sampling in Correction.DRAWN]
    if not any(_right(row) for row in sent) or not drawn:
        return 1.0
    tables = [_Table.of(*both) for both in _by_predictor(sent, drawn)]
    if not _enough(tables):
        tables = [_Table.of(sent, drawn)]
    every = sum(table.drawn for table in tables)
    ratios = [table.with_prior(table.drawn / every).products for table in tables]
    more, less = np.sum(ratios, axis=0)
    return float(np.clip(more / less, 1 / LIMIT, LIMIT))


@dataclass(frozen=True)
class _Table:
    """How many answers of one model were right and wrong, of those drawn and of those sent."""

    drawn_right: float
    drawn_wrong: float
    sent_right: float
    sent_wrong: float

    @classmethod
    def of(cls, sent: Sequence[SnapshotRow], drawn: Sequence[SnapshotRow]) -> "_Table":
        """Drawn ones weighted, and as many as they tell (Kish's effective number)."""
        weights = np.array([row.weight for row in drawn])
        right = weights[[_right(row) for row in drawn]].sum() / weights.sum()
        effective = float(weights.sum() ** 2 / (weights**2).sum())
        confirmed = sum(_right(row) for row in sent)
        return cls(effective * right, effective * (1 - right), confirmed, len(sent) - confirmed)

    @property
    def drawn(self) -> float:
        return self.drawn_right + self.drawn_wrong

    @property
    def sent(self) -> float:
        return self.sent_right + self.sent_wrong

    def with_prior(self, part: float) -> "_Table":
        """With so much of one report of each kind, since corrections may be missing, and of
        PRIOR_ROWS drawn as those that were sent."""
        sent_right, sent_wrong = self.sent_right + part, self.sent_wrong + part
        share, rows = sent_right / (sent_right + sent_wrong), PRIOR_ROWS * part
        return _Table(
            self.drawn_right + rows * share,
            self.drawn_wrong + rows * (1 - share),
            sent_right,
            sent_wrong,
        )

    @property
    def products(self) -> tuple[float, float]:
        """What Mantel & Haenszel add up, above and below the line."""
        every = self.drawn + self.sent
        return (
            self.drawn_right * self.sent_wrong / every,
            self.drawn_wrong * self.sent_right / every,
        )


def _by_predictor(
    sent: Sequence[SnapshotRow], drawn: Sequence[SnapshotRow]
) -> Iterator[tuple[list[SnapshotRow], list[SnapshotRow]]]:
    """Sent and drawn verdicts on each model's answers, of those models that have both."""
    found: dict[tuple[int | None, str], tuple[list[SnapshotRow], list[SnapshotRow]]] = {}
    for kind, rows in enumerate((sent, drawn)):
        for row in rows:
            who = row.predicted_version, row.predicted_digest
            found.setdefault(who, ([], []))[kind].append(row)
    return (both for both in found.values() if all(both))


def _enough(tables: Sequence[_Table]) -> bool:
    """Whether these models have as many of each kind as the prior has."""
    drawn, sent = sum(table.drawn for table in tables), sum(table.sent for table in tables)
    return min(drawn, sent) >= PRIOR_ROWS


def _sent(row: SnapshotRow) -> bool:
    return row.sampling == Correction.Sampling.USER


def _sample(row: SnapshotRow) -> str:
    """Which sample a row is of; audits and disagreements are one."""
    drawn = row.sampling in Correction.DRAWN
    return Correction.Sampling.AUDIT.value if drawn else row.sampling


def _right(row: SnapshotRow) -> bool:
    return row.verdict == Correction.Verdict.CONFIRMED
