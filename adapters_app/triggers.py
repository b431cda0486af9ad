"""Should we train now? The documents' three conditions, each with its numbers and a sentence."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import F, Sum
from django.utils import timezone

from adapters_app.models import PredictionTally, TrainingRun
from corrections.models import Correction

Verdict = Correction.Verdict


@dataclass(frozen=True)
class Condition:
    """One condition of the policy; `have` is None where it cannot be told."""

    name: str
    holds: bool
    have: float | None
    need: float
    sentence: str


def conditions() -> list[Condition]:
    """Every condition of the policy. All must hold for a run to start by itself."""
    last = _last_run()
    return [_enough_corrected(), _rate(), _long_enough_ago(last), _something_new(last)]


def should_train() -> bool:
    """Whether all conditions hold and no training is queued or running."""
    busy = TrainingRun.objects.active().filter(kind=TrainingRun.Kind.TRAIN).exists()
    return not busy and all(condition.holds for condition in conditions())


def _enough_corrected() -> Condition:
    have = Correction.objects.accepted().filter(verdict=Verdict.CORRECTED).count()
    need = settings.LYRA_TRIGGER_MIN_CORRECTED
    return Condition(
        "corrected verdicts", have >= need, have, need, f"{have} accepted corrections of {need}."
    )


def _rate() -> Condition:
    need = settings.LYRA_TRIGGER_MIN_RATE
    rate, how = _correction_rate()
    if rate is None:
        sentence = "Cannot be told: no prediction was counted and no verdict was drawn at random."
        return Condition("correction rate", False, None, need, sentence)
    said = f"{rate:.1%} of predictions are corrected ({how}); {need:.1%} is needed."
    return Condition("correction rate", rate >= need, rate, need, said)


def _correction_rate() -> tuple[float | None, str]:
    """Share of predictions that people correct, and what it was computed from."""
    known = Correction.objects.accepted().of_known_probability()
    weight = Sum(1 / F("sampling_probability"))
    everything = known.aggregate(total=weight)["total"]
    if everything:
        wrong = known.filter(verdict=Verdict.CORRECTED).aggregate(total=weight)["total"] or 0
        return wrong / everything, f"from {known.count()} drawn verdicts"
    answered = PredictionTally.objects.aggregate(total=Sum("count"))["total"]
    if not answered:
        return None, ""
    corrected = Correction.objects.accepted().filter(verdict=Verdict.CORRECTED).count()
    return min(1.0, corrected / answered), f"{corrected} of {answered} answers"


def _long_enough_ago(last: datetime | None) -> Condition:
    need = settings.LYRA_TRIGGER_MIN_DAYS
    if last is None:
        return Condition("days since the last run", True, None, need, "Nothing was trained yet.")
    have = (timezone.now() - last) / timedelta(days=1)
    sentence = f"The last training was {have:.1f} days ago; {need:g} are needed."
    return Condition("days since the last run", have >= need, have, need, sentence)


def _something_new(last: datetime | None) -> Condition:
    accepted = Correction.objects.accepted()
    if last is not None:
        accepted = accepted.filter(reviewed_at__gt=last)
    have = accepted.count()
    sentence = f"{have} verdicts were accepted since the last training."
    return Condition("new verdicts", have > 0, have, 1, sentence)


def _last_run() -> datetime | None:
    """When the last successful training started: verdicts accepted later are not in it."""
    done = TrainingRun.objects.filter(
        kind=TrainingRun.Kind.TRAIN, status=TrainingRun.Status.SUCCEEDED
    )
    return done.values_list("started_at", flat=True).first()
