"""Audit sampling: each live answer is drawn by lot, with LYRA_AUDIT_SHARE as its chance.

While there is a candidate a second lot, of chance LYRA_DISAGREEMENT_SHARE, picks answers for it to
compare; `corrections.audits` says what becomes of them. No request waits for the candidate: that is
`disagreements`, in a process of its own.

Only answers of what serves (`active`) are drawn: a version that is asked for by name is somebody's
experiment. Drawn ones wait in memory, no more than the queue may hold, and go to
`corrections.audits` with the flusher of `tallies`. What a crash loses is at most one interval's
draws; it does not ask what they say either, so the estimates stay unbiased.
"""

import logging
import math
import random
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import Error
from django.utils import timezone

from adapters_app import registry
from corrections import audits
from corrections.models import AuditSample, Correction
from inference.engine import Answer, Result

if TYPE_CHECKING:
    from adapters_app.nli.encoding import Pair

logger = logging.getLogger(__name__)

Sampling, State = Correction.Sampling, AuditSample.State

_lottery = random.Random()  # noqa: S311  seeded by the system; a lot, no secret
_drawn: list[AuditSample] = []
_losses: Counter[audits.PredictedBy] = Counter()
_candidate_there = False  # as of the last flush; each draw notes whether the second lot was drawn
_lock = threading.Lock()


def draw(
    answer: Answer,
    pairs: Sequence["Pair"],
    *,
    page_ids: Sequence[str] = (),
    raw: bool = False,
) -> None:
    """Draw each pair of a request that what serves has answered.

    `page_ids` are the pairs' pages where the request names them; `raw` = the caller was told the
    raw label.
    """
    share = settings.LYRA_AUDIT_SHARE
    compared = settings.LYRA_DISAGREEMENT_SHARE if _candidate_there else 0.0
    if not share:
        return
    drawn = []
    for result, pair, page_id in zip(
        answer.results, pairs, page_ids or [""] * len(pairs), strict=True
    ):
        audit, other = _lottery.random() < share, _lottery.random() < compared
        if (audit or other) and _can_be_recorded(pair, result):
            sample = _sample(answer, result, pair, page_id, raw=raw)
            sample.sampling = Sampling.AUDIT if audit else Sampling.DISAGREEMENT
            sample.probability, sample.disagreement_share = share, compared
            sample.state = State.COMPARING if compared else State.WAITING
            drawn.append(sample)
    _keep(drawn)


def flush() -> int:
    """Hand what was drawn to the review queue; return how many samples it took.

    If the database cannot take them now they stay in memory for the next time.
    """
    with _lock:
        samples, losses = list(_drawn), Counter(_losses)
        _drawn.clear()
        _losses.clear()
    try:
        _look_for_a_candidate()
        if not samples and not losses:
            return 0
        return audits.enqueue(samples, losses)
    except Error as error:
        logger.warning("drawn answers wait for the database: %s", error)
    with _lock:
        later = list(_drawn)
        _drawn.clear()
        _losses.update(losses)
    _keep(samples + later)
    return 0


def _look_for_a_candidate() -> None:
    """Note whether anybody would compare what is drawn from now on: no query in a request."""
    global _candidate_there
    wanted = bool(settings.LYRA_DISAGREEMENT_SHARE)
    _candidate_there = wanted and registry.newest_candidate() is not None


def _keep(samples: Sequence[AuditSample]) -> None:
    """Put samples into memory while there is room for them; count the others."""
    with _lock:
        room = max(0, settings.LYRA_AUDIT_WAITING - len(_drawn))
        _drawn.extend(samples[:room])
        _losses.update(audits.audits_in(samples[room:]))


def _sample(
    answer: Answer, result: Result, pair: "Pair", page_id: str, *, raw: bool
) -> AuditSample:
    label = result.raw_label if raw else result.label
    return AuditSample(
        premise=pair[0],
        hypothesis=pair[1],
        page_id=page_id,
        predicted_label=label.value,
        raw_confidence=result.raw_confidence,
        confidence=result.probabilities[label.column],
        predicted_version=answer.version,
        predicted_digest=answer.digest,
        drawn_at=timezone.now(),
    )


def _can_be_recorded(pair: "Pair", result: Result) -> bool:
    """Upstream's client may send blank texts and NUL, on which no verdict can be recorded; nor can
    the NaN of a model that overflowed, which is no answer."""
    texts = all(text.strip() and "\0" not in text for text in pair)
    return texts and math.isfinite(result.raw_confidence)
