"""Which workers and web processes are there: one answer for pages, /readyz, /metrics, promote()."""

from datetime import datetime, timedelta

from django.conf import settings
from django.db import models
from django.db.models import Max
from django.utils import timezone

from adapters_app import training
from adapters_app.models import ServingProcess, TrainingRun

# A probe goes through each queue every minute; after this long without a sign nobody is there.
SILENT_AFTER = timedelta(minutes=4)
# Clocks of hosts that keep time differ by less.
CLOCKS_DIFFER = timedelta(minutes=1)
# Web processes report every half a minute; one that misses this many seconds was killed.
SERVER_SILENT_AFTER = timedelta(seconds=90)


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
        beats = TrainingRun.objects.filter(heartbeat_at__lte=timezone.now() + CLOCKS_DIFFER)
        signs.append(beats.aggregate(last=Max("heartbeat_at"))["last"])
    known = [sign for sign in signs if sign]
    return max(
        (sign for sign in known if not is_from_future(sign)), default=max(known, default=None)
    )


def is_from_future(sign: datetime, now: datetime | None = None) -> bool:
    """Whether a clock was ahead when it was given: then nobody can tell how long ago that was."""
    return sign - (now or timezone.now()) > CLOCKS_DIFFER


def is_silent(last: datetime | None, now: datetime | None = None) -> bool:
    """Whether whoever showed themselves `last` must be taken for gone by `now`."""
    now = now or timezone.now()
    return last is None or now - last > SILENT_AFTER or is_from_future(last, now)


def silent_workers(now: datetime | None = None) -> list[str]:
    """Clusters whose worker has given no sign of life for a while."""
    return [name for name in clusters() if is_silent(last_sign(name), now)]


# --- web processes --------------------------------------------------------------------------------


def saw_server(name: str, *, base_name: str, base_fingerprint: str) -> None:
    """The web process `name` (host:pid) lives and answers with this base."""
    now = timezone.now()
    ServingProcess.objects.update_or_create(
        name=name,
        defaults={"base_name": base_name, "base_fingerprint": base_fingerprint, "seen_at": now},
    )
    ServingProcess.objects.exclude(seen_at__range=_recent(now)).delete()


def server_ended(name: str) -> None:
    """The web process `name` answers no more."""
    ServingProcess.objects.filter(name=name).delete()


def servers() -> "models.QuerySet[ServingProcess]":
    """Web processes that live, by name; each says which base it answers with."""
    return ServingProcess.objects.filter(seen_at__range=_recent(timezone.now())).order_by("name")


def _recent(now: datetime) -> tuple[datetime, datetime]:
    return now - SERVER_SILENT_AFTER, now + CLOCKS_DIFFER
