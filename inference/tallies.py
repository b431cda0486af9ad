"""Live tallies: predictions per hour, version and label, kept in memory and flushed now and then.

They are the denominator of the correction rate; a write per request would cost more than the
prediction. What a crash loses is at most one interval's counts. The same thread flushes the answers
that `sampling` drew.
"""

import atexit
import functools
import logging
import threading
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from django.db import Error, connection, transaction
from django.db.models import F
from django.utils import timezone

from adapters_app.models import PredictionTally
from inference import monitoring, sampling
from inference.engine import Answer

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 30


class _Key(NamedTuple):
    hour: datetime
    version_id: int | None
    label: str


_counts: Counter[_Key] = Counter()
_lock = threading.Lock()
_stop = threading.Event()


def count(answer: Answer, *, raw: bool = False) -> None:
    """Add one answered request to the tallies in memory; `raw`: by the label before calibration,
    which is what the caller was told."""
    told = (result.raw_label if raw else result.label for result in answer.results)
    labels = Counter(label.value for label in told)
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    with _lock:
        for label, n in labels.items():
            _counts[_Key(hour, answer.version_id, label)] += n
    for label, n in labels.items():
        monitoring.PREDICTIONS.labels(answer.adapter, label).inc(n)


def flush() -> int:
    """Write the tallies to the database; return how many predictions they held.

    If the database cannot take them now they stay in memory for the next time.
    """
    with _lock:
        taken = Counter(_counts)
        _counts.clear()
    if not taken:
        return 0
    try:
        _write(taken.items())
    except Error as error:
        with _lock:
            _counts.update(taken)
        logger.warning("tallies wait for the database: %s", error)
        return 0
    return taken.total()


def _write(counts: Iterable[tuple[_Key, int]]) -> None:
    with transaction.atomic():
        for key, n in counts:
            # get_or_create survives the race with another process on the unique constraint.
            PredictionTally.objects.get_or_create(**key._asdict())
            PredictionTally.objects.filter(**key._asdict()).update(count=F("count") + n)


@functools.cache
def start_flushing() -> None:
    """Flush every FLUSH_SECONDS in a thread of this process, and once more when it ends."""
    atexit.register(_finish)
    threading.Thread(target=_flush_for_ever, name="tallies", daemon=True).start()


def _flush_for_ever() -> None:
    while not _stop.wait(FLUSH_SECONDS):
        _flush_all()
        connection.close()  # this thread's own; idle connections are not kept


def _finish() -> None:
    _stop.set()
    _flush_all()
    connection.close()


def _flush_all() -> None:
    for each in (flush, sampling.flush):
        try:
            each()
        except Exception:  # nobody would start this thread again
            logger.exception("what this process counted and drew could not be flushed")
