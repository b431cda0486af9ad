"""Accepted verdicts straight into the database: real rows, without the doors' checks."""

import hashlib
from itertools import cycle, islice

from django.utils import timezone

from corrections.acting import system_user
from corrections.labels import LABELS
from corrections.models import FOLDS, Correction, SourceGroup

# One word gives the label away, so that even a tiny model learns it.
HINTS = {"supports": "is safe", "refutes": "is not safe", "neutral": "may rain"}


def accept(
    count: int = 90,
    *,
    pages: int = 15,
    folds: int = FOLDS,
    labels: tuple[str, ...] = tuple(LABELS),
    sampling: str = "complete",
    start: int = 0,
    **fields,
) -> list[Correction]:
    """Store `count` accepted verdicts from `pages` pages spread over the first `folds` folds.

    Every other one is a correction. `start` keeps the pairs of two calls apart.
    """
    groups = [
        SourceGroup.objects.get_or_create(key=f"page:{start}-{i}", defaults={"fold": i % folds})[0]
        for i in range(pages)
    ]
    now = timezone.now()
    return Correction.objects.bulk_create(
        _verdict(start + i, label, groups[i // len(LABELS) % pages], sampling, now, fields)
        for i, label in enumerate(islice(cycle(labels), count))
    )


def _verdict(number, label, group, sampling, now, fields) -> Correction:
    premise, hypothesis = f"study {number} of the drug", f"the drug {HINTS[label]} in {number}"
    predicted = label if number % 2 else ("neutral" if label != "neutral" else "refutes")
    values = {
        "premise": premise,
        "hypothesis": hypothesis,
        "pair_digest": hashlib.sha256(f"{premise}|{hypothesis}".encode()).hexdigest(),
        "predicted_label": predicted,
        "predicted_confidence": 0.6,
        "correct_label": label,
        "verdict": "confirmed" if predicted == label else "corrected",
        "sampling": sampling,
        "sampling_probability": None if sampling == "user" else 1.0,
        "group": group,
        "annotator": "curt",
        "corrected_at": now,
        "status": "accepted",
        "reviewer": system_user(),
        "reviewed_at": now,
    }
    return Correction(**values | fields)
