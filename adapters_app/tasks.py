"""What the queue calls. Arguments are ids, results small strings; the truth is in TrainingRun."""

import os
import socket
from datetime import timedelta
from typing import Any

from django.apps import apps as registered_apps
from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.utils import timezone
from django_q.conf import Conf
from django_q.models import Failure, Schedule
from django_q.status import Stat

from adapters_app import registry, supervise, training, triggers
from adapters_app.models import Serving, TrainingRun
from corrections import audits
from corrections.acting import system_user
from corrections.models import AuditSample

# name → (function, minutes between two calls)
SCHEDULES = {
    "settle runs whose worker disappeared": ("adapters_app.tasks.reconcile", 1),
    "start a training when the conditions hold": ("adapters_app.tasks.consider_training", 60),
    "let the candidate answer what is to be compared": ("adapters_app.tasks.compare_answers", 5),
    "clear what has expired": ("adapters_app.tasks.clear_expired", 24 * 60),
}

KEEP_FAILURES = timedelta(days=30)


def run(run_id: int) -> str:
    """Train in a child process. A second delivery of a run finds it claimed and does nothing."""
    if not supervise.train(run_id, should_stop=_cluster_stops):
        return "not claimed"
    return TrainingRun.objects.values_list("status", flat=True).get(pk=run_id)


def reconcile() -> str:
    """Every minute: settle expired leases, ring for forgotten runs, probe the queues, and remove
    the texts of drawn answers that nobody judged in time."""
    settled = training.requeue_expired()
    rung = training.ring_forgotten()
    for cluster in (Conf.PREFIX, settings.TRAINING_CLUSTER):
        training.probe(cluster)
    expired = audits.expire()
    return f"settled {settled}, rung {rung}, audits expired {expired}"


def compare_answers() -> str:
    """Every five minutes: have the newest candidate answer what is held to be compared.

    In a process of its own, as a training: this one forks. Where there is no candidate, or it
    cannot be asked, what was drawn for audit goes on without it.
    """
    if not AuditSample.objects.to_compare().exists():
        return "nothing to compare"
    if registry.newest_candidate() is None:
        return f"no candidate, audits released {audits.release()}"
    status = supervise.run_apart("compare_answers", should_stop=_cluster_stops)
    return f"compare_answers ended with status {status}"


def heartbeat_probe(cluster: str) -> None:
    """Arrived at a worker: this cluster is alive."""
    training.saw_probe(cluster)


def consider_training() -> str:
    """Every hour: request a training where the policy allows it and the conditions hold."""
    if not settings.LYRA_AUTO_TRAIN or not triggers.should_train():
        return "no"
    by: User = system_user()
    try:
        started = training.request(by=by, reason="The training conditions hold.")
    except training.TrainingRefused as refusal:
        return str(refusal)
    return f"run {started.pk}"


def clear_expired() -> str:
    """Every day: remove sessions that have ended, and what the queue kept of tasks that failed."""
    SessionStore.clear_expired()
    old = Failure.objects.filter(stopped__lt=timezone.now() - KEEP_FAILURES)
    failures, _ = old.delete()
    return f"old failures removed {failures}"


def make_schedules(*, apps: Any = registered_apps, **_: Any) -> None:
    """After migrate (which tells the apps as migrated) or flush: fill what must not be empty."""
    try:
        apps.get_model("django_q", "Schedule")
        apps.get_model("adapters_app", "Serving")
    except LookupError:  # a partial migration; the next one completes it
        return
    Serving.objects.get_or_create(pk=1)
    for name, (function, minutes) in SCHEDULES.items():
        schedule, _created = Schedule.objects.update_or_create(
            name=name,
            defaults={
                "func": function,
                "schedule_type": Schedule.MINUTES,
                "minutes": minutes,
                "repeats": -1,
                "cluster": None,
            },
        )
        if schedule.next_run > timezone.now() + timedelta(minutes=minutes):
            # A clock was ahead once, and has been set back: it would wait for that day.
            schedule.next_run = timezone.now()
            schedule.save(update_fields=["next_run"])


def _cluster_stops() -> bool:
    """Whether the cluster this worker belongs to was told to stop.

    django-q2 tells its workers only after their task; its own statistics tell us in time.
    """
    return any(
        stat.status == Conf.STOPPING
        and os.getpid() in stat.workers
        and stat.host == socket.gethostname()  # in a cache of several hosts ids are not unique
        for stat in Stat.get_all()
    )
