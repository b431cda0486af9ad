"""A run from request to end, as rows: who may write to it, and what its requester is told."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from django.conf import settings as current
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.core.management.base import OutputWrapper
from django.db import DatabaseError, OperationalError, connection, transaction
from django.utils import timezone
from django_q.models import OrmQ

from adapters_app import recipe, registry, snapshots, storage, supervise, training
from adapters_app.following import follow
from adapters_app.management.commands import run_training
from adapters_app.models import AdapterVersion, TrainingRun
from adapters_app.nli.base_model import Base
from adapters_app.training import CancelRequested, LeaseLost, TrainingRefused
from corrections import intake
from corrections.acting import Refused
from corrections.models import Correction
from tests.postgresql import read_only
from tests.test_recipe import QUICK
from tests.verdicts import accept
from tests.versions import write_adapter

pytest_plugins = ("tests.serving",)

Status = TrainingRun.Status


@pytest.fixture
def tina(db) -> User:
    return User.objects.create_user("tina")


@pytest.fixture
def queued(tina) -> TrainingRun:
    accept()
    return training.request(by=tina, config={"epochs": "2"})


def claim(run: TrainingRun, device: str = "here:cpu") -> training.Lease:
    lease = training.claim(run.pk, worker="here:1", device=device)
    assert lease is not None
    return lease


def expire(run: TrainingRun) -> None:
    past = timezone.now() - timedelta(seconds=1)
    TrainingRun.objects.filter(pk=run.pk).update(lease_expires_at=past)


def rings() -> list[int]:
    return [row.task["args"][0] for row in OrmQ.objects.filter(key="training")]


# --- asking ---------------------------------------------------------------------------------------


def test_a_request_is_queued_with_every_setting_spelled_out(queued, tina):
    assert queued.status == Status.QUEUED
    assert queued.requested_by == tina
    assert queued.config["epochs"] == 2
    assert queued.config["seed"] == 42
    assert rings() == [queued.pk]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"colour": 1}, "colour"),
        ({"learning_rate": "x"}, "number"),
        ({"epochs": 10**400}, "epochs: the number is too large"),
        ({"learning_rate": 10**400}, "learning_rate: the number is too large"),
    ],
)
def test_impossible_settings_are_refused_by_name(tina, config, words):
    accept()
    with pytest.raises(TrainingRefused, match=words):
        training.request(by=tina, config=config)
    assert not TrainingRun.objects.exists()
    assert rings() == []


def test_too_few_verdicts_are_refused_with_both_numbers(tina):
    accept(59)
    with pytest.raises(TrainingRefused, match=r"59 accepted verdicts.*60"):
        training.request(by=tina)


def test_a_filter_counts_only_what_it_leaves(tina):
    accept(90)
    with pytest.raises(TrainingRefused, match="45 accepted verdicts"):
        training.request(by=tina, config={"corrections_only": True})


def test_a_missing_label_is_refused_by_name(tina):
    accept(labels=("supports", "neutral"))
    with pytest.raises(TrainingRefused, match="refutes"):
        training.request(by=tina)


def test_a_request_and_its_doorbell_are_committed_together(tina):
    accept()
    request_and_fail = transaction.atomic(lambda: (training.request(by=tina), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        request_and_fail()
    assert not TrainingRun.objects.exists()
    assert rings() == []


def test_a_request_that_a_run_answers_already_is_refused_and_names_it(queued, tina):
    again = {"by": tina, "config": {"epochs": 2}, "reason": "sent again"}
    with pytest.raises(TrainingRefused, match=f"Run {queued.pk} is queued and does the same"):
        training.request(**again)
    claim(queued)
    with pytest.raises(TrainingRefused, match=f"Run {queued.pk} is running and does the same"):
        training.request(**again)
    assert rings() == [queued.pk]

    training.request(by=tina, config={"epochs": 3})
    training.request(by=tina, config={"epochs": 2}, domain="falls")
    training.cancel(queued, by=tina)
    training.request(**again)
    assert TrainingRun.objects.count() == 4


def test_a_version_is_compared_with_what_serves_or_with_what_is_named(make_version, tina):
    first, second = make_version(), make_version()
    ask = partial(training.request, by=tina, kind="shadow", version=second)
    runs = [ask(), ask(against=first), ask(against="base")]
    assert [run.against for run in runs] == ["", "v1", "base"]
    assert rings() == [run.pk for run in runs]
    with pytest.raises(TrainingRefused, match=f"Run {runs[1].pk} is queued and does the same"):
        ask(against=first)


def test_comparisons_that_make_no_sense_are_refused_by_name(make_version, tina):
    first, second = make_version(), make_version()
    digests = {"artifact_digest": first.artifact_digest, "base_name": first.base_name}
    twin = AdapterVersion(number=8, **digests)
    foreign = AdapterVersion(number=9, base_name="another/base", artifact_digest="e" * 64)
    ask = partial(training.request, by=tina, kind="shadow", version=first)
    for against, words in (
        (first, "not compared with itself: name another version than v1"),
        (twin, "v1 and v8 are the same adapter"),
        (foreign, "v9 was trained on the base another/base"),
        ("v2", "Compare with a version or with “base”, not with “v2”"),
    ):
        with pytest.raises(TrainingRefused, match=words):
            ask(against=against)
    with pytest.raises(TrainingRefused, match="Only a shadow evaluation compares"):
        training.request(by=tina, against=second)
    assert rings() == []


def test_the_command_compares_with_a_named_version(on_tiny, tina, monkeypatch):
    """… and says what came of it, and that a promotion cannot stand on it."""
    accept()
    versions = [trained(tina, seed=seed) for seed in (1, 2)]
    monkeypatch.setattr(supervise, "train", carry_out_here)
    out = io.StringIO()
    call_command("shadow_evaluate", "v2", "--against", "v1", "--json", stdout=out)
    told = json.loads(out.getvalue().splitlines()[-1])
    assert (told["version"], told["against"], told["incumbent_served"]) == ("v2", "v1", False)
    evidence = versions[1].evaluations.first()
    assert (evidence.incumbent, evidence.rows) == (versions[0], told["rows"])

    out = io.StringIO()
    call_command("shadow_evaluate", "v2", "--against", "v1", stdout=out)
    assert "v2 against v1: " in out.getvalue()
    assert "no evidence for a promotion: v1 did not serve" in out.getvalue()


def test_the_command_refuses_what_cannot_be_compared(make_version):
    make_version()
    for against, words in (("v9", "no adapter version “v9”"), ("v1", "not compared with itself")):
        with pytest.raises(CommandError, match=words):
            call_command("shadow_evaluate", "v1", "--against", against, "--queue")
    assert rings() == []
    call_command("shadow_evaluate", "v1", "--against", "base", "--queue")
    assert TrainingRun.objects.get(kind="shadow").against == "base"


def trained(by: User, **config) -> AdapterVersion:
    run = training.request(by=by, config=QUICK | config)
    carry_out_here(run.pk)
    return run.produced


def carry_out_here(run_id: int, **_) -> bool:
    """In the place of `supervise.train`: in this process."""
    lease = training.claim(run_id, worker="here:1", device="here:cpu")
    recipe.carry_out(lease, should_stop=lambda: False)
    return True


def test_the_command_says_which_run_does_the_same(queued):
    with pytest.raises(CommandError, match=f"Run {queued.pk} is queued and does the same"):
        call_command("train_adapter", "--set", "epochs=2")
    assert TrainingRun.objects.get() == queued


@pytest.mark.parametrize("change", ["accepted", "rejected", "accepted anew"])
def test_what_runs_does_not_answer_for_verdicts_that_changed_since(queued, tina, change):
    lease = claim(queued)
    training.froze(lease, snapshots.freeze())
    again = {"by": tina, "config": {"epochs": 2}}
    with pytest.raises(TrainingRefused, match="is running"):
        training.request(**again)

    row = Correction.objects.earliest("pk")
    if change == "accepted":
        accept(1, start=500)
    if change == "rejected":
        intake.review([row.pk], by=tina, status="rejected")
    if change == "accepted anew":
        intake.review([row.pk], by=tina, status="pending")
        intake.review([row.pk], by=tina, status="accepted")
    training.request(**again)


# --- holding --------------------------------------------------------------------------------------


def test_a_run_is_claimed_once(queued):
    lease = claim(queued)
    assert training.claim(queued.pk, worker="there:2", device="there:cpu") is None
    queued.refresh_from_db()
    assert (queued.status, queued.attempts, queued.fencing_token) == (Status.RUNNING, 1, 1)
    assert lease == training.Lease(queued.pk, 1)


def test_a_device_trains_one_run_at_a_time(queued, tina):
    other = training.request(by=tina)
    lease = claim(queued)
    assert training.claim(other.pk, worker="here:2", device="here:cpu") is None
    other.refresh_from_db()
    assert (other.status, other.attempts) == (Status.QUEUED, 0)
    training.fail(lease, "for this test")
    claim(other)


def test_progress_is_written_at_most_once_a_second_but_a_new_stage_at_once(queued):
    lease = claim(queued)
    training.heartbeat(lease, stage="fitting", log="started")
    for step in range(1, 50):
        training.heartbeat(lease, step=step, total_steps=100, loss=1 / step)
    queued.refresh_from_db()
    assert (queued.stage, queued.step, queued.log_tail) == ("fitting", 0, "started")
    training.heartbeat(lease, stage="storing")
    queued.refresh_from_db()
    assert (queued.stage, queued.step, queued.total_steps) == ("storing", 49, 100)


def test_the_loss_curve_and_log_stay_small(queued):
    lease = claim(queued)
    for step in range(3 * training.CURVE_POINTS):
        lease.beaten_at = 0.0
        training.heartbeat(lease, step=step, loss=0.5, log=f"line {step}")
    queued.refresh_from_db()
    assert len(queued.loss_curve) <= training.CURVE_POINTS
    assert queued.loss_curve[-1][0] == 3 * training.CURVE_POINTS - 1
    assert len(queued.log_tail.splitlines()) == training.LOG_LINES


def test_a_loss_that_is_no_number_never_reaches_the_row(queued):
    lease = claim(queued)
    training.heartbeat(lease, step=1, loss=float("nan"))
    queued.refresh_from_db()
    assert queued.loss_curve == []


@pytest.mark.parametrize("fault", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_a_run_without_memory_says_what_to_lower(queued, monkeypatch, fault):
    def carry_out(*_, **__):
        raise fault

    monkeypatch.setattr(recipe, "carry_out", carry_out)
    run_training._carry_out(claim(queued), lambda: False)()
    queued.refresh_from_db()
    assert queued.status == Status.FAILED
    assert "Lower batch_size or max_length" in queued.error


def test_whoever_lost_the_lease_writes_nothing(queued):
    first = claim(queued)
    expire(queued)
    assert training.requeue_expired() == [queued.pk]
    second = claim(queued)
    for write in (
        lambda: training.heartbeat(first, stage="late"),
        lambda: training.renew(first),
        lambda: training.watch(first),
        lambda: training.succeed(first),
        lambda: training.measured_base(first, fingerprint="f" * 64),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert not training.fail(first, "late")
    assert not training.cancelled(first)
    assert not training.give_back(first)
    assert not training.crashed(first, "late")
    queued.refresh_from_db()
    assert (queued.status, queued.stage) == (Status.RUNNING, "starting")
    training.heartbeat(second, stage="base")


def test_a_device_whose_holder_is_gone_is_free_for_the_next_run(queued, tina):
    other = training.request(by=tina)
    claim(queued)
    expire(queued)
    claim(other)
    queued.refresh_from_db()
    assert (queued.status, queued.attempts) == (Status.QUEUED, 1)


# --- the database is away -------------------------------------------------------------------------


def lose_connection() -> None:
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.fixture
def lease_on_postgresql(on_postgresql) -> training.Lease:
    return claim(TrainingRun.objects.create(requested_by=User.objects.create_user("tina")))


def test_progress_survives_a_lost_connection(lease_on_postgresql):
    lease = lease_on_postgresql
    lose_connection()
    training.heartbeat(lease, stage="released", step=7)
    assert TrainingRun.objects.get().stage == "starting"
    training.heartbeat(lease, step=8)  # too early for the next beat
    lease.beaten_at -= training.BEAT_S
    training.heartbeat(lease)
    run = TrainingRun.objects.get()
    assert (run.stage, run.step, run.status) == ("released", 8, Status.RUNNING)


def test_a_training_waits_for_a_database_that_is_read_only(lease_on_postgresql, monkeypatch):
    """A failover to a standby, and that it is made the primary."""
    lease, tries = lease_on_postgresql, []
    with ExitStack() as standby:
        standby.enter_context(read_only())
        training.heartbeat(lease, stage="released", step=7)

        def promote(_seconds: float) -> None:
            tries.append(1)
            standby.close()

        monkeypatch.setattr(training.time, "sleep", promote)
        assert training.outlast(lease, lambda: training.fail(lease, "no verdicts"))
    assert tries
    run = TrainingRun.objects.get()
    assert (run.status, run.error) == (Status.FAILED, "no verdicts")


def test_without_the_database_for_the_time_of_a_lease_the_run_is_let_go(
    lease_on_postgresql, settings
):
    lease = lease_on_postgresql
    lease.written_at -= settings.LYRA_LEASE_S
    lose_connection()
    with pytest.raises(LeaseLost, match="out of reach"):
        training.heartbeat(lease, stage="released")


def test_a_trainer_that_let_go_of_a_run_that_is_still_ours_is_started_again_once(queued):
    supervise._output(queued.pk).write_text("the database is out of reach: it is locked\n")
    supervise._settle(claim(queued), supervise.EXIT_LEASE_LOST, "")
    queued.refresh_from_db()
    assert (queued.status, queued.attempts) == (Status.QUEUED, 1)
    supervise._settle(claim(queued), supervise.EXIT_LEASE_LOST, "")
    queued.refresh_from_db()
    assert queued.status == Status.FAILED
    assert "could not reach the database" in queued.error
    assert "it is locked" in queued.error


def finish(lease: training.Lease, directory: Path, base: Base) -> AdapterVersion:
    """Register what a training of `lease` made, as the recipe does."""
    digest = storage.put(directory / write_adapter(directory, base, seed=1))
    snapshot = snapshots.freeze()
    before_and_after = {
        f"{name}_{when}": 0.5
        for name in ("brier", "ece", "log_loss")
        for when in ("before", "after")
    }
    return registry.register(
        lease,
        version=registry.NewVersion(
            snapshot=snapshot,
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            artifact_digest=digest,
            sibling_digests=[digest] * 5,
            artifact_bytes=1,
            trainable_parameters=1,
            config={},
            metrics={},
        ),
        calibration=registry.NewCalibration(
            method="none",
            parameters={},
            fitted_rows=0,
            rows=0,
            bins_before=[],
            bins_after=[],
            candidates={},
            not_tried={},
            reliability_before={},
            reliability_after={},
            **before_and_after,
        ),
        evaluation=registry.NewEvaluation(
            incumbent=None,
            incumbent_calibration=None,
            snapshot=snapshot,
            rows_fingerprint="6" * 64,
            rows=0,
            groups=0,
            effective_groups=0.0,
            verdict="inconclusive",
            needed_pairs=None,
            figures={},
            per_label={},
            flips=[],
            guard={},
            later={},
            advice=[],
        ),
    )


def finished_once(run: TrainingRun) -> bool:
    run.refresh_from_db()
    version = AdapterVersion.objects.get()
    counts = (version.calibrations.count(), version.evaluations.count())
    return run.status == Status.SUCCEEDED and counts == (1, 1)


@contextmanager
def another_process_holds_the_lock() -> Iterator[Callable[[], None]]:
    """SQLite's write lock is somebody else's until the function that is given is called."""
    program = (
        "import sqlite3, sys\n"
        "other = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "other.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, connection.settings_dict["NAME"]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        yield lambda: other.communicate()[0]


@pytest.mark.django_db(transaction=True)
def test_the_end_of_a_run_waits_for_a_locked_database(queued, on_tiny, tiny_model, monkeypatch):
    lease = claim(queued)
    monkeypatch.setattr(training, "RETRY_S", 0)
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "timeout", 0.1)
    connection.close()  # the next one waits that long for the lock
    tries = []
    with another_process_holds_the_lock() as release:

        def act() -> AdapterVersion:
            tries.append(len(tries))
            if len(tries) == 3:
                release()
            return finish(lease, on_tiny, tiny_model)

        training.outlast(lease, act)
    assert len(tries) == 3
    assert finished_once(queued)
    connection.close()


def test_the_end_of_a_run_survives_a_lost_connection(lease_on_postgresql, on_tiny, tiny_model):
    lose_connection()
    training.outlast(lease_on_postgresql, lambda: finish(lease_on_postgresql, on_tiny, tiny_model))
    assert finished_once(TrainingRun.objects.get())


def test_a_commit_whose_answer_was_lost_is_not_made_twice(lease_on_postgresql, on_tiny, tiny_model):
    def commit_and_lose_the_answer() -> None:
        finish(lease_on_postgresql, on_tiny, tiny_model)
        raise OperationalError("server closed the connection unexpectedly")

    with pytest.raises(LeaseLost, match="held by somebody else or over"):
        training.outlast(lease_on_postgresql, commit_and_lose_the_answer)
    assert finished_once(TrainingRun.objects.get())


def test_nobody_waits_for_the_database_longer_than_a_lease(lease_on_postgresql, settings):
    lease = lease_on_postgresql
    training.renew(lease)
    lease.written_at -= settings.LYRA_LEASE_S
    lose_connection()
    with pytest.raises(LeaseLost, match="out of reach"):
        training.outlast(lease, lambda: training.fail(lease, "too late"))
    assert TrainingRun.objects.get().status == Status.RUNNING


@pytest.mark.django_db(transaction=True)
def test_a_whole_run_survives_a_database_that_is_away_for_a_moment_at_every_call(
    queued, on_tiny, monkeypatch
):
    """Each statement that a run makes fails the first time, at every stage."""
    TrainingRun.objects.update(config=queued.config | QUICK)
    lease, seen, heartbeat = claim(queued), set(), training.heartbeat
    monkeypatch.setattr(training, "RETRY_S", 0)

    def forget_at_a_new_stage(lease, **told):
        if "stage" in told:
            seen.clear()
        heartbeat(lease, **told)

    monkeypatch.setattr(training, "heartbeat", forget_at_a_new_stage)

    def away_once(execute, sql, params, many, context):
        if sql not in seen:
            seen.add(sql)
            raise OperationalError("server closed the connection unexpectedly")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(away_once):
        recipe.carry_out(lease, should_stop=lambda: False)
    assert finished_once(queued)
    assert any("INSERT" in statement for statement in seen)


# --- the store is away ----------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_run_whose_store_is_away_fails_with_an_explanation(queued):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    environment = {
        "DATABASE_URL": f"sqlite:///{connection.settings_dict['NAME']}",
        "LYRA_ARTIFACTS": "s3://bucket/lyra",
        "AWS_ENDPOINT_URL_S3": nobody,
        "AWS_DEFAULT_REGION": "here",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "LYRA_MIN_FREE_MIB": "1",
    }
    subprocess.run(
        [sys.executable, str(current.BASE_DIR / "manage.py"), "run_training", str(queued.pk)],
        env=os.environ | environment,
        check=False,
    )
    queued.refresh_from_db()
    assert queued.status == Status.FAILED
    assert queued.error.startswith("The artifact store cannot be used: Could not connect")


# --- ending ---------------------------------------------------------------------------------------


def test_a_run_given_back_does_not_lose_an_attempt(queued):
    assert training.give_back(claim(queued))
    queued.refresh_from_db()
    assert (queued.status, queued.attempts, queued.device) == (Status.QUEUED, 0, "")
    assert rings() == [queued.pk, queued.pk]


def test_a_second_crash_fails_the_run_with_the_explanation(queued):
    assert training.crashed(claim(queued), "no memory")
    queued.refresh_from_db()
    assert (queued.status, queued.attempts) == (Status.QUEUED, 1)
    assert training.crashed(claim(queued), "no memory")
    queued.refresh_from_db()
    assert (queued.status, queued.error) == (Status.FAILED, "no memory")
    assert training.claim(queued.pk, worker="here:1", device="here:cpu") is None


def test_an_expired_lease_is_tried_again_and_then_explained(queued):
    for _ in range(training.MAX_ATTEMPTS):
        claim(queued)
        expire(queued)
        assert training.requeue_expired() == [queued.pk]
    queued.refresh_from_db()
    assert queued.status == Status.FAILED
    assert "disappeared twice" in queued.error
    assert training.requeue_expired() == []


def test_a_lease_that_holds_is_left_alone(queued):
    claim(queued)
    assert training.requeue_expired() == []


def test_a_lease_taken_while_a_clock_was_ahead_does_not_last_until_then(queued):
    claim(queued)
    ahead = timezone.now() + timedelta(days=365)
    TrainingRun.objects.filter(pk=queued.pk).update(lease_expires_at=ahead)
    assert training.requeue_expired() == [queued.pk]


def test_an_expired_run_that_was_to_be_cancelled_is_cancelled(queued, tina):
    claim(queued)
    training.cancel(queued, by=tina)
    expire(queued)
    training.requeue_expired()
    queued.refresh_from_db()
    assert queued.status == Status.CANCELLED


def test_cancelling_a_queued_run_ends_it_at_once(queued, tina):
    run = training.cancel(queued, by=tina)
    assert (run.status, run.cancel_requested_by) == (Status.CANCELLED, tina)
    assert training.claim(run.pk, worker="here:1", device="here:cpu") is None


def test_cancelling_a_running_run_stops_its_holder(queued, tina):
    lease = claim(queued)
    assert training.cancel(queued, by=tina).status == Status.RUNNING
    with pytest.raises(CancelRequested):
        training.heartbeat(lease, stage="base")
    with pytest.raises(CancelRequested):
        training.succeed(lease)
    assert training.give_back(lease)
    queued.refresh_from_db()
    assert queued.status == Status.CANCELLED


def test_cancelling_twice_is_the_same_as_once(queued, tina):
    claim(queued)
    first = training.cancel(queued, by=tina).cancel_requested_at
    assert training.cancel(queued, by=tina).cancel_requested_at == first


def test_a_run_that_is_over_cannot_be_cancelled(queued, tina):
    training.fail(claim(queued), "for this test")
    with pytest.raises(TrainingRefused, match="already over: it failed"):
        training.cancel(queued, by=tina)


def test_only_a_run_that_nobody_has_begun_is_withdrawn(queued, tina):
    lease = claim(queued)
    assert not training.withdraw(queued, by=tina)
    training.watch(lease)  # nobody asked its holder to stop
    training.give_back(lease)
    assert training.withdraw(queued, by=tina)
    queued.refresh_from_db()
    assert (queued.status, queued.cancel_requested_by) == (Status.CANCELLED, tina)


def test_waiting_for_a_run_that_a_worker_has_leaves_it_to_the_worker(queued, tina):
    claim(queued)
    with pytest.raises(Refused, match="A worker has taken run"):
        follow(queued, by=tina, stdout=OutputWrapper(io.StringIO()))
    queued.refresh_from_db()
    assert (queued.status, queued.cancel_requested_at) == (Status.RUNNING, None)


def test_waiting_for_a_device_that_is_taken_withdraws_the_run(queued, tina):
    claim(training.request(by=tina), device=supervise.device())
    with pytest.raises(Refused, match="Another training uses this device"):
        follow(queued, by=tina, stdout=OutputWrapper(io.StringIO()))
    queued.refresh_from_db()
    assert queued.status == Status.CANCELLED


# --- the doorbell ---------------------------------------------------------------------------------


def test_a_run_whose_doorbell_is_waiting_is_not_rung_for_again(queued):
    assert training.ring_forgotten() == []


def test_a_run_whose_doorbell_was_lost_is_rung_for_again(queued):
    OrmQ.objects.update(lock=timezone.now() + timedelta(days=1))  # taken by a worker since killed
    assert training.ring_forgotten() == [queued.pk]
    assert training.ring_forgotten() == []


def test_probes_do_not_pile_up(db):
    training.probe("training")
    training.probe("training")
    assert rings() == ["training"]
