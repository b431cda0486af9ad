"""What the admin's first page says: what serves, what waits, whether to train, what to do next."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import Count, F, Q, Sum
from django.urls import reverse
from django.utils import timezone

from adapters_app import evidence, live, liveness, registry, triggers
from adapters_app.models import (
    PredictionTally,
    Promotion,
    Serving,
    ShadowEvaluation,
    TrainingRun,
)
from adapters_app.progress import progress
from corrections.models import AuditSample, Correction

RATE_DAYS = 30
LAST_ENDED = F("finished_at").desc(nulls_last=True)


@dataclass(frozen=True)
class NextStep:
    """What to do next, and where."""

    sentence: str
    link: str = ""
    url: str = ""


@dataclass(frozen=True)
class ReportedErrors:
    """How many of the pairs answered in the last `days` days people reported as wrong.

    `unattributed` reports do not say who had answered, as those imported from elsewhere: they may
    be of answers that were never given here.
    """

    reported: int
    unattributed: int
    answered: int
    days: int = RATE_DAYS

    @property
    def share(self) -> float | None:
        """Reported over answered pairs; None where these are fewer, or no report is of theirs."""
        if self.answered < max(1, self.reported) or (self.unattributed and not self.reported):
            return None
        return self.reported / self.answered


def context(user: User) -> dict[str, Any]:
    """Template variables of the first page; what `user` may not see is not in it."""
    sees_releases = user.has_perm("adapters_app.view_adapterversion")
    found: dict[str, Any] = {}
    if user.has_perm("adapters_app.view_serving"):
        serving = registry.serving()
        found |= {
            "serving": serving,
            "answerer": evidence.answerer(serving.version, serving.calibration),
            "last_change": Promotion.objects.select_related("by").first(),
            "conditions": triggers.conditions(),
            "reported": reported_errors(),
            **live_figures(serving),
        }
    if user.has_perm("corrections.view_correction"):
        found |= {"pending": Correction.objects.pending().count(), "queue": queue_counts()}
    if user.has_perm("corrections.review_correction"):
        found["audits"] = AuditSample.objects.waiting().count()
    if user.has_perm("adapters_app.view_trainingrun"):
        run = TrainingRun.objects.active().order_by("-status", "pk").first()
        found |= {
            "run": run,
            "progress": progress(run) if run else None,
            "last_run": TrainingRun.objects.select_related("produced").order_by(LAST_ENDED).first(),
            "silent": liveness.silent_workers(),
        }
    if sees_releases:
        found |= last_verdict()
    return found | {"next_step": next_step(user, found)}


def live_figures(serving: Serving) -> dict[str, Any]:
    """What drawn answers say of what serves, and of every version they were drawn of."""
    found = live.figures()
    return {
        "live": live.of_serving(serving, found),
        "live_versions": [each for each in found if each.responses.drawn or each.accuracy],
    }


def last_verdict() -> dict[str, Any]:
    """The newest comparison with what served, and what it says."""
    compared = ShadowEvaluation.objects.evidence().select_related("candidate", "incumbent")
    evaluation = compared.first()
    if evaluation is None:
        return {}
    return {
        "evaluation": evaluation,
        "headline": evidence.headline(evaluation),
        "explanation": evidence.explanation(evaluation),
    }


def reported_errors() -> ReportedErrors:
    """Errors people chose to report, and pairs answered, in the last RATE_DAYS days."""
    since = timezone.now() - timedelta(days=RATE_DAYS)
    answered = PredictionTally.objects.filter(hour__gte=since).aggregate(n=Sum("count"))["n"] or 0
    reported = Correction.objects.filter(
        verdict=Correction.Verdict.CORRECTED,
        sampling=Correction.Sampling.USER,
        corrected_at__gte=since,
    ).exclude(status=Correction.Status.REJECTED)
    unknown = Count("pk", filter=Q(predicted_digest=""))
    found = reported.aggregate(all=Count("pk"), unknown=unknown)
    return ReportedErrors(found["all"] - found["unknown"], found["unknown"], answered)


def queue_counts() -> dict[str, int]:
    """How many corrections there are in each state."""
    states = Correction.objects.order_by().values_list("status")
    counted = dict(states.annotate(n=Count("pk")))
    return {label: counted.get(value, 0) for value, label in Correction.Status.choices}


def next_step(user: User, found: dict[str, Any]) -> NextStep:
    """The one thing that moves the loop on, for someone who may do it, else what is awaited."""
    for step in _steps(user, found):
        return step
    return NextStep(
        "Nothing waits for you. Collect verdicts: ask for predictions and correct them.",
        "See how to ask and correct",
        f"{reverse('docs')}#/nli/nli",
    )


def _steps(user: User, found: dict[str, Any]) -> Iterator[NextStep]:
    """What could be done, the most pressing first."""
    run, last_run = found.get("run"), found.get("last_run")
    queued = run is not None and run.status == TrainingRun.Status.QUEUED
    if run and queued and settings.TRAINING_CLUSTER in found["silent"]:
        yield NextStep(
            f"Run {run.pk} waits, and no training worker has answered for "
            f"{liveness.SILENT_AFTER.seconds // 60} minutes. Start one, or look at its log.",
            "Look at the queue",
            reverse("admin:adapters_app_trainingrun_queue"),
        )
    yield from _decision(user, found.get("evaluation"))
    if run:
        yield NextStep(f"Run {run.pk} is under way. Its version can be promoted when it ends.")
    elif last_run and last_run.status == TrainingRun.Status.FAILED:
        yield NextStep(
            f"Run {last_run.pk} failed. Read why, then request it again.",
            f"Open run {last_run.pk}",
            _change_url("trainingrun", last_run.pk),
        )
    asks = user.has_perm("adapters_app.request_training") and not run
    if asks and triggers.should_train(found.get("conditions")):
        yield NextStep(
            "There are enough new verdicts to learn from.",
            "Request training",
            reverse("admin:adapters_app_trainingrun_request"),
        )
    if found.get("pending"):
        yield NextStep(
            f"{_count(found['pending'], 'correction waits', 'corrections wait')} for review. "
            "Accepted ones are learnt from.",
            "Review them",
            reverse("admin:corrections_correction_changelist") + "?status__exact=pending",
        )
    if found.get("audits"):
        yield NextStep(
            f"{_count(found['audits'], 'audit sample waits', 'audit samples wait')} to be judged. "
            "They say how often the model is right.",
            "Judge them",
            reverse("admin:corrections_auditsample_changelist"),
        )


def _decision(user: User, evaluation: ShadowEvaluation | None) -> Iterator[NextStep]:
    """The newest version, while nobody has decided about it."""
    if evaluation is None or evaluation.candidate.promotions.exists():
        return
    if not evaluation.is_against(registry.serving()):
        return
    link = "Read the evidence"
    if evaluation.verdict in evidence.PASSING and user.has_perm("adapters_app.promote_adapter"):
        link = f"Decide about {evaluation.candidate}"
    yield NextStep(
        f"{evidence.headline(evaluation)} Nobody has decided yet whether it serves.",
        link,
        _change_url("adapterversion", evaluation.candidate_id),
    )


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _change_url(model: str, pk: int) -> str:
    return reverse(f"admin:adapters_app_{model}_change", args=[pk])
