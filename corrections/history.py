"""What a correction's history tells that the row itself does not."""

from collections.abc import Iterable

from django.db.models import Q

from corrections import folds
from corrections.models import CorrectionEvent

EDITED = CorrectionEvent.Action.EDITED


def own_labels(correction_ids: Iterable[int]) -> dict[int, str]:
    """What the annotator had said, of those rows whose label somebody else has changed since.

    A curator's repair is no verdict of the annotator's. What a source says anew is, and so is what
    annotators change themselves, and the label of a row that is ascribed to somebody else.
    """
    said: dict[int, str] = {}
    told = Q(changes__has_key="correct_label") | Q(changes__has_key="annotator")
    for chunk in folds.chunks(correction_ids, folds.IN_CHUNK):
        found = CorrectionEvent.objects.filter(told, correction__in=chunk)
        for event in found.select_related("by", "correction").order_by("id"):
            theirs = event.by.get_username() == event.correction.annotator
            ascribed = "annotator" in event.changes
            if event.action == EDITED and not theirs and not ascribed:
                said.setdefault(event.correction_id, event.changes["correct_label"][0])
            else:
                said.pop(event.correction_id, None)
    return said
