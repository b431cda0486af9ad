"""Carry out one training run. This is what the training worker starts."""

import ctypes
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from django.contrib.auth.models import User
from django.db import Error

from adapters_app import recipe, supervise, training
from adapters_app.models import TrainingRun
from adapters_app.nli.artifact import ArtifactCorrupt
from adapters_app.nli.base_model import BaseModelError
from adapters_app.nli.train import OutOfMemory, TrainingDiverged
from adapters_app.recipe import CannotTrain, Stopped
from adapters_app.snapshots import SnapshotCorrupt
from adapters_app.storage import ArtifactCorrupt as StoredArtifactCorrupt
from adapters_app.storage import ArtifactMissing, StoreUnavailable
from adapters_app.training import CancelRequested, Lease, LeaseLost
from corrections import database_away, full_disk
from corrections.acting import ActingCommand, Refused, WrongUsage

# Their messages are sentences for whoever asked for the run.
EXPLAINED = (
    CannotTrain,
    BaseModelError,
    TrainingDiverged,
    OutOfMemory,
    SnapshotCorrupt,
    ArtifactCorrupt,
    StoredArtifactCorrupt,
    ArtifactMissing,
    StoreUnavailable,
)
PR_SET_PDEATHSIG = 1


class Command(ActingCommand):
    help = "Carry out a queued training run and wait for its end."
    permission = "adapters_app.request_training"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("run_id", type=int, help="id of the run")
        parser.add_argument("--token", type=int, help="we are the child of its lease's holder")
        parser.add_argument("--parent", type=int, help="process id of the lease's holder")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["token"] is None:
            super().handle(*args, **options)
        else:  # whoever holds a lease has been let in already
            _work(Lease(options["run_id"], options["token"]), options["parent"] or os.getppid())

    def act(self, *, by: User, run_id: int, **_: Any) -> dict[str, Any]:
        if not TrainingRun.objects.filter(pk=run_id).exists():
            raise WrongUsage(f"There is no run {run_id}.")
        if not supervise.train(run_id):
            raise Refused(f"Run {run_id} cannot be claimed: {_why_not(run_id)}.")
        run = TrainingRun.objects.get(pk=run_id)
        if run.status != TrainingRun.Status.SUCCEEDED:
            raise Refused(f"Run {run_id} is {run.status}. {run.error}".strip())
        return {"run": run_id, "status": run.status}


def _work(lease: Lease, parent: int) -> None:
    """The child's whole life. The lease decides: whoever lost it writes nothing any more."""
    should_stop = _Stop(parent)
    try:
        close = _carry_out(lease, should_stop)
        training.outlast(lease, close)
    except (LeaseLost, Error) as error:
        if isinstance(error, Error) and not database_away.is_behind(error):
            raise
        print(error, file=sys.stderr)  # noqa: T201  for the holder of the lease, and the log
        sys.exit(supervise.EXIT_LEASE_LOST)


def _carry_out(lease: Lease, should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Do the work; what then closes the run's row. A success has closed it already."""
    try:
        recipe.carry_out(lease, should_stop=should_stop)
    except Stopped:
        return partial(training.give_back, lease)
    except CancelRequested:
        return partial(training.cancelled, lease)
    except EXPLAINED as error:
        return partial(training.fail, lease, str(error))
    except (MemoryError, torch.OutOfMemoryError):  # the machine's, the GPU's
        return partial(training.fail, lease, _NO_MEMORY)
    except OSError as error:
        if not full_disk.is_behind(error):
            raise  # the holder of the lease reports it, with the last line of our output
        return partial(training.fail, lease, supervise.DISK_FULL)
    return lambda: True


class _Stop:
    """True once we were told to end (SIGTERM), or whoever started us is gone."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._told = False
        signal.signal(signal.SIGTERM, self._remember)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
        if sys.platform == "linux":
            # A killed parent cannot tell us anything; the kernel does.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def __call__(self) -> bool:
        return self._told or os.getppid() != self._parent

    def _remember(self, *_: Any) -> None:
        self._told = True


def _why_not(run_id: int) -> str:
    run = TrainingRun.objects.get(pk=run_id)
    if run.status != TrainingRun.Status.QUEUED:
        return f"it is {run.status}"
    return "another run uses this device"


_NO_MEMORY = (
    "Not enough memory. Lower batch_size or max_length, or train on a machine with more memory."
)
