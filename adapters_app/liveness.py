"""Which workers are there: one answer for the admin's pages, /readyz and /metrics."""

from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Max
from django.utils import timezone

from adapters_app import training
from adapters_app.models import TrainingRun

# A probe goes through each queue every minute; after this long without a sign nobody is there.
SILENT_AFTER = timedelta(minutes=4)


def clusters() -> tuple[str, str]:
    """The queues that have a worker: the one of the schedules, the one that trains."""
    return str(settings.Q_CLUSTER["name"]), str(settings.TRAINING_CLUSTER)


def last_sign(cluster: str) -> datetime | None:
    """When a worker of the cluster last showed itself; None = never.

    While the one training worker trains, probes wait behind its run: the run's heartbeat is its
    sign of life then.
    """
    signs = [training.last_probe(cluster)]
    if cluster == settings.TRAINING_CLUSTER:
        signs.append(TrainingRun.objects.aggregate(last=Max("heartbeat_at"))["last"])
    return max((sign for sign in signs if sign), default=None)


def is_silent(last: datetime | None, now: datetime | None = None) -> bool:
    """Whether whoever showed themselves `last` must be taken for gone by `now`."""
    return last is None or (now or timezone.now()) - last > SILENT_AFTER


def silent_workers(now: datetime | None = None) -> list[str]:
    """Clusters whose worker has given no sign of life for a while."""
    return [name for name in clusters() if is_silent(last_sign(name), now)]
