"""Labels in doubt as curators read them: a version's stored suspicions beside the rows of now.

What is suspicious is computed when a version is trained; see `evaluation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse

from adapters_app.models import AdapterVersion
from corrections import folds
from corrections.models import Correction


@dataclass(frozen=True)
class Doubt:
    """A verdict that models which never saw its page doubt, and what became of it since."""

    correction_id: int
    premise: str
    hypothesis: str
    label: str
    predicted: str
    probability_of_label: float
    since: str  # empty: as it was when the version was trained
    settled: bool  # somebody saw to it since


def newest_version() -> AdapterVersion | None:
    """The version whose siblings have seen the most: it says what is in doubt."""
    return AdapterVersion.objects.first()


def doubts(version: AdapterVersion, limit: int) -> list[Doubt]:
    """At most `limit` of the verdicts a version's siblings doubt, the most suspicious first; what
    somebody saw to since comes last."""
    listed = version.metrics.get("suspicious", [])
    settled = _settled(version, [row["correction_id"] for row in listed])
    shown = sorted(listed, key=lambda row: row["correction_id"] in settled)[:limit]
    rows = Correction.objects.in_bulk([row["correction_id"] for row in shown])
    return [
        _doubt(row, rows[row["correction_id"]], row["correction_id"] in settled)
        for row in shown
        if row["correction_id"] in rows
    ]


def to_review(found: Sequence[Doubt]) -> list[Doubt]:
    """Those that nobody has seen to."""
    return [doubt for doubt in found if not doubt.settled]


def review_url(found: Sequence[Doubt]) -> str:
    """The curator's list with just these rows, where they are read and put right."""
    ids = ",".join(str(doubt.correction_id) for doubt in found)
    return f"{reverse('admin:corrections_correction_changelist')}?{urlencode({'id__in': ids})}"


def _settled(version: AdapterVersion, correction_ids: Sequence[int]) -> set[int]:
    """Those of the rows that somebody reviewed, edited or looked at since and that wait no more."""
    found: set[int] = set()
    for chunk in folds.chunks(correction_ids, folds.IN_CHUNK):
        rows = Correction.objects.filter(pk__in=chunk, events__at__gt=version.created_at)
        found |= set(rows.exclude(status=Correction.Status.PENDING).values_list("pk", flat=True))
    return found


def _doubt(stored: dict[str, Any], row: Correction, settled: bool) -> Doubt:
    return Doubt(
        correction_id=row.pk,
        premise=row.premise,
        hypothesis=row.hypothesis,
        label=stored["label"],
        predicted=stored["predicted"],
        probability_of_label=stored["probability_of_label"],
        since=_since(stored["label"], row, settled),
        settled=settled,
    )


def _since(label: str, row: Correction, settled: bool) -> str:
    if row.correct_label != label:
        return f"now {row.correct_label}"
    if row.status != Correction.Status.ACCEPTED:
        return f"now {row.status}"
    return "looked at again" if settled else ""
