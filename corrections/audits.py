"""The audit queue: live answers drawn at random, and what people say of them.

Two independent lots are drawn for every live answer before anybody knows whether it is right. One
audits a share a whatever the answer says. The other picks a share d to be answered by the newest
candidate as well, later and elsewhere; of these, every one that the candidate answers otherwise
joins the queue. So an answer is in the queue

- where the two disagree, if either lot fell on it: with probability a + (1 - a) d,
- where they agree, or nobody compared them, if the first one did: with probability a.

That holds for what an audit drew as well, so with d > 0 all that is drawn is compared before a
person sees it, and the probability it is kept with is the one of its case (`settle`). Which
candidate compares, and whether any does (`release`), never depends on which of the two lots fell,
so the probabilities are exact whatever happens in between; both lots find room or none does.

Live accuracy is estimated from these by inverse-propensity weighting, which is unbiased as long as
nothing but a recorded chance decides who is in the sample. That is why

- each answered pair is drawn by itself, and the probability is stored beside it
  (`inference.sampling`);
- a draw that finds the queue full is not kept, in the order of arrival: how many came before it
  decides, never what it says. The figure then speaks of the answers given while there was room, and
  the draws that found none are counted beside it;
- what is kept waits oldest first; prediction, kind of lot and probability (which tells whether the
  models disagree) are hidden until it is judged;
- nobody's answer is chosen away: who skips says why, what nobody judged in LYRA_AUDIT_DAYS expires,
  and both are counted as non-response. They are the one assumption that is left: that answers
  people judge are as often right as those they skip.

What is too old loses its texts and stays on record as a draw. Dependencies run upwards: who draws
hands samples to `enqueue`, who estimates reads what `responses` and the corrections say.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Count, F, Sum
from django.utils import timezone

from corrections import folds, intake
from corrections.drafts import MAX_NOTE, check_edit
from corrections.labels import Label
from corrections.models import AuditLoss, AuditSample, AuditSampleQuerySet, Correction

State = AuditSample.State
Sampling = Correction.Sampling
# After this long nobody will compare what is held: its process or its model cannot.
COMPARED_WITHIN = timedelta(hours=1)
NO_TEXTS = {"premise": "", "hypothesis": "", "page_id": ""}


class AlreadyDecided(Exception):
    """Somebody answered or skipped the sample, or it expired; the message says who and when."""


class PredictedBy(NamedTuple):
    """Who answered: a version's number (None = the base) and its digest."""

    version: int | None
    digest: str


@dataclass(frozen=True)
class Responses:
    """What became of the draws of one version, in draws."""

    answered: int = 0
    waiting: int = 0
    skipped: int = 0
    expired: int = 0
    not_kept: int = 0  # the queue was full

    @property
    def drawn(self) -> int:
        """All of them, kept or not."""
        return self.settled + self.waiting + self.not_kept

    @property
    def unanswered(self) -> int:
        """Draws that people were asked about in vain."""
        return self.skipped + self.expired

    @property
    def settled(self) -> int:
        """Draws that people were asked about and that are over."""
        return self.answered + self.unanswered

    @property
    def rate(self) -> float | None:
        """Share of the settled draws that were answered; None where none is settled."""
        return self.answered / self.settled if self.settled else None


def predicted_by(sample: AuditSample) -> PredictedBy:
    """Who gave the answer that was drawn."""
    return PredictedBy(sample.predicted_version, sample.predicted_digest)


def enqueue(samples: Sequence[AuditSample], losses: Mapping[PredictedBy, int]) -> int:
    """Store drawn samples, oldest first, as long as there is room; return how many were kept.

    `losses` are audits that the process could not hold; they and those without room are counted.
    What is held to be compared takes a place as well, so that both lots find room or none does.
    """
    with transaction.atomic():
        # Every writer's lock: two servers that flush at once must not both take the last places.
        folds.lock_folds()
        held = AuditSample.objects.filter(state__in=[State.COMPARING, State.WAITING])
        room = max(0, settings.LYRA_AUDIT_WAITING - held.count())
        for sample in samples[:room]:
            # A try that was rolled back has left the key of a row that is not there.
            sample.pk, sample._state.adding = None, True
        AuditSample.objects.bulk_create(samples[:room])
        _count_losses(Counter(losses) + audits_in(samples[room:]))
    return min(room, len(samples))


def audits_in(samples: Sequence[AuditSample]) -> Counter[PredictedBy]:
    """Audits among samples by who answered; of others nobody knows whether they were drawn."""
    return Counter(predicted_by(each) for each in samples if each.sampling == Sampling.AUDIT)


def settle(answers: Mapping[int, Label], *, candidate: int) -> int:
    """Let samples {id: what version number `candidate` says of it} join the queue, or go.

    What the candidate answers otherwise than the caller was told joins with the probability
    a + (1 - a) d; of the others the audits join with theirs, a, and the rest is deleted. Returns
    how many of them disagree. What somebody else has settled meanwhile stays as it is.
    """
    told = AuditSample.objects.filter(pk__in=answers).values_list("pk", "predicted_label")
    other = [pk for pk, label in told if answers[pk] != label]
    compared = {"state": State.WAITING, "compared_with": candidate}
    either = F("probability") + (1 - F("probability")) * F("disagreement_share")
    with transaction.atomic():
        held = AuditSample.objects.to_compare().filter(pk__in=answers)
        differ = held.filter(pk__in=other).update(**compared, disagrees=True, probability=either)
        _let_audits_join(held, **compared, disagrees=False)
    return differ


