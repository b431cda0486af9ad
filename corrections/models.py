"""What people said: verdicts on predictions, the page each came from, and who changed what.

Writes with an actor live in `intake`; permanent folds and near-duplicates in `folds`; the queue of
live answers drawn for audit in `audits`.
"""

from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.db import models
from django.db.models import Exists, F, OuterRef, Q
from django.utils.formats import date_format
from django.utils.text import Truncator
from django.utils.timezone import localtime

from corrections.labels import Label

FOLDS = 5
# Smallest recorded chance of being drawn. A row stands for 1/p answers: at a millionth one row
# outweighs a million others, and sums of 1/p stay far from what a double can hold.
MIN_PROBABILITY = 1e-6


class Fold(models.Model):
    """Running label counts of one fold; its five rows are the lock for giving folds out."""

    number = models.PositiveSmallIntegerField(primary_key=True)
    supports = models.PositiveIntegerField(default=0)
    refutes = models.PositiveIntegerField(default=0)
    neutral = models.PositiveIntegerField(default=0)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(number__lt=FOLDS), name="fold_number_below_five")
        ]

    def __str__(self) -> str:
        return f"fold {self.number}"


class SourceGroup(models.Model):
    """A page or document (or, where none is named, a premise); the unit that is never split."""

    key = models.CharField(
        max_length=255,
        unique=True,
        help_text="“page:” + the page id, or “premise:” + SHA-256 of the normalised premise.",
    )
    fold = models.PositiveSmallIntegerField(
        editable=False, help_text="Set when the group is first seen; never changes."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(fold__lt=FOLDS), name="group_fold_below_five")
        ]

    def __str__(self) -> str:
        return self.key


class JoinedPage(models.Model):
    """A page without a group of its own: the first text seen of it was already in another group."""

    key = models.CharField(max_length=255, unique=True, help_text="“page:” + the page id.")
    group = models.ForeignKey(SourceGroup, on_delete=models.PROTECT, related_name="joined_pages")

    def __str__(self) -> str:
        return f"{self.key} in {self.group_id}"


class PremiseText(models.Model):
    """One distinct normalised premise and its group; what near-duplicates are looked up in."""

    digest = models.CharField(max_length=64, unique=True)
    text = models.TextField(help_text="Normalised: NFKC, case-folded, white space collapsed.")
    group = models.ForeignKey(SourceGroup, on_delete=models.PROTECT, related_name="premises")

    def __str__(self) -> str:
        return Truncator(self.text).chars(80)


class MinHashBand(models.Model):
    """One LSH band of a premise's MinHash signature; equal buckets make two premises candidates."""

    premise = models.ForeignKey(PremiseText, on_delete=models.CASCADE, related_name="bands")
    bucket = models.BigIntegerField()

    class Meta:
        # folds.first_in() reads the first premises of a bucket from it, and nothing else.
        indexes = [models.Index(fields=["bucket", "premise"], name="minhash_bucket_premise")]

    def __str__(self) -> str:
        return f"{self.premise_id}:{self.bucket}"


class CorrectionQuerySet(models.QuerySet["Correction"]):
    def drawn(self) -> "CorrectionQuerySet":
        """Verdicts on live answers that were drawn for review: together they stand for all."""
        return self.filter(sampling__in=Correction.DRAWN)

    def accepted(self) -> "CorrectionQuerySet":
        return self.filter(status=Correction.Status.ACCEPTED)

    def pending(self) -> "CorrectionQuerySet":
        return self.filter(status=Correction.Status.PENDING)

    def of_known_probability(self) -> "CorrectionQuerySet":
        """Rows that may carry figures: how likely they were to be seen is on record."""
        return self.filter(sampling_probability__isnull=False)

    def sent_by(self, user: AbstractBaseUser) -> "CorrectionQuerySet":
        """Rows that `user` recorded; whoever revised or reviewed them did not send them."""
        recorded = CorrectionEvent.objects.filter(
            by_id=user.pk, action=CorrectionEvent.Action.RECORDED
        )
        return self.filter(pk__in=recorded.values("correction"))

    def conflicts(self, *, seen: "CorrectionQuerySet | None" = None) -> "CorrectionQuerySet":
        """Rows still in play whose normalised pair has another such row with a different label.

        `seen`: who asks may only know of these, and so of no other rival.
        """
        rivals = (
            (Correction.objects.all() if seen is None else seen)
            .filter(pair_digest=OuterRef("pair_digest"))
            .exclude(status=Correction.Status.REJECTED)
            .exclude(correct_label=OuterRef("correct_label"))
        )
        return self.exclude(status=Correction.Status.REJECTED).filter(Exists(rivals))


