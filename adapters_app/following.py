"""Doing a run here and telling a terminal how far it is; for the commands that wait."""

from django.contrib.auth.models import User
from django.core.management.base import OutputWrapper

from adapters_app import supervise, training
from adapters_app.models import TrainingRun
from corrections.acting import Refused

Status = TrainingRun.Status


def follow(run: TrainingRun, *, by: User, stdout: OutputWrapper) -> TrainingRun:
    """Carry out `run` in a child process, printing each stage, and return it when it succeeded.

    Raises:
        Refused: it failed, was cancelled or interrupted, the device is taken, or a worker of the
            queue has the run; what a worker has is left to it.
    """
    teller = _Teller(run.pk, stdout)
    claimed = supervise.train(run.pk, on_poll=teller.look)
    run = TrainingRun.objects.select_related("produced").get(pk=run.pk)
    if not run.is_over:
        withdrawn = training.withdraw(run, by=by)
        raise Refused(_why_not(run, claimed=claimed, withdrawn=withdrawn), details={"run": run.pk})
    teller.look()
    if run.status != Status.SUCCEEDED:
        raise Refused(f"Run {run.pk} {run.status}. {run.error}".strip(), details={"run": run.pk})
    return run


def _why_not(run: TrainingRun, *, claimed: bool, withdrawn: bool) -> str:
    if not withdrawn:
        return f"A worker has taken run {run.pk} and carries it out; its page tells how far it is."
    if claimed:
        return "Interrupted; the run was cancelled."
    return "Another training uses this device; request it without --wait to queue it."


class _Teller:
    """Prints a line whenever the run's stage or whole percentage changes."""

    def __init__(self, run_id: int, stdout: OutputWrapper) -> None:
        self._run_id = run_id
        self._stdout = stdout
        self._last = ""

    def look(self) -> None:
        run = TrainingRun.objects.only("stage", "step", "total_steps", "eta_seconds").get(
            pk=self._run_id
        )
        done = f" {run.step * 100 // run.total_steps} %" if run.total_steps else ""
        eta = f", about {run.eta_seconds:.0f} s left in training" if run.eta_seconds else ""
        line = f"run {self._run_id}: {run.stage}{done}{eta}"
        if line != self._last:
            self._stdout.write(line)
            self._last = line
