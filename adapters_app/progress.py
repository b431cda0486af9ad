"""How far a training run is, in words: for its page, the first page and the script."""

from typing import Any

from django.utils import timezone

from adapters_app.models import TrainingRun
from adapters_app.templatetags.figures import duration
from adapters_app.training import BASE

# What the recipe calls its stages, for people.
STAGES = {
    "starting": "Starting",
    "snapshot": "Freezing the accepted verdicts",
    "loading": "Loading the base model",
    "base": "The base answers every pair first",
    "fitting": "Training five siblings, each blind to a fold, and the adapter to release",
    "calibration": "Calibrating",
    "storing": "Storing the adapters",
    "shadow": "Comparing with what serves",
    "registering": "Registering",
}


def progress(run: TrainingRun) -> dict[str, Any]:
    """What changes about a run while it runs, JSON-ready; all but `fraction` are texts."""
    return {
        "status": run.status,
        "stage": stage(run),
        "steps": f"step {run.step} of {run.total_steps}" if run.total_steps else "",
        "fraction": fraction(run),
        "eta": "" if run.eta_seconds is None else f"about {duration(run.eta_seconds)} left",
        "elapsed": elapsed(run),
        "heartbeat": heartbeat(run),
        "log": run.log_tail or "Nothing was written yet.",
    }


def stage(run: TrainingRun) -> str:
    """What is being done now, as a sentence fragment."""
    if run.status == TrainingRun.Status.QUEUED:
        return "Waiting for the training worker"
    if run.cancel_requested_at and not run.is_over:
        return "Stopping"
    if run.stage == "shadow" and run.against:
        return f"Comparing with {called(run.against)}"
    return STAGES.get(run.stage, run.stage) or run.get_status_display().capitalize()


def called(against: str) -> str:
    """What a run's `against` is called in a sentence."""
    return "the base" if against == BASE else against


def fraction(run: TrainingRun) -> float | None:
    """Share of this run's steps that are done, 0 to 1; None where it is not known."""
    if run.status == TrainingRun.Status.QUEUED:
        return 0.0
    return min(1.0, run.step / run.total_steps) if run.total_steps else None


def elapsed(run: TrainingRun) -> str:
    """How long it has been running; nothing of one that is not."""
    return duration(seconds_taken(run)) if run.status == TrainingRun.Status.RUNNING else ""


def heartbeat(run: TrainingRun) -> str:
    """How long ago the trainer last told how far it is."""
    if run.heartbeat_at is None or run.is_over:
        return ""
    return f"last report {duration((timezone.now() - run.heartbeat_at).total_seconds())} ago"


def seconds_taken(run: TrainingRun) -> float | None:
    """Seconds from the start to the end, or to now; None before the start."""
    if run.started_at is None:
        return None
    return ((run.finished_at or timezone.now()) - run.started_at).total_seconds()
