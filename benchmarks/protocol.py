"""Who says what about which pairs: group splits, the simulated user, the training set of it all.

Reproducible from seeds; no model is trained here.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from django.db import transaction

import benchmarks.home  # noqa: F401  Django first

# isort: split
from adapters_app import snapshots
from adapters_app.nli import splits
from adapters_app.snapshots import SnapshotRow
from benchmarks.rows import Row
from corrections.acting import system_user
from corrections.drafts import ParsedRow
from corrections.intake import import_corrections
from corrections.labels import LABELS, Label
from corrections.models import Correction

# A fifth of a stream's rows is held out; split numbers beyond deal the groups anew.
PARTS = 5

Sampling = Correction.Sampling


@dataclass(frozen=True)
class Verdict:
    """What the user said of a pair; `probability` is that of being asked, None = unknown."""

    row: Row
    predicted: Label
    confidence: float
    sampling: str
    probability: float | None

    @property
    def fields(self) -> dict[str, Any]:
        """The verdict as an import file states it."""
        return {
            "page_id": self.row["group"],
            "domain": self.row["source"],
            "premise": self.row["premise"],
            "hypothesis": self.row["hypothesis"],
            "correct_label": self.row["label"],
            "predicted_label": self.predicted.value,
            "predicted_confidence": self.confidence,
            "sampling": self.sampling,
            "sampling_probability": self.probability,
        }


@dataclass(frozen=True)
class User:
    """Pairs come in random order; what of the answers is judged depends on whether they are right.

    A share is audited whatever the answer, and that probability is on record. Of the rest a wrong
    answer is corrected and a right one confirmed with probabilities that nobody knows.
    """

    audits: float = 0.1
    corrects: float = 0.6
    confirms: float = 0.2

    def judge(
        self,
        rows: Sequence[Row],
        probabilities: np.ndarray,
        *,
        budget: int,
        draw: random.Random,
    ) -> list[Verdict]:
        """At most `budget` verdicts on the answers (n, 3) to n rows; all verdicts count.

        The same draw gives the verdicts of a smaller budget first.
        """
        verdicts: list[Verdict] = []
        for i in draw.sample(range(len(rows)), len(rows)):
            predicted = LABELS[int(probabilities[i].argmax())]
            # Both are drawn for every row: one answer changed leaves the other rows' luck alone.
            audited = draw.random() < self.audits
            told = draw.random() < self._tells(right=predicted == rows[i]["label"])
            if not audited and not told:
                continue
            verdicts.append(
                Verdict(
                    row=rows[i],
                    predicted=predicted,
                    confidence=float(probabilities[i].max()),
                    sampling=Sampling.AUDIT if audited else Sampling.USER,
                    probability=self.audits if audited else None,
                )
            )
            if len(verdicts) == budget:
                break
        return verdicts

    def _tells(self, *, right: bool) -> float:
        return self.confirms if right else self.corrects

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Split:
    """Indices of a stream's rows: those that may be judged, and those to measure on."""

    judged: list[int]
    held_out: list[int]


def split(rows: Sequence[Row], number: int) -> Split:
    """Split `number` of a stream: groups whole, a fifth of rows and labels held out, texts unseen.

    Splits 0–4 hold out every group once, 5–9 do so after another shuffle, and so on. Texts are
    purged against all rows that may be judged, so that every budget is measured on the same rows.
    """
    inside, outside = _dealt(rows, parts=PARTS, number=number)
    pairs = [(row["premise"], row["hypothesis"]) for row in rows]
    return Split(inside, splits.unseen(pairs, inside, outside))


def halves(rows: Sequence[Row], indices: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """`indices` in two halves by rows, groups whole: what is judged in two rounds."""
    one, other = _dealt([rows[i] for i in indices], parts=2, number=2 * seed)
    return [indices[i] for i in one], [indices[i] for i in other]


def _dealt(rows: Sequence[Row], *, parts: int, number: int) -> tuple[list[int], list[int]]:
    return splits.deal(
        [row["label"] for row in rows],
        [row["group"] for row in rows],
        parts=parts,
        number=number,
    )


def training_set(verdicts: Sequence[Verdict]) -> list[SnapshotRow]:
    """The snapshot a system holding exactly these verdicts, all accepted, would train on.

    Through the system's own doors, which give each page its fold and quarantine near-duplicates
    across folds; nothing stays in the database.

    Raises:
        ValueError: a pair that no door would take.
    """
    rows = [ParsedRow(line, verdict.fields) for line, verdict in enumerate(verdicts, start=1)]
    with transaction.atomic():
        report = import_corrections(rows, by=system_user(), accept=True)
        if report.refused:
            raise ValueError(f"row {report.refused[0].line}: {report.refused[0].reason}")
        frozen = snapshots.load(snapshots.freeze())
        transaction.set_rollback(True)
    return frozen