class Correction(models.Model):
    """A person's verdict on a prediction: the model was wrong (corrected) or right (confirmed)."""

    class Verdict(models.TextChoices):
        CORRECTED = "corrected", "corrected"
        CONFIRMED = "confirmed", "confirmed"

    class Sampling(models.TextChoices):
        USER = "user", "reported by choice"
        AUDIT = "audit", "drawn for audit"
        DISAGREEMENT = "disagreement", "drawn where models disagree"
        COMPLETE = "complete", "every row of a labelled set"

    # One sample of live answers: where a version's audits are, what was drawn where models disagree
    # has its share of the whole, see `audits`.
    DRAWN = (Sampling.AUDIT, Sampling.DISAGREEMENT)

    class Status(models.TextChoices):
        PENDING = "pending", "pending"
        ACCEPTED = "accepted", "accepted"
        REJECTED = "rejected", "rejected"

    LABEL_CHOICES = [(label.value, label.value) for label in Label]

    external_id = models.CharField(max_length=200, null=True, blank=True, unique=True)
    revision = models.PositiveIntegerField(default=1, help_text="Goes up when content changes.")
    premise = models.TextField()
    hypothesis = models.TextField()
    pair_digest = models.CharField(
        max_length=64, editable=False, help_text="SHA-256 of the normalised pair."
    )
    predicted_label = models.CharField(max_length=8, choices=LABEL_CHOICES)
    predicted_confidence = models.FloatField(help_text="Top probability, 0 to 1.")
    # By value, not by foreign key: corrections must not import what is built on them.
    predicted_version = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Number of the adapter version that predicted; empty = base.",
    )
    predicted_digest = models.CharField(
        max_length=64,
        blank=True,
        help_text="Digest of that version's artifact, or the base's fingerprint.",
    )
    correct_label = models.CharField(max_length=8, choices=LABEL_CHOICES)
    verdict = models.CharField(max_length=9, choices=Verdict.choices, editable=False)
    sampling = models.CharField(max_length=12, choices=Sampling.choices, default=Sampling.USER)
    sampling_probability = models.FloatField(
        null=True, blank=True, help_text="Chance that this row was drawn; empty = unknown."
    )
    reason = models.TextField(blank=True)
    domain = models.CharField(max_length=100, blank=True, db_index=True)
    page_id = models.CharField(
        max_length=250, blank=True, help_text="The page or document, as its source names it."
    )
    group = models.ForeignKey(SourceGroup, on_delete=models.PROTECT, related_name="corrections")
    annotator = models.CharField(max_length=150, blank=True, db_index=True)
    corrected_at = models.DateTimeField(help_text="When the person judged.")
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.PENDING)
    quarantine = models.TextField(
        blank=True, help_text="Why this row cannot be used (it bridges groups of different folds)."
    )
    reviewer = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    reviewer_name = models.CharField(
        max_length=150,
        blank=True,
        editable=False,
        help_text="The reviewer an import named, where they have no account here.",
    )
    reviewed_at = models.DateTimeField(null=True, blank=True)
    review_note = models.TextField(blank=True)
    source_digest = models.CharField(
        max_length=64,
        blank=True,
        editable=False,
        help_text="SHA-256 of what the source last said of this row; empty = not known.",
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = CorrectionQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        permissions = [
            ("review_correction", "Can accept and reject corrections"),
            ("import_correction", "Can import corrections"),
            ("export_correction", "Can export corrections"),
        ]
        indexes = [
            models.Index(fields=["status", "-id"], name="correction_queue"),  # review queue
            # Duplicates and, without a look at the rows, conflicts.
            models.Index(fields=["pair_digest", "status", "correct_label"], name="correction_pair"),
            # What home page, stats and triggers count and sum, all of it: no long text is read.
            models.Index(
                fields=[
                    "status",
                    "sampling",
                    "verdict",
                    "correct_label",
                    "sampling_probability",
                    "corrected_at",
                    "reviewed_at",
                    "predicted_version",
                    "predicted_digest",
                    "group",
                ],
                name="correction_figures",
            ),
            # What has changed since somebody last asked (`updated_after`).
            models.Index(fields=["updated_at"], name="correction_updated"),
            # The few that are quarantined, on the list's count and filter.
            models.Index(fields=["id"], condition=~Q(quarantine=""), name="correction_quarantined"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(verdict="confirmed", predicted_label=F("correct_label"))
                | (Q(verdict="corrected") & ~Q(predicted_label=F("correct_label"))),
                name="correction_verdict_matches_labels",
            ),
            models.CheckConstraint(
                condition=Q(correct_label__in=list(Label)) & Q(predicted_label__in=list(Label)),
                name="correction_labels_known",
            ),
            models.CheckConstraint(
                condition=Q(predicted_confidence__gte=0, predicted_confidence__lte=1),
                name="correction_confidence_is_probability",
            ),
            models.CheckConstraint(
                condition=Q(sampling="user", sampling_probability__isnull=True)
                | (
                    ~Q(sampling="user")
                    & Q(sampling_probability__gte=MIN_PROBABILITY, sampling_probability__lte=1)
                ),
                name="correction_sampling_probability_recorded",
            ),
            models.CheckConstraint(
                condition=Q(status="pending") | Q(reviewed_at__isnull=False),
                name="correction_review_is_dated",
            ),
            models.CheckConstraint(
                condition=Q(quarantine="") | ~Q(status="accepted"),
                name="correction_quarantined_never_accepted",
            ),
        ]

    def __str__(self) -> str:
        return f"#{self.pk} {self.verdict}: {Truncator(self.hypothesis).chars(60)}"

    @property
    def reviewed_by(self) -> str:
        """The reviewer's name, with or without an account here; empty where nobody reviewed."""
        return self.reviewer.get_username() if self.reviewer else self.reviewer_name


class CorrectionEvent(models.Model):
    """History of a correction: one row per change, written in the change's own transaction."""

    class Action(models.TextChoices):
        RECORDED = "recorded", "recorded"
        REVISED = "revised", "revised"
        EDITED = "edited", "edited"
        ACCEPTED = "accepted", "accepted"
        REJECTED = "rejected", "rejected"
        REOPENED = "reopened", "reopened"

    correction = models.ForeignKey(Correction, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField(auto_now_add=True)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    action = models.CharField(max_length=8, choices=Action.choices)
    changes = models.JSONField(default=dict, help_text="{field: [before, after]}")
    note = models.TextField(blank=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.action} {date_format(localtime(self.at), 'DATETIME_FORMAT')} by {self.by}"


class AuditSampleQuerySet(models.QuerySet["AuditSample"]):
    def to_compare(self) -> "AuditSampleQuerySet":
        """Held until the candidate has answered them; for no person to read yet."""
        return self.filter(state=AuditSample.State.COMPARING)

    def drawn(self) -> "AuditSampleQuerySet":
        """All that were drawn for review, whatever became of them."""
        return self.exclude(state=AuditSample.State.COMPARING)

    def waiting(self) -> "AuditSampleQuerySet":
        return self.filter(state=AuditSample.State.WAITING)

    def answerable(self) -> "AuditSampleQuerySet":
        """What nobody has answered and somebody still could: a skip leaves it to the next one."""
        unanswered = [AuditSample.State.WAITING, AuditSample.State.SKIPPED]
        return self.filter(state__in=unanswered).exclude(premise="")


class AuditSample(models.Model):
    """A live answer drawn at random, waiting for a person's verdict; see `audits`.

    Where a candidate is to answer it first, it is not drawn yet but held for that. Its texts are a
    caller's: they leave it when it is too old (LYRA_AUDIT_DAYS) and unanswered. That it was drawn
    stays on record, since who did not answer belongs to the figures.
    """

    class State(models.TextChoices):
        COMPARING = "comparing", "to be answered by the candidate first"
        WAITING = "waiting", "waiting"
        ANSWERED = "answered", "answered"
        SKIPPED = "skipped", "skipped: cannot tell"
        EXPIRED = "expired", "expired unanswered"

    LOTS = [(kind.value, kind.label) for kind in Correction.DRAWN]

    premise = models.TextField(blank=True)
    hypothesis = models.TextField(blank=True)
    page_id = models.CharField(max_length=250, blank=True, help_text="As the request named it.")
    predicted_label = models.CharField(
        max_length=8, choices=Correction.LABEL_CHOICES, help_text="What the caller was told."
    )
    raw_confidence = models.FloatField(help_text="Top softmax before calibration.")
    confidence = models.FloatField(help_text="Calibrated probability of the predicted label.")
    predicted_version = models.PositiveIntegerField(
        null=True, blank=True, help_text="Number of the version that answered; empty = the base."
    )
    predicted_digest = models.CharField(max_length=64)
    probability = models.FloatField(
        help_text="Chance with which it was drawn; until it is compared, that of an audit alone."
    )
    sampling = models.CharField(
        max_length=12,
        choices=LOTS,
        default=Correction.Sampling.AUDIT,
        help_text="The lot that drew it; an audit where both did.",
    )
    disagreement_share = models.FloatField(
        default=0.0,
        help_text="Chance with which it would be drawn for a disagreement; 0 = no such lot.",
    )
    compared_with = models.PositiveIntegerField(
        null=True, blank=True, help_text="Number of the candidate that answered it too."
    )
    disagrees = models.BooleanField(
        null=True, help_text="Whether that candidate says otherwise; empty = not compared."
    )
    drawn_at = models.DateTimeField()
    state = models.CharField(max_length=9, choices=State.choices, default=State.WAITING)
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    decided_at = models.DateTimeField(null=True, blank=True)
    skip_reason = models.TextField(blank=True)
    correction = models.OneToOneField(
        Correction, null=True, blank=True, on_delete=models.PROTECT, related_name="audit_sample"
    )

    objects = AuditSampleQuerySet.as_manager()

    class Meta:
        ordering = ["drawn_at", "id"]
        default_permissions = ()  # corrections.review_correction opens the queue
        indexes = [
            # The queue oldest first, how many wait, and what has become too old.
            models.Index(fields=["state", "drawn_at", "id"], name="audit_queue")
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(probability__gt=0, probability__lte=1),
                name="audit_probability_recorded",
            ),
            models.CheckConstraint(
                condition=Q(disagreement_share__gte=0, disagreement_share__lte=1),
                name="audit_disagreement_share_is_one",
            ),
            # What only a disagreement draws needs one; what is held needs a lot to be held for.
            models.CheckConstraint(
                condition=Q(sampling="audit")
                | Q(state="comparing")
                | Q(disagrees__isnull=False, disagrees=True),
                name="audit_disagreement_was_seen",
            ),
            models.CheckConstraint(
                condition=~Q(state="comparing")
                | Q(disagreement_share__gt=0, compared_with__isnull=True, disagrees__isnull=True),
                name="audit_comparing_is_open",
            ),
            models.CheckConstraint(
                condition=Q(predicted_label__in=list(Label)), name="audit_label_known"
            ),
            models.CheckConstraint(
                condition=Q(state="answered", correction__isnull=False)
                | (~Q(state="answered") & Q(correction__isnull=True)),
                name="audit_answer_is_a_correction",
            ),
            models.CheckConstraint(
                condition=~Q(state="skipped") | ~Q(skip_reason=""), name="audit_skip_has_a_reason"
            ),
            models.CheckConstraint(
                condition=~Q(state__in=["comparing", "waiting", "answered"])
                | (~Q(premise="") & ~Q(hypothesis="")),
                name="audit_texts_until_settled",
            ),
        ]

    def __str__(self) -> str:
        return f"audit sample {self.pk} ({self.state})"

    @property
    def how_drawn(self) -> str:
        """“drawn where models disagree (v4 said otherwise), probability 0.51”."""
        said = {None: "", True: " said otherwise", False: " said the same"}[self.disagrees]
        by = f" (v{self.compared_with}{said})" if said else ""
        return f"{self.get_sampling_display()}{by}, probability {self.probability:.3g}"

    @property
    def is_answerable(self) -> bool:
        return self.state in {self.State.WAITING, self.State.SKIPPED} and bool(self.premise)


class AuditLoss(models.Model):
    """Draws of a day and version that found no room in the queue: counted, their texts dropped."""

    day = models.DateField()
    predicted_version = models.PositiveIntegerField(null=True)
    predicted_digest = models.CharField(max_length=64)
    count = models.PositiveBigIntegerField(default=0)

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["day", "predicted_version", "predicted_digest"],
                condition=Q(predicted_version__isnull=False),
                name="audit_loss_unique",
            ),
            models.UniqueConstraint(
                fields=["day", "predicted_digest"],
                condition=Q(predicted_version__isnull=True),
                name="audit_loss_base_unique",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.day}: {self.count}"