def release(*, older_than: timedelta = timedelta()) -> int:
    """Let what was held that long join uncompared: audits with their probability, no others.

    For when there is no candidate, or nobody can ask it. Returns how many audits joined.
    """
    with transaction.atomic():
        held = AuditSample.objects.to_compare()
        return _let_audits_join(
            held.filter(drawn_at__lte=timezone.now() - older_than), state=State.WAITING
        )


def _let_audits_join(held: AuditSampleQuerySet, **values: Any) -> int:
    """Give audits `values` and delete the others."""
    held.filter(sampling=Sampling.DISAGREEMENT).delete()
    return held.update(**values)


def answer(sample_id: int, *, by: User, correct_label: str, reason: str = "") -> AuditSample:
    """Record `by`'s verdict on a sample as an accepted correction of known probability.

    The verdict, its acceptance and the answered sample are one transaction; a verdict whose text
    bridges groups of different folds is quarantined and stays pending, as any other. Raises
    AlreadyDecided, ValidationError by field, AuditSample.DoesNotExist.
    """
    sample = AuditSample.objects.drawn().get(pk=sample_id)
    _refuse_decided(sample)

    def close(correction: Correction, _changes: Mapping[str, list[Any]]) -> None:
        closed = AuditSample.objects.answerable().filter(pk=sample_id)
        decision = {"decided_by": by, "decided_at": timezone.now()}
        if not closed.update(state=State.ANSWERED, correction=correction, **decision):
            raise AlreadyDecided(_decision(AuditSample.objects.get(pk=sample_id)))

    intake.record_correction(
        by=by,
        premise=sample.premise,
        hypothesis=sample.hypothesis,
        predicted_label=sample.predicted_label,
        predicted_confidence=sample.confidence,
        predicted_version=sample.predicted_version,
        predicted_digest=sample.predicted_digest,
        correct_label=correct_label,
        sampling=sample.sampling,
        sampling_probability=sample.probability,
        page_id=sample.page_id,
        reason=reason,
        accept=True,
        then=close,
    )
    return AuditSample.objects.select_related("correction", "decided_by").get(pk=sample_id)


def skip(sample_id: int, *, by: User, reason: str) -> AuditSample:
    """Record that `by` cannot tell; somebody else still may answer, until the texts are removed.

    Raises AlreadyDecided, ValidationError by field, AuditSample.DoesNotExist.
    """
    said = check_edit({"reason": reason})["reason"].strip()
    if not said or len(said) > MAX_NOTE:
        raise ValidationError({"reason": f"Say why it cannot be told, in 1 to {MAX_NOTE} letters."})
    skipped = AuditSample.objects.waiting().filter(pk=sample_id)
    decision = {"decided_by": by, "decided_at": timezone.now()}
    changed = skipped.update(state=State.SKIPPED, skip_reason=said, **decision)
    sample = AuditSample.objects.drawn().select_related("decided_by").get(pk=sample_id)
    if not changed:
        raise AlreadyDecided(_decision(sample))
    return sample


def expire() -> int:
    """Remove the texts of samples older than LYRA_AUDIT_DAYS without an answer; how many waited.

    What nobody compared within COMPARED_WITHIN is released first, so that texts which are not drawn
    are not kept for longer.
    """
    release(older_than=COMPARED_WITHIN)
    old = AuditSample.objects.filter(
        drawn_at__lt=timezone.now() - timedelta(days=settings.LYRA_AUDIT_DAYS)
    )
    old.filter(state=State.SKIPPED).exclude(premise="").update(**NO_TEXTS)
    return old.waiting().update(state=State.EXPIRED, **NO_TEXTS)


def responses() -> dict[PredictedBy, Responses]:
    """What became of all draws, by who answered."""
    counts: dict[PredictedBy, dict[str, int]] = {}
    states = (
        AuditSample.objects.drawn()
        .order_by()
        .values_list("predicted_version", "predicted_digest", "state")
    )
    for version, digest, state, rows in states.annotate(rows=Count("pk")):
        counts.setdefault(PredictedBy(version, digest), {})[state] = rows
    losses = AuditLoss.objects.order_by().values_list("predicted_version", "predicted_digest")
    for version, digest, rows in losses.annotate(rows=Sum("count")):
        counts.setdefault(PredictedBy(version, digest), {})["not_kept"] = rows
    return {who: Responses(**found) for who, found in counts.items()}


def _count_losses(losses: Mapping[PredictedBy, int]) -> None:
    day = timezone.now().date()
    for who, rows in losses.items():
        key: dict[str, Any] = {"day": day, "predicted_digest": who.digest}
        key["predicted_version"] = who.version
        AuditLoss.objects.get_or_create(**key)
        AuditLoss.objects.filter(**key).update(count=F("count") + rows)


def _refuse_decided(sample: AuditSample) -> None:
    if not sample.is_answerable:
        raise AlreadyDecided(_decision(sample))


def _decision(sample: AuditSample) -> str:
    """What became of a sample: “Audit sample 5 was answered by ana on 2026-01-05 at 10:11 UTC.”"""
    if sample.state == State.EXPIRED or sample.decided_at is None:
        return f"Audit sample {sample.pk} expired: its texts were removed."
    when = f"{sample.decided_at:%Y-%m-%d at %H:%M} UTC"
    gone = "" if sample.premise else "; its texts were removed"
    return f"Audit sample {sample.pk} was {sample.state} by {sample.decided_by} on {when}{gone}."
