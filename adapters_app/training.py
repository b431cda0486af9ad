"""Training runs in the database: who asked, who holds the lease, how far it is, how it ended.

No torch here: `supervise` starts the process that trains, `recipe` is what that process does.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import (
    Error,
    IntegrityError,
    connection,
    models,
    transaction,
)
from django.db.models import F
from django.utils import timezone
from django_q.models import OrmQ
from django_q.tasks import async_task

from adapters_app import snapshots
from adapters_app.models import AdapterVersion, Promotion, Scope, Serving, TrainingRun
from adapters_app.nli.config import TrainConfig
from corrections import database_away
from corrections.labels import LABELS
from corrections.models import Correction

# The second attempt answers accidents (a restart, an out-of-memory kill); a third would only loop.
MAX_ATTEMPTS = 2
BEAT_S = 1.0  # progress is written at most this often
RETRY_S = 1.0  # between two tries to reach a database that is away
CURVE_POINTS = 400
LOG_LINES = 60
BASE = "base"  # the base model, wherever a version could be named
RUN_TASK = "adapters_app.tasks.run"
PROBE_TASK = "adapters_app.tasks.heartbeat_probe"
Status = TrainingRun.Status
T = TypeVar("T")


class TrainingRefused(Exception):
    """The run was not accepted; the message is a sentence for whoever asked."""


class LeaseLost(Exception):
    """The run is no longer ours: the lease expired, or the run is over. Stop and write nothing."""


class CancelRequested(Exception):
    """Somebody asked for this run to be cancelled."""


@dataclass
class Lease:
    """The right to write to one run, and what its holder has not written yet."""

    run_id: int
    token: int
    # On time.monotonic()'s clock: the last beat, and the last that reached the row. Whoever has
    # just claimed the run, or was started by the claimer, has until the first one a whole lease.
    beaten_at: float = field(default=-math.inf, compare=False)
    written_at: float = field(default_factory=time.monotonic, compare=False)
    unwritten: dict[str, Any] = field(default_factory=dict, compare=False)
    curve: list[tuple[int, float]] = field(default_factory=list, compare=False)
    log: list[str] = field(default_factory=list, compare=False)

    def held(self) -> "models.QuerySet[TrainingRun]":
        """The run as long as it is ours; every write of a lease holder goes through this."""
        return TrainingRun.objects.filter(
            pk=self.run_id, status=Status.RUNNING, fencing_token=self.token
        )


def base_label() -> str:
    """Name of the configured base, with its pinned revision where there is one."""
    name: str = settings.LYRA_BASE_MODEL
    return f"{name}@{settings.LYRA_BASE_REVISION}" if settings.LYRA_BASE_REVISION else name


def base_fingerprint() -> str:
    """What the configured base was last measured to be; empty until a run has loaded it."""
    measured = TrainingRun.objects.filter(base_name=base_label()).exclude(base_fingerprint="")
    return measured.values_list("base_fingerprint", flat=True).first() or ""


# --- asking ---------------------------------------------------------------------------------------


def request(
    *,
    by: User,
    kind: str = TrainingRun.Kind.TRAIN,
    version: AdapterVersion | None = None,
    against: AdapterVersion | str | None = None,
    scope: str = Scope.USER,
    domain: str = "",
    reason: str = "",
    config: Mapping[str, Any] | None = None,
    enqueue: bool = True,
) -> TrainingRun:
    """Queue a run. Its row and its place in the queue are committed together.

    `against` is what a shadow evaluation compares `version` with: another version, "base", or None
    for what serves when it is measured. Only a comparison with what serves is evidence for a
    promotion. `enqueue=False` leaves the queue alone, for a caller that does the work itself.

    Raises:
        TrainingRefused: too little data, an unknown or impossible setting, a version that does not
            fit the configured base, or a run that is to do the same is not over.
    """
    if scope not in Scope.values:
        raise TrainingRefused(f"scope: {scope!r} is not one of {', '.join(Scope.values)}.")
    if kind == TrainingRun.Kind.SHADOW:
        settled = _shadow_settings(version, against, config)
    elif against is not None:
        raise TrainingRefused("Only a shadow evaluation compares a version with another.")
    else:
        settled = _train_settings(config)
    run = TrainingRun(
        kind=kind,
        version=version if kind == TrainingRun.Kind.SHADOW else None,
        scope=scope,
        domain=domain,
        reason=reason,
        config=settled,
        base_name=base_label(),
        requested_by=by,
    )
    # Before the lock, which promotions wait for.
    now = snapshots.select() if TrainingRun.objects.active().exists() else None
    with transaction.atomic():
        # One request at a time: of two that are the same the second sees the first.
        Serving.objects.select_for_update().get(pk=1)
        _refuse_twice(run, now)
        run.save()
        if enqueue:
            ring(run.pk)
    return run


def ring(run_id: int) -> None:
    """Put a run into the training queue. Ringing twice does no harm: only one claim succeeds."""
    async_task(RUN_TASK, run_id, cluster=settings.TRAINING_CLUSTER, task_name=f"run {run_id}")


def check_data(counts: snapshots.Selection, config: TrainConfig) -> None:
    """Refuse data that nothing can be learnt from.

    Raises:
        TrainingRefused: below the floor, or without one of the labels.
    """
    labels = counts.training_labels(config)
    total = sum(labels.values())
    if total < settings.LYRA_TRAINING_FLOOR:
        raise TrainingRefused(
            f"There are {total} accepted verdicts to train on; at least "
            f"{settings.LYRA_TRAINING_FLOOR} are needed. Review more corrections first"
            f"{_left_out(counts)}."
        )
    missing = [label.value for label in LABELS if not labels.get(label.value)]
    if missing:
        raise TrainingRefused(
            f"No accepted verdict says {' or '.join(missing)}: the model would unlearn that label. "
            "Accept some that do."
        )


def _refuse_twice(asked: TrainingRun, now: snapshots.Selection | None) -> None:
    """Refuse a request that a run which is not over answers already, as when it is sent again.

    `now` are the verdicts of now; None if no run was active when they were to be looked at.
    """
    active = (
        TrainingRun.objects.active()
        .select_related("snapshot")
        .filter(
            kind=asked.kind,
            version=asked.version,
            scope=asked.scope,
            domain=asked.domain,
            base_name=asked.base_name,
            cancel_requested_at=None,
        )
    )
    for run in active.order_by("pk"):
        if run.config == asked.config and not _outdated(run, now):
            raise TrainingRefused(
                f"Run {run.pk} is {run.get_status_display()} and does the same, on the same "
                "verdicts: follow that one, or cancel it first."
            )


def _outdated(run: TrainingRun, now: snapshots.Selection | None) -> bool:
    """Whether the same run, begun now, would find other verdicts or another version that serves.

    Verdicts enter the selection as rows that are new to it, or as what others leave out no more.
    """
    if run.status == Status.QUEUED or run.snapshot is None or now is None:
        return False
    frozen = run.snapshot
    return (
        (len(now.ids), now.left_out) != (frozen.rows, frozen.left_out)
        or Correction.objects.accepted().filter(updated_at__gt=run.started_at).exists()
        or Promotion.objects.filter(at__gt=run.started_at).exists()
    )


def _left_out(counts: snapshots.Selection) -> str:
    said = [f"{rows} {reason}" for reason, rows in counts.left_out.items() if rows]
    return f" (left out: {', '.join(said)})" if said else ""


def _train_settings(config: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        chosen = TrainConfig.from_mapping(config or {})
    except ValueError as error:
        raise TrainingRefused(f"{error}.") from error
    check_data(snapshots.select(), chosen)
    return chosen.to_dict()


def _shadow_settings(
    version: AdapterVersion | None,
    against: AdapterVersion | str | None,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    if version is None:
        raise TrainingRefused("Name the version to evaluate.")
    if config:
        raise TrainingRefused("A shadow evaluation takes no training settings.")
    _need_configured_base(version)
    if isinstance(against, AdapterVersion):
        _need_configured_base(against)
        if against.artifact_digest == version.artifact_digest:
            raise TrainingRefused(same_artifact(version, against))
        return {"against": against.name}
    if against is not None:
        if against != BASE:
            raise TrainingRefused(f"Compare with a version or with “{BASE}”, not with “{against}”.")
        return {"against": BASE}
    served = Serving.objects.select_related("version").get(pk=1).version
    if served is not None and served.artifact_digest == version.artifact_digest:
        raise TrainingRefused(
            f"{version.name} is what serves (artifact {version.artifact_digest[:12]}); a model is "
            "not compared with itself."
        )
    return {}


def same_artifact(version: AdapterVersion, other: AdapterVersion) -> str:
    """Why two versions, or one and itself, cannot be compared."""
    artifact = version.artifact_digest[:12]
    if version == other:
        return f"A model is not compared with itself: name another version than {version.name}."
    return f"{version.name} and {other.name} are the same adapter (artifact {artifact})."


def _need_configured_base(version: AdapterVersion) -> None:
    if version.base_name != base_label():
        raise TrainingRefused(
            f"{version.name} was trained on the base {version.base_name}; this server is set to "
            f"{base_label()}."
        )


# --- holding --------------------------------------------------------------------------------------


def claim(run_id: int, *, worker: str, device: str) -> Lease | None:
    """Take a queued run; None where somebody else did, or another run uses the device.

    Runs whose holder is gone are settled first: none of them keeps the device busy.
    """
    requeue_expired()
    now = timezone.now()
    try:
        with transaction.atomic():
            claimed = TrainingRun.objects.filter(
                pk=run_id, status=Status.QUEUED, attempts__lt=MAX_ATTEMPTS
            ).update(
                status=Status.RUNNING,
                attempts=F("attempts") + 1,
                fencing_token=F("fencing_token") + 1,
                lease_expires_at=_lease_end(now),
                worker=worker,
                device=device,
                started_at=now,
                heartbeat_at=now,
                stage="starting",
                step=0,
                total_steps=0,
                eta_seconds=None,
                loss_curve=[],
                log_tail="",
            )
            if not claimed:
                return None
            token = TrainingRun.objects.values_list("fencing_token", flat=True).get(pk=run_id)
    except IntegrityError:  # run_one_running_per_device
        return None
    return Lease(run_id, token)


def heartbeat(
    lease: Lease,
    *,
    stage: str | None = None,
    step: int | None = None,
    total_steps: int | None = None,
    eta_seconds: float | None = None,
    loss: float | None = None,
    log: str | None = None,
) -> None:
    """Renew the lease and report progress; at most one write a second, but a new stage at once.

    A database that is away, or read-only, for a while costs nothing: what was not written goes with
    the next beat.

    Raises:
        LeaseLost: the run is not ours any more, or could not be renewed for the time of a lease.
        CancelRequested: somebody wants it to stop.
    """
    told = {"stage": stage, "step": step, "total_steps": total_steps, "eta_seconds": eta_seconds}
    lease.unwritten |= {name: value for name, value in told.items() if value is not None}
    if log is not None:
        lease.log = [*lease.log, log][-LOG_LINES:]
    clock = time.monotonic()
    if stage is None and clock - lease.beaten_at < BEAT_S:
        return
    lease.beaten_at = clock
    if loss is not None and math.isfinite(loss):
        lease.curve.append((step or 0, round(loss, 5)))
        if len(lease.curve) > CURVE_POINTS:
            lease.curve = lease.curve[::2]
    try:
        _beat(lease)
    except Error as error:
        _let_go_if_too_late(lease, error)


def outlast(lease: Lease, act: Callable[[], T]) -> T:
    """What `act` returns; until the lease is over it is tried again while the database is away, or
    read-only.

    `act` reads, or writes in one transaction and only while the lease holds. So a commit that went
    through, but whose answer was lost, is not made twice: the next try raises LeaseLost.

    Raises:
        LeaseLost: the run is not ours any more, or the database was away for the time of a lease.
    """
    while True:
        try:
            return act()
        except Error as error:
            _let_go_if_too_late(lease, error)
        time.sleep(RETRY_S)


def _let_go_if_too_late(lease: Lease, error: Error) -> None:
    if not database_away.is_behind(error):
        raise error
    connection.close()  # opened again by the next query
    if time.monotonic() - lease.written_at > settings.LYRA_LEASE_S:
        raise LeaseLost(f"run {lease.run_id}: the database is out of reach: {error}") from error


def _beat(lease: Lease) -> None:
    now = timezone.now()
    _keep(
        lease,
        **lease.unwritten,
        heartbeat_at=now,
        lease_expires_at=_lease_end(now),
        loss_curve=lease.curve,
        log_tail="\n".join(lease.log),
    )
    lease.unwritten.clear()
    lease.written_at = time.monotonic()
    watch(lease)


def renew(lease: Lease) -> None:
    """Keep the lease without reporting progress.

    Raises:
        LeaseLost: too late, the run is not ours any more.
    """
    _keep(lease, lease_expires_at=_lease_end(timezone.now()))
    lease.written_at = time.monotonic()


def watch(lease: Lease) -> None:
    """Look whether the holder should stop.

    Raises:
        LeaseLost, CancelRequested: as they say.
    """
    row = lease.held().values_list("cancel_requested_at", flat=True)
    try:
        cancel_requested_at = row.get()
    except TrainingRun.DoesNotExist:
        raise LeaseLost(f"run {lease.run_id} is held by somebody else or over") from None
    if cancel_requested_at is not None:
        raise CancelRequested(f"run {lease.run_id}")


def measured_base(lease: Lease, *, fingerprint: str) -> None:
    """Record which base this run really loaded.

    Raises:
        LeaseLost: the run is not ours any more.
    """
    _keep(lease, base_fingerprint=fingerprint)


def froze(lease: Lease, snapshot: Any) -> None:
    """Record the snapshot this run works on.

    Raises:
        LeaseLost: the run is not ours any more.
    """
    _keep(lease, snapshot=snapshot)


def _keep(lease: Lease, **fields: Any) -> None:
    if not lease.held().update(**fields):
        raise LeaseLost(f"run {lease.run_id} is held by somebody else or over")


# --- ending ---------------------------------------------------------------------------------------


def succeed(lease: Lease) -> None:
    """Close the run; call it first in the transaction that registers what the run made.

    Raises:
        LeaseLost, CancelRequested: nothing may be registered.
    """
    closed = lease.held().filter(cancel_requested_at=None).update(**_ended(Status.SUCCEEDED))
    if not closed:
        watch(lease)
        raise LeaseLost(f"run {lease.run_id} changed hands")


def fail(lease: Lease, error: str) -> bool:
    """Close the run with an explanation; False where it was not ours any more."""
    return bool(lease.held().update(**_ended(Status.FAILED), error=error))


def cancelled(lease: Lease) -> bool:
    """Close the run as cancelled; False where it was not ours any more."""
    return bool(lease.held().update(**_ended(Status.CANCELLED)))


def give_back(lease: Lease) -> bool:
    """Return a run that was stopped for no fault of its own; the attempt does not count."""
    return _requeue(lease.held(), lease.run_id, attempts=F("attempts") - 1)


def crashed(lease: Lease, explanation: str) -> bool:
    """The process died. Try once more, then fail with the explanation."""
    with transaction.atomic():
        if (
            lease.held()
            .filter(cancel_requested_at=None, attempts__gte=MAX_ATTEMPTS)
            .update(**_ended(Status.FAILED), error=explanation)
        ):
            return True
        return _requeue(lease.held(), lease.run_id, attempts=F("attempts"))


def cancel(run: TrainingRun, *, by: User) -> TrainingRun:
    """Ask for a run to stop: at once where it is queued, within seconds where it runs.

    Raises:
        TrainingRefused: it is over.
    """
    asked = {"cancel_requested_at": timezone.now(), "cancel_requested_by": by}
    same = TrainingRun.objects.filter(pk=run.pk)
    if not (
        withdraw(run, by=by)
        or same.filter(status=Status.RUNNING, cancel_requested_at=None).update(**asked)
        # Given back between the two statements above.
        or withdraw(run, by=by)
    ):
        run.refresh_from_db()
        if run.is_over:
            raise TrainingRefused(f"Run {run.pk} is already over: it {_how_it_ended(run)}.")
    run.refresh_from_db()
    return run


def withdraw(run: TrainingRun, *, by: User) -> bool:
    """Cancel a run that nobody has begun; False where somebody has, or it is over."""
    return bool(
        TrainingRun.objects.filter(pk=run.pk, status=Status.QUEUED).update(
            **_ended(Status.CANCELLED),
            cancel_requested_at=timezone.now(),
            cancel_requested_by=by,
        )
    )


def requeue_expired() -> list[int]:
    """Settle runs whose holder stopped renewing its lease; returns their ids.

    A first loss is tried again, a second fails with an explanation.
    """
    settled = []
    for run in TrainingRun.objects.expired().only("pk", "fencing_token", "stage", "worker"):
        lease = Lease(run.pk, run.fencing_token)
        explanation = (
            f"The trainer ({run.worker}) disappeared twice; the last time at the stage "
            f"“{run.stage}”. Usual reasons: the machine was switched off, or the system killed the "
            "process for lack of memory. See the worker's log, then request the training again."
        )
        # Renewed meanwhile: the lease is not expired any more, and nothing is done.
        with transaction.atomic():
            still = TrainingRun.objects.expired().select_for_update().filter(pk=run.pk)
            if still.filter(fencing_token=run.fencing_token).exists() and crashed(
                lease, explanation
            ):
                settled.append(run.pk)
    return settled


def ring_forgotten() -> list[int]:
    """Ring again for queued runs nobody will be told of; returns their ids.

    A doorbell is lost when its worker is killed, or was answered while the device was busy.
    """
    waiting = _waiting_tasks()
    queued = TrainingRun.objects.filter(status=Status.QUEUED).order_by("pk")
    forgotten = [pk for pk in queued.values_list("pk", flat=True) if (RUN_TASK, pk) not in waiting]
    for run_id in forgotten:
        ring(run_id)
    return forgotten


def _requeue(held: "models.QuerySet[TrainingRun]", run_id: int, *, attempts: Any) -> bool:
    with transaction.atomic():
        if held.exclude(cancel_requested_at=None).update(**_ended(Status.CANCELLED)):
            return True
        if not held.update(
            status=Status.QUEUED,
            attempts=attempts,
            lease_expires_at=None,
            device="",
            stage="",
            eta_seconds=None,
        ):
            return False
        ring(run_id)
    return True


def _ended(status: str) -> dict[str, Any]:
    return {
        "status": status,
        "finished_at": timezone.now(),
        "lease_expires_at": None,
        "eta_seconds": None,
    }


def _how_it_ended(run: TrainingRun) -> str:
    return "was cancelled" if run.status == Status.CANCELLED else run.get_status_display()


def _lease_end(now: datetime) -> datetime:
    return now + timedelta(seconds=settings.LYRA_LEASE_S)


# --- signs of life of the queue -------------------------------------------------------------------


def probe(cluster: str) -> None:
    """Send a heartbeat task through a cluster's queue, unless one is waiting there."""
    if (PROBE_TASK, cluster) not in _waiting_tasks(cluster):
        async_task(PROBE_TASK, cluster, cluster=cluster, save=False)


def saw_probe(cluster: str) -> None:
    """A worker of this cluster has run a heartbeat task just now."""
    cache.set(f"probe:{cluster}", timezone.now(), timeout=None)


def last_probe(cluster: str) -> datetime | None:
    """When a worker of this cluster last ran a heartbeat task."""
    return cache.get(f"probe:{cluster}")


def _waiting_tasks(cluster: str = "") -> set[tuple[str, Any]]:
    """(function, first argument) of what nobody has taken out of a cluster's queue yet."""
    unlocked = OrmQ.objects.filter(
        key=cluster or settings.TRAINING_CLUSTER, lock__lte=timezone.now()
    )
    tasks = [row.task for row in unlocked]
    return {(task["func"], task["args"][0]) for task in tasks if task.get("args")}
