"""The real thing: django-q2 clusters, trainer processes and signals, on a SQLite file.

Each test starts processes of its own on the test database. A stage boundary is caught by looking at
the run's row, which names the stage that has begun.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings as current
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from django_q.models import OrmQ, Schedule, Task

from adapters_app import supervise, tasks, training
from adapters_app.models import AdapterVersion, ShadowEvaluation, TrainingRun
from tests.test_recipe import QUICK
from tests.verdicts import accept

pytest_plugins = ("tests.serving",)
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(240)]

Status = TrainingRun.Status
STAGES = [
    "starting",
    "snapshot",
    "loading",
    "base",
    "fitting",
    "calibration",
    "storing",
    "shadow",
    "registering",
]
Start = Callable[..., subprocess.Popen[bytes]]


def until(holds: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Look again and again until it holds."""
    tick = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if holds():
            return
        tick.wait(0.01)
    pytest.fail(f"{what}: not within {seconds} s")


@pytest.fixture
def tina(transactional_db) -> User:
    return User.objects.create_user("tina")


@pytest.fixture
def start(on_tiny: Path, tiny: str, settings, tmp_path: Path) -> Iterator[Start]:
    """Start `manage.py ARGUMENTS` on the test database; whatever is left is killed at the end."""
    environment = os.environ | {
        "DATABASE_URL": f"sqlite:///{connection.settings_dict['NAME']}",
        "LYRA_HOME": str(current.LYRA_HOME),
        "LYRA_ARTIFACTS": str(on_tiny / "store"),
        "LYRA_BASE_MODEL": tiny,
        "LYRA_TORCH_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "LYRA_MIN_FREE_MIB": "1",
    }
    started: list[subprocess.Popen[bytes]] = []

    def do(*arguments: str, **more: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"output-{len(started)}").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(current.BASE_DIR / "manage.py"), *arguments],
                env=environment | more,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield do
    for process in started:
        for pid in [*_descendants(process.pid), process.pid]:
            _kill(pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def hold(start) -> Callable[..., subprocess.Popen[bytes]]:
    """Carry a run out as the worker does, without a queue: a process that holds its lease."""

    def do(run: TrainingRun, prepare: str = "", **environment: str) -> subprocess.Popen[bytes]:
        program = f"from adapters_app import supervise\n{prepare}\nsupervise.train({run.pk})"
        return start("shell", "--no-imports", "-c", program, **environment)

    return do


@pytest.fixture
def cluster(start) -> Callable[[], subprocess.Popen[bytes]]:
    """Start the training cluster, as operations do."""
    return lambda: start("qcluster", Q_CLUSTER_NAME="training")


@pytest.fixture
def run(tina) -> TrainingRun:
    accept()
    return training.request(by=tina, config=QUICK)


@pytest.fixture
def long_run(tina) -> TrainingRun:
    """One that would train for minutes."""
    accept()
    return training.request(by=tina, config=QUICK | {"min_steps": 60_000})


def state(run: TrainingRun) -> TrainingRun:
    run.refresh_from_db()
    return run


def reached(run: TrainingRun, stage: str) -> Callable[[], bool]:
    """Whether the run is at the stage or past it."""

    def look() -> bool:
        now = state(run)
        return now.is_over or (
            now.stage in STAGES and STAGES.index(now.stage) >= STAGES.index(stage)
        )

    return look


def all_or_nothing(run: TrainingRun) -> None:
    """A version is visible exactly if the run succeeded, and then with all that belongs to it."""
    versions = AdapterVersion.objects.filter(run=run)
    if state(run).status == Status.SUCCEEDED:
        version = versions.get()
        assert version.calibrations.count() == version.evaluations.count() == 1
    else:
        assert not versions.exists()
        assert not ShadowEvaluation.objects.exists()


def _children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _descendants(pid: int) -> list[int]:
    children = _children(pid)
    return children + [deeper for child in children for deeper in _descendants(child)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def trainer_of(process: subprocess.Popen[bytes]) -> int:
    """Process id of the child that trains; a run is claimed a moment before it exists."""

    def found() -> list[int]:
        return [pid for pid in _descendants(process.pid) if "--token" in _command(pid)]

    until(lambda: len(found()) == 1, seconds=10, what="one trainer")
    return found()[0]


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def is_gone(pid: int) -> Callable[[], bool]:
    return lambda: "--token" not in _command(pid)


# --- the queue ------------------------------------------------------------------------------------


def test_a_request_is_trained_by_the_cluster(run, cluster):
    cluster()
    until(lambda: state(run).is_over, seconds=90, what="the run ends")
    assert (run.status, run.error, run.attempts) == (Status.SUCCEEDED, "", 1)
    all_or_nothing(run)
    until(lambda: not OrmQ.objects.exists(), seconds=30, what="the doorbell is acknowledged")


def test_a_second_delivery_does_nothing(run, tina):
    lease = training.claim(run.pk, worker="there:1", device="there:cpu")
    assert tasks.run(run.pk) == "not claimed"
    assert (state(run).status, run.attempts) == (Status.RUNNING, 1)
    training.fail(lease, "for this test")
    assert tasks.run(run.pk) == "not claimed"


def test_probes_come_back_from_the_cluster(cluster, db):
    cluster()
    before = timezone.now()
    training.probe("training")
    until(
        lambda: (training.last_probe("training") or before) > before, seconds=60, what="the probe"
    )


def test_schedules_exist_after_migrate_and_call_real_functions():
    functions = set(Schedule.objects.values_list("func", flat=True))
    expected = {"reconcile", "consider_training", "compare_answers", "clear_expired"}
    assert functions == {f"adapters_app.tasks.{name}" for name in expected}
    assert all(callable(getattr(tasks, name)) for name in expected)


def test_a_schedule_put_off_by_a_wrong_clock_runs_again_after_migrate():
    """The clock was a year ahead when it ran last, and has been set back."""
    late = Schedule.objects.get(func="adapters_app.tasks.reconcile")
    usual = Schedule.objects.get(func="adapters_app.tasks.consider_training")
    soon = timezone.now() + timedelta(minutes=30)
    Schedule.objects.filter(pk=late.pk).update(next_run=timezone.now() + timedelta(days=365))
    Schedule.objects.filter(pk=usual.pk).update(next_run=soon)
    call_command("migrate", verbosity=0)
    late.refresh_from_db()
    usual.refresh_from_db()
    assert late.next_run <= timezone.now()
    assert usual.next_run == soon


def test_what_has_expired_is_cleared_and_nothing_else():
    now = timezone.now()
    for days, success in ((-31, False), (-29, False), (-31, True)):
        Task.objects.create(
            id=f"{days}{success}",
            func="f",
            started=now,
            stopped=now + timedelta(days),
            success=success,
        )
    for key, days in (("ended", -1), ("lives", 1)):
        Session.objects.create(session_key=key, expire_date=now + timedelta(days))
    tasks.clear_expired()
    assert set(Task.objects.values_list("pk", flat=True)) == {"-29False", "-31True"}
    assert [session.pk for session in Session.objects.all()] == ["lives"]


# --- sudden death ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_trainer_killed_at_any_stage_leaves_all_or_nothing(run, hold, stage):
    holder = hold(run)
    until(reached(run, stage), seconds=60, what=stage)
    for pid in _children(holder.pid):
        _kill(pid, signal.SIGKILL)
    holder.wait(timeout=60)
    all_or_nothing(run)
    if stage == "registering" and run.status == Status.SUCCEEDED:
        return  # the kill came a moment after the commit
    assert (run.status, run.attempts) == (Status.QUEUED, 1)


def test_a_trainer_killed_twice_is_explained(long_run, hold):
    for _ in range(2):
        holder = hold(long_run)
        until(reached(long_run, "loading"), seconds=60, what="loading")
        os.kill(trainer_of(holder), signal.SIGKILL)
        holder.wait(timeout=60)
        TrainingRun.objects.filter(pk=long_run.pk).update(stage="")
    assert state(long_run).status == Status.FAILED
    assert "SIGKILL" in long_run.error
    assert "memory" in long_run.error


@pytest.mark.parametrize("stage", ["starting", "fitting"])
def test_a_killed_worker_takes_its_trainer_along_and_the_run_goes_back(long_run, cluster, stage):
    """The kernel tells the trainer, who gives the run back at once; the attempt does not count."""
    master = cluster()
    until(reached(long_run, stage), seconds=60, what=stage)
    trainer = trainer_of(master)
    worker = next(pid for pid in _descendants(master.pid) if trainer in _children(pid))
    os.kill(worker, signal.SIGKILL)
    until(is_gone(trainer), seconds=60, what="the trainer ends")
    settle_lost_lease(long_run)
    assert state(long_run).status in {Status.QUEUED, Status.RUNNING}
    all_or_nothing(long_run)


def test_a_killed_cluster_leaves_no_trainer_and_the_next_one_finishes_the_run(run, cluster):
    master = cluster()
    until(reached(run, "base"), seconds=60, what="base")
    trainer = trainer_of(master)
    for pid in [master.pid, *_descendants(master.pid)]:
        if pid != trainer:
            _kill(pid, signal.SIGKILL)
    until(is_gone(trainer), seconds=60, what="the trainer ends")
    settle_lost_lease(run)
    all_or_nothing(run)
    cluster()
    until(lambda: state(run).is_over, seconds=90, what="the run ends")
    assert run.status == Status.SUCCEEDED
    all_or_nothing(run)


def settle_lost_lease(run: TrainingRun) -> None:
    """What the reconciler does once the lease of a holder that is gone has run out."""
    if state(run).status == Status.RUNNING:
        TrainingRun.objects.filter(pk=run.pk).update(lease_expires_at=timezone.now())
        training.requeue_expired()


# --- stopping -------------------------------------------------------------------------------------


def test_a_stopped_cluster_gives_its_run_back(long_run, cluster):
    master = cluster()
    until(reached(long_run, "fitting"), seconds=60, what="fitting")
    trainer = trainer_of(master)
    os.kill(master.pid, signal.SIGTERM)
    until(is_gone(trainer), seconds=30, what="the trainer ends")
    assert (state(long_run).status, long_run.attempts) == (Status.QUEUED, 0)
    master.wait(timeout=30)
    assert training.ring_forgotten() == []  # its doorbell waits for the next cluster


@pytest.mark.parametrize("stage", ["starting", "loading", "fitting"])
def test_cancel_ends_a_run_within_ten_seconds(long_run, hold, tina, stage):
    holder = hold(long_run)
    until(reached(long_run, stage), seconds=60, what=stage)
    trainer = trainer_of(holder)
    training.cancel(long_run, by=tina)
    until(lambda: state(long_run).is_over, seconds=10, what="the run is cancelled")
    assert long_run.status == Status.CANCELLED
    holder.wait(timeout=30)
    assert is_gone(trainer)()
    all_or_nothing(long_run)


def test_a_trainer_that_does_not_listen_is_killed(long_run, hold, tina):
    holder = hold(long_run)
    until(reached(long_run, "fitting"), seconds=60, what="fitting")
    os.kill(trainer_of(holder), signal.SIGSTOP)
    training.cancel(long_run, by=tina)
    until(lambda: state(long_run).is_over, seconds=10, what="the run is cancelled")
    assert state(long_run).status == Status.CANCELLED


def test_a_trainer_whose_run_was_given_to_somebody_else_ends_by_itself(long_run, hold):
    holder = hold(long_run)
    until(reached(long_run, "fitting"), seconds=60, what="fitting")
    trainer = trainer_of(holder)
    TrainingRun.objects.filter(pk=long_run.pk).update(lease_expires_at=timezone.now())
    assert training.requeue_expired() == [long_run.pk]
    other = training.claim(long_run.pk, worker="there:1", device="there:cpu")
    until(is_gone(trainer), seconds=10, what="the first trainer ends")
    holder.wait(timeout=30)
    assert (state(long_run).status, long_run.fencing_token) == (Status.RUNNING, other.token)
    assert long_run.worker == "there:1"


def test_a_run_past_its_deadline_is_ended_and_explained(long_run, hold):
    # Set in the holder only: the system checks refuse so short a limit.
    holder = hold(long_run, "supervise.settings.LYRA_TRAINING_TIMEOUT_S = 1")
    holder.wait(timeout=60)
    assert state(long_run).status == Status.FAILED
    assert "took longer than 1 s (LYRA_TRAINING_TIMEOUT_S)" in long_run.error


# --- errors a user can act on ---------------------------------------------------------------------


def test_what_went_wrong_is_on_the_run(run, start):
    holder = start("run_training", str(run.pk), LYRA_BASE_MODEL="/nowhere/at-all")
    holder.wait(timeout=60)
    assert state(run).status == Status.FAILED
    assert "/nowhere/at-all" in run.error
    assert holder.returncode == 1


def test_too_little_disk_is_on_the_run(run, hold):
    holder = hold(run, LYRA_MIN_FREE_MIB=str(10**9))
    holder.wait(timeout=60)
    assert state(run).status == Status.FAILED
    assert "MiB are free" in run.error


def test_an_error_nobody_foresaw_is_on_the_run_with_its_last_line(run, hold, on_tiny):
    """A store that is a file, not a directory."""
    (on_tiny / "blocked").write_text("")
    holder = hold(run, LYRA_ARTIFACTS=str(on_tiny / "blocked"))
    holder.wait(timeout=60)
    assert state(run).status == Status.FAILED
    assert "FileExistsError" in run.error


def test_a_run_that_is_over_is_refused(run, start, tina):
    training.cancel(run, by=tina)
    holder = start("run_training", str(run.pk))
    assert holder.wait(timeout=60) == 1
    unknown = start("run_training", "999999")
    assert unknown.wait(timeout=60) == 2


def test_two_holders_on_one_host_share_the_device(run):
    assert supervise.device().endswith(f":{current.LYRA_DEVICE}")
