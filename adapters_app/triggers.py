"""Should we train now? The documents' three conditions, each with its numbers and a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import F, Q, Sum
from django.utils import timezone

from adapters_app import registry
from adapters_app.models import AdapterVersion, PredictionTally, TrainingRun, name_of
from adapters_app.templatetags.figures import percent
from corrections.models import Correction, CorrectionQuerySet

Sampling, Verdict = Correction.Sampling, Correction.Verdict
FEWEST_JUDGED = 30  # of fewer a share of a few per cent is one answer or two


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
    return [_enough_corrected(), _rate(), _long_enough_ago(), _something_new()]


def should_train(found: Sequence[Condition] | None = None) -> bool:
    """Whether all conditions hold, those `found` if given, and no training is queued or running."""
    busy = TrainingRun.objects.active().filter(kind=TrainingRun.Kind.TRAIN).exists()
    return not busy and all(condition.holds for condition in found or conditions())


def _enough_corrected() -> Condition:
    have = Correction.objects.accepted().filter(verdict=Verdict.CORRECTED).count()
    need = settings.LYRA_TRIGGER_MIN_CORRECTED
    sentence = (
        f"{have} accepted corrected verdicts, confirmations not counted; by policy {need} start a "
        "run."
    )
    return Condition("corrected verdicts", have >= need, have, need, sentence)


def _rate() -> Condition:
    need = settings.LYRA_TRIGGER_MIN_RATE
    version = registry.serving().version
    rate, found = _correction_rate(version)
    if rate is None:
        return Condition("correction rate", False, None, need, found)
    said = f"{found}; by policy {percent(need)} or more start a run."
    return Condition("correction rate", rate >= need, rate, need, said)


def _correction_rate(version: AdapterVersion | None) -> tuple[float | None, str]:
    """Share of the answers of what serves that people correct, and it in words.

    From drawn live answers where there are enough audits among them: labelled sets are nobody's
    requests, and a row of one weighs nothing like an answer that stands for 1/p. Else from labelled
    sets, else from what people chose to report.
    """
    name = name_of(version)
    theirs = _answered_by(version)
    if theirs.filter(sampling=Sampling.AUDIT).count() >= FEWEST_JUDGED:
        drawn = theirs.drawn()
        wrong = _weighted(drawn)
        how = f"estimated from {drawn.count()} drawn verdicts"
        return wrong, f"Of its live answers {name} has {percent(wrong)} wrong, {how}"
    labelled = theirs.filter(sampling=Sampling.COMPLETE)
    if labelled.count() >= FEWEST_JUDGED:
        wrong = _weighted(labelled)
        return (
            wrong,
            f"Of {labelled.count()} accepted labelled pairs {name} has {percent(wrong)} wrong",
        )
    tallies = PredictionTally.objects.filter(version=version)
    answered = tallies.aggregate(total=Sum("count"))["total"]
    if not answered:
        return None, (
            f"Cannot be told of {name}: it has answered nothing yet, and fewer than "
            f"{FEWEST_JUDGED} of its answers that were drawn, or of a labelled set, were judged."
        )
    corrected = theirs.filter(verdict=Verdict.CORRECTED).count()
    if corrected > answered:
        return None, (
            f"Cannot be told of {name}: {corrected} corrections are of its answers or do not say "
            f"whose they are, and it has given {answered} here."
        )
    share = corrected / answered
    return share, f"Of {answered} answers of {name} people corrected {corrected} ({percent(share)})"


def _answered_by(version: AdapterVersion | None) -> CorrectionQuerySet:
    """Accepted verdicts on answers of a version; of the base, also where nobody says whose."""
    accepted = Correction.objects.accepted()
    if version is None:
        return accepted.filter(predicted_version=None)
    digests = ("", version.artifact_digest)
    return accepted.filter(predicted_version=version.number, predicted_digest__in=digests)


def _weighted(rows: CorrectionQuerySet) -> float:
    """The share of corrected ones among drawn rows, each of which stands for 1/p."""
    weight = Sum(1 / F("sampling_probability"))
    wrong = Sum(1 / F("sampling_probability"), filter=Q(verdict=Verdict.CORRECTED), default=0.0)
    found = rows.aggregate(all=weight, wrong=wrong)
    return float(found["wrong"] / found["all"])


def _long_enough_ago() -> Condition:
    """Counted from the last run whatever its end: one that fails is not repeated every hour."""
    last = _last_start()
    need = settings.LYRA_TRIGGER_MIN_DAYS
    if last is None:
        never = f"Nothing was trained yet; by policy {need:g} days pass between two trainings."
        return Condition("days since the last run", True, None, need, never)
    have = (timezone.now() - last) / timedelta(days=1)
    sentence = (
        f"The last training began {have:.1f} days ago; by policy {need:g} days pass between two."
    )
    return Condition("days since the last run", have >= need, have, need, sentence)


def _something_new() -> Condition:
    """Verdicts accepted after the last successful training began are not in it."""
    last = _last_start(status=TrainingRun.Status.SUCCEEDED)
    accepted = Correction.objects.accepted()
    if last is not None:
        accepted = accepted.filter(reviewed_at__gt=last)
    have = accepted.count()
    noun = "verdict was" if have == 1 else "verdicts were"
    since = "so far" if last is None else "since the last successful training began"
    return Condition("new verdicts", have > 0, have, 1, f"{have} {noun} accepted {since}.")


def _last_start(**narrowed: str) -> datetime | None:
    """When the last training began, of those that did."""
    begun = TrainingRun.objects.filter(
        kind=TrainingRun.Kind.TRAIN, started_at__isnull=False, **narrowed
    )
    return begun.order_by("started_at").values_list("started_at", flat=True).last()
