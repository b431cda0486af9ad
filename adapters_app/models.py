"""What was learnt, what it was worth, and what serves.

State changes live in `training` and `registry`.
"""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

USER = settings.AUTH_USER_MODEL


class Scope(models.TextChoices):
    GENERAL = "general", "general"
    ACADEMIC = "academic", "academic"
    USER = "user", "user"


class SnapshotQuerySet(models.QuerySet["Snapshot"]):
    def unneeded(self) -> "SnapshotQuerySet":
        """Named by nothing, or only by runs that failed or were cancelled.

        What else names one keeps it for ever: it is its evidence.
        """
        ended = [TrainingRun.Status.FAILED, TrainingRun.Status.CANCELLED]
        keeping = (
            TrainingRun.objects.exclude(status__in=ended),
            AdapterVersion.objects,
            CalibrationEvaluation.objects,
            ShadowEvaluation.objects,
            LearningCurve.objects,
            Study.objects,
        )
        return self.filter(*(~Exists(kept.filter(snapshot=OuterRef("pk"))) for kept in keeping))


class Snapshot(models.Model):
    """An immutable training set: JSON Lines in artifact storage, named by its SHA-256.

    While nothing names it, it can be pruned once it was last frozen an hour ago.
    """

    digest = models.CharField(max_length=64, unique=True)
    rows = models.PositiveIntegerField()
    groups = models.PositiveIntegerField()
    label_counts = models.JSONField(help_text="{label: rows}")
    verdict_counts = models.JSONField(help_text="{corrected: rows, confirmed: rows}")
    left_out = models.JSONField(help_text="{reason: rows} of accepted rows that are not in it")
    file_mark = models.CharField(
        max_length=8,
        blank=True,
        help_text="Ends its file's name: that of a pruned snapshot is not given again.",
    )
    created_at = models.DateTimeField(auto_now_add=True)
    frozen_at = models.DateTimeField(
        default=timezone.now, help_text="When these verdicts were last asked for."
    )

    objects = SnapshotQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.digest[:12]} ({self.rows} rows)"

    @property
    def storage_name(self) -> str:
        mark = f"-{self.file_mark}" if self.file_mark else ""
        return f"snapshots/{self.digest}{mark}.jsonl"


class TrainingRunQuerySet(models.QuerySet["TrainingRun"]):
    def active(self) -> "TrainingRunQuerySet":
        return self.filter(status__in=[TrainingRun.Status.QUEUED, TrainingRun.Status.RUNNING])

    def expired(self) -> "TrainingRunQuerySet":
        """Running by our books, but whoever ran it stopped renewing its lease."""
        now, lease = timezone.now(), timedelta(seconds=settings.LYRA_LEASE_S)
        # No lease lasts this long: it was taken while a clock was ahead, which has been set back.
        ended = Q(lease_expires_at__lt=now) | Q(lease_expires_at__gt=now + 2 * lease)
        return self.filter(ended, status=TrainingRun.Status.RUNNING)


class TrainingRun(models.Model):
    """Our own record of a background job: the truth about it; the queue only rings a doorbell."""

    class Kind(models.TextChoices):
        TRAIN = "train", "train an adapter"
        SHADOW = "shadow", "shadow-evaluate a version"

    class Status(models.TextChoices):
        QUEUED = "queued", "queued"
        RUNNING = "running", "running"
        SUCCEEDED = "succeeded", "succeeded"
        FAILED = "failed", "failed"
        CANCELLED = "cancelled", "cancelled"

    kind = models.CharField(max_length=6, choices=Kind.choices, default=Kind.TRAIN)
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.QUEUED)
    scope = models.CharField(max_length=8, choices=Scope.choices, default=Scope.USER)
    domain = models.CharField(max_length=100, blank=True)
    reason = models.TextField(blank=True, help_text="Why it was asked for.")
    config = models.JSONField(default=dict, help_text="TrainConfig, every field spelled out.")
    version = models.ForeignKey(
        "AdapterVersion",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="shadow_runs",
        help_text="The version to evaluate (kind = shadow).",
    )
    snapshot = models.ForeignKey(Snapshot, null=True, blank=True, on_delete=models.PROTECT)
    base_name = models.CharField(max_length=255, blank=True)
    base_fingerprint = models.CharField(max_length=64, blank=True)

    requested_by = models.ForeignKey(USER, on_delete=models.PROTECT, related_name="+")
    requested_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    # Lease: who may write to this row now. `fencing_token` goes up with every claim; a writer whose
    # token is old has lost the run and must stop.
    attempts = models.PositiveSmallIntegerField(default=0)
    fencing_token = models.PositiveIntegerField(default=0)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    device = models.CharField(max_length=100, blank=True, help_text="e.g. host:cpu, host:cuda:0")
    worker = models.CharField(max_length=200, blank=True, help_text="host:pid that holds the lease")
    heartbeat_at = models.DateTimeField(null=True, blank=True)

    stage = models.CharField(max_length=40, blank=True)
    step = models.PositiveIntegerField(default=0)
    total_steps = models.PositiveIntegerField(default=0)
    eta_seconds = models.FloatField(null=True, blank=True)
    loss_curve = models.JSONField(default=list, help_text="[[step, training loss], …]")
    log_tail = models.TextField(blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_by = models.ForeignKey(
        USER, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    error = models.TextField(blank=True, help_text="What went wrong and what to do about it.")

    objects = TrainingRunQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        permissions = [
            ("request_training", "Can request training and shadow evaluation"),
            ("cancel_training", "Can cancel training"),
        ]
        constraints = [
            # One trainer per device: a second claim fails on this, whatever the queue delivers.
            models.UniqueConstraint(
                fields=["device"], condition=Q(status="running"), name="run_one_running_per_device"
            ),
            models.CheckConstraint(
                condition=~Q(status="running")
                | (Q(lease_expires_at__isnull=False) & ~Q(device="") & Q(started_at__isnull=False)),
                name="run_running_holds_a_lease",
            ),
            models.CheckConstraint(
                condition=~Q(status="failed") | ~Q(error=""), name="run_failure_is_explained"
            ),
            models.CheckConstraint(
                condition=~Q(kind="shadow") | Q(version__isnull=False),
                name="run_shadow_has_version",
            ),
        ]
        indexes = [models.Index(fields=["status"], name="run_status")]

    def __str__(self) -> str:
        return f"run {self.pk} ({self.kind}, {self.status})"

    @property
    def is_over(self) -> bool:
        return self.status in {self.Status.SUCCEEDED, self.Status.FAILED, self.Status.CANCELLED}

    @property
    def against(self) -> str:
        """What the version is to be compared with, “v3” or “base”; empty = what serves.

        It is all that the `config` of a shadow evaluation says.
        """
        return self.config.get("against", "") if self.kind == self.Kind.SHADOW else ""


class AdapterVersion(models.Model):
    """One trained adapter, immutable: the released fit and its five fold-blind siblings.

    Migrations 0003 and 0005 have the database itself refuse to change or to delete it.
    """

    number = models.PositiveIntegerField(unique=True, editable=False)
    scope = models.CharField(max_length=8, choices=Scope.choices)
    domain = models.CharField(max_length=100, blank=True)
    run = models.OneToOneField(TrainingRun, on_delete=models.PROTECT, related_name="produced")
    snapshot = models.ForeignKey(Snapshot, on_delete=models.PROTECT, related_name="versions")
    base_name = models.CharField(max_length=255)
    base_fingerprint = models.CharField(max_length=64)
    artifact_digest = models.CharField(
        max_length=64, db_index=True, help_text="SHA-256 of the released tensor file."
    )
    sibling_digests = models.JSONField(help_text="Five digests; item k never saw fold k.")
    artifact_bytes = models.PositiveBigIntegerField()
    trainable_parameters = models.PositiveBigIntegerField()
    config = models.JSONField()
    metrics = models.JSONField(
        default=dict,
        help_text="Per epoch: training loss and out-of-fold figures; the base's first.",
    )
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(USER, on_delete=models.PROTECT, related_name="+")

    class Meta:
        ordering = ["-number"]
        permissions = [
            ("promote_adapter", "Can promote and roll back adapter versions"),
            ("download_adapter", "Can download adapter artifacts"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """What people and the upstream's client call it, e.g. “v7”."""
        return f"v{self.number}"

    @staticmethod
    def details(path: str = "") -> list[str]:
        """The long columns, shown on a version's own page alone: to defer() for who needs its name.

        `path` leads to the version, e.g. “incumbent__”. A thousand doubted verdicts are `metrics`.
        """
        return [f"{path}{name}" for name in ("config", "metrics", "sibling_digests")]


def name_of(version: AdapterVersion | None) -> str:
    """What a version is called in sentences; None is the base model."""
    return version.name if version else "the base"


class CalibrationEvaluation(models.Model):
    """A fitted calibrator bound to a version (or the base), with figures before and after."""

    class Method(models.TextChoices):
        NONE = "none", "none"
        TEMPERATURE = "temperature", "temperature scaling"
        BCTS = "bcts", "bias-corrected temperature scaling"
        PLATT = "platt", "Platt scaling"

    # These change how sure an answer is, never the answer; as `nli.calibration.OF_ANY_MIX`.
    OF_ANY_MIX = (Method.NONE, Method.TEMPERATURE)

    version = models.ForeignKey(
        AdapterVersion,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="calibrations",
        help_text="Empty = the base model.",
    )
    number = models.PositiveIntegerField(help_text="1, 2, … within its version; never reused.")
    base_fingerprint = models.CharField(max_length=64)
    snapshot = models.ForeignKey(
        Snapshot,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        help_text="The verdicts it was fitted on; empty in rows of releases that did not note it.",
    )
    method = models.CharField(max_length=11, choices=Method.choices)
    parameters = models.JSONField()
    fitted_rows = models.PositiveIntegerField(help_text="Out-of-fold rows it was fitted on.")
    rows = models.PositiveIntegerField(
        help_text="Those of known probability among them, of which the figures are."
    )
    brier_before = models.FloatField()
    brier_after = models.FloatField()
    ece_before = models.FloatField()
    ece_after = models.FloatField()
    log_loss_before = models.FloatField()
    log_loss_after = models.FloatField()
    bins_before = models.JSONField()
    bins_after = models.JSONField()
    # Empty in rows of releases that did not measure it.
    reliability_before = models.JSONField(
        default=dict,
        help_text="{ece_debiased, ece_floor, brier_skill, labels: {label: bins}}; "
        "see nli.metrics for what each means.",
    )
    reliability_after = models.JSONField(
        default=dict, help_text="The same of the calibrated probabilities."
    )
    candidates = models.JSONField(default=dict, help_text="{method: cross-validated log loss}")
    not_tried = models.JSONField(
        default=dict, help_text="{method: why} of those that were left out."
    )
    replaces = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="The calibrator its version had then, measured on the same rows.",
    )
    replaced = models.JSONField(
        default=dict, help_text="{brier, ece, log_loss} of `replaces` on these rows."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(USER, on_delete=models.PROTECT, related_name="+")

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["version", "number"],
                condition=Q(version__isnull=False),
                name="calibration_number_unique",
            ),
            models.UniqueConstraint(
                fields=["base_fingerprint", "number"],
                condition=Q(version__isnull=True),
                name="base_calibration_number_unique",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.version.name if self.version else 'base'}/c{self.number} ({self.method})"


class ShadowEvaluationQuerySet(models.QuerySet["ShadowEvaluation"]):
    def evidence(self) -> "ShadowEvaluationQuerySet":
        """Those that a promotion may stand on: they compare with what served."""
        return self.filter(incumbent_served=True)


class ShadowEvaluation(models.Model):
    """Candidate against another version or the base, and against the base, on the same rows.

    What it is compared with is called the incumbent, whether it serves or not.
    """

    class Verdict(models.TextChoices):
        BETTER = "better", "better"
        NOT_WORSE = "not_worse", "not worse"
        WORSE = "worse", "worse"
        INCONCLUSIVE = "inconclusive", "inconclusive"

    candidate = models.ForeignKey(
        AdapterVersion, on_delete=models.PROTECT, related_name="evaluations"
    )
    run = models.ForeignKey(TrainingRun, on_delete=models.PROTECT, related_name="evaluations")
    incumbent = models.ForeignKey(
        AdapterVersion,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="Empty = the base model.",
    )
    incumbent_served = models.BooleanField(
        default=True,
        help_text="Whether the incumbent served when it was measured. If not, this is no evidence "
        "for a promotion, whatever serves later.",
    )
    candidate_calibration = models.ForeignKey(
        CalibrationEvaluation, null=True, on_delete=models.PROTECT, related_name="+"
    )
    incumbent_calibration = models.ForeignKey(
        CalibrationEvaluation, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    snapshot = models.ForeignKey(
        Snapshot, on_delete=models.PROTECT, help_text="The rows compared on."
    )
    rows_fingerprint = models.CharField(
        max_length=64, help_text="SHA-256 over ids and labels of the rows."
    )
    rows = models.PositiveIntegerField()
    groups = models.PositiveIntegerField()
    effective_groups = models.FloatField()
    verdict = models.CharField(max_length=12, choices=Verdict.choices)
    needed_pairs = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Where inconclusive: about how many more pairs would decide.",
    )
    figures = models.JSONField(
        help_text="against_incumbent, against_base: see nli.metrics.compare()"
    )
    per_label = models.JSONField()
    flips = models.JSONField(help_text="Rows whose predicted label differs between the two.")
    guard = models.JSONField(
        help_text="Guard set: accuracies, discordant counts, p value, per phenomenon."
    )
    later = models.JSONField(
        default=dict,
        help_text="The released artifact's own figures on rows reviewed after its snapshot.",
    )
    advice = models.JSONField(default=list, help_text="Notes that do not decide, in words.")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ShadowEvaluationQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        against = self.incumbent.name if self.incumbent else "base"
        return f"{self.candidate.name} against {against}: {self.get_verdict_display()}"

    def is_against(self, row: "Serving") -> bool:
        """Whether it is evidence of how the candidate compares with what serves now, calibrator
        included: its offsets per label change answers.

        What was compared before it served is none: nobody counted how often luck was tried.
        """
        measured = (self.incumbent_id, self.incumbent_calibration_id)
        return self.incumbent_served and measured == (row.version_id, row.calibration_id)


class LearningCurve(models.Model):
    """What siblings that learnt from nested parts of a snapshot show, and what more would bring."""

    snapshot = models.ForeignKey(Snapshot, on_delete=models.PROTECT, related_name="curves")
    base_name = models.CharField(max_length=255)
    base_fingerprint = models.CharField(max_length=64)
    config = models.JSONField(help_text="TrainConfig, every field spelled out.")
    rows = models.PositiveIntegerField(help_text="Rows of known probability, judged at each size.")
    groups = models.PositiveIntegerField()
    points = models.JSONField(
        help_text="[{verdicts, accuracy, macro_f1: {value, error}}, …]; 0 verdicts is the base."
    )
    projections = models.JSONField(
        help_text="{accuracy, macro_f1: {sentence, target, chance, needed, ahead}}"
    )
    seconds = models.FloatField(help_text="How long it took.")
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(USER, on_delete=models.PROTECT, related_name="+")

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"learning curve {self.pk}"


class Study(models.Model):
    """LoRA against standard fine-tuning on one set of labelled pairs; see `nli.study`."""

    data = models.CharField(max_length=255, help_text="Names of the files, or “accepted verdicts”.")
    data_digest = models.CharField(
        max_length=64,
        help_text="SHA-256 over pairs, labels, groups, categories and weights, in order.",
    )
    snapshot = models.ForeignKey(
        Snapshot, null=True, blank=True, on_delete=models.PROTECT, related_name="studies"
    )
    rows = models.PositiveIntegerField()
    groups = models.PositiveIntegerField()
    base_name = models.CharField(max_length=255)
    base_fingerprint = models.CharField(max_length=64)
    config = models.JSONField(help_text="StudyConfig, every field spelled out.")
    seconds = models.FloatField(help_text="How long it took.")
    finished = models.BooleanField(
        default=False, help_text="All of its fits are stored; else the same command goes on."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(USER, on_delete=models.PROTECT, related_name="+")

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "studies"

    def __str__(self) -> str:
        return f"study {self.pk}"


class StudyFit(models.Model):
    """One fit of a study and what it showed on the groups held out."""

    class Task(models.TextChoices):
        NLI = "nli", "NLI cross-encoder"
        EMBEDDING = "embedding", "sentence embedding"

    class Method(models.TextChoices):
        BASELINE = "baseline", "baseline"
        STANDARD = "standard", "standard fine-tuning"
        LORA = "lora", "LoRA"

    class Setting(models.TextChoices):
        IDENTICAL = "identical", "identical hyper-parameters"
        BEST = "best", "its best learning rate"

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="fits")
    task = models.CharField(max_length=9, choices=Task.choices)
    method = models.CharField(max_length=8, choices=Method.choices)
    setting = models.CharField(max_length=9, choices=Setting.choices, blank=True)
    split = models.PositiveSmallIntegerField()
    seed = models.PositiveSmallIntegerField()
    learning_rate = models.FloatField(null=True, blank=True)
    learnt = models.PositiveIntegerField(help_text="Rows learnt from.")
    measured = models.PositiveIntegerField(help_text="Rows measured on.")
    measures = models.JSONField(help_text="See nli.metrics.summary() or nli.similarity.measures().")
    search = models.JSONField(
        default=list,
        help_text="[{learning_rate, value}, …] on a part of the training groups; null: diverged.",
    )
    trainable_parameters = models.PositiveBigIntegerField()
    artifact_bytes = models.PositiveBigIntegerField(help_text="Of the trained tensors.")
    seconds = models.FloatField(help_text="Of training alone.")
    idle_mb = models.FloatField(null=True, help_text="Resident memory with the model loaded.")
    peak_mb = models.FloatField(null=True, help_text="Its highest during training.")

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["study", "task", "method", "setting", "split", "seed"],
                name="study_fit_unique",
            ),
            models.CheckConstraint(
                condition=Q(method="baseline", setting="", learning_rate__isnull=True)
                | (~Q(method="baseline") & ~Q(setting="") & Q(learning_rate__isnull=False)),
                name="study_fit_baseline_is_untrained",
            ),
        ]

    def __str__(self) -> str:
        how = f", {self.get_setting_display()}" if self.setting else ""
        return f"{self.get_task_display()}: {self.get_method_display()}{how}, split {self.split}"


class Serving(models.Model):
    """The one row that says who answers. Only registry.promote() and rollback() write it."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    version = models.ForeignKey(AdapterVersion, null=True, blank=True, on_delete=models.PROTECT)
    calibration = models.ForeignKey(
        CalibrationEvaluation, null=True, blank=True, on_delete=models.PROTECT
    )
    revision = models.PositiveIntegerField(default=0)
    changed_at = models.DateTimeField(default=timezone.now)

    class Meta:
        verbose_name_plural = "serving"
        permissions = [("predict", "Can ask for predictions")]
        constraints = [models.CheckConstraint(condition=Q(id=1), name="serving_single_row")]

    def __str__(self) -> str:
        return f"{self.version.name if self.version else 'base'} (revision {self.revision})"


class ServingProcess(models.Model):
    """A web process and the base it answers with, as it says itself for as long as it lives."""

    name = models.CharField(max_length=200, unique=True, help_text="host:pid")
    base_name = models.CharField(max_length=255)
    base_fingerprint = models.CharField(max_length=64)
    seen_at = models.DateTimeField()

    class Meta:
        default_permissions = ()
        verbose_name_plural = "serving processes"

    def __str__(self) -> str:
        return self.name


class LedgerIsAppendOnly(TypeError):
    """A line of the ledger was about to be changed or deleted; write a new one instead."""


class PromotionQuerySet(models.QuerySet["Promotion"]):
    def update(self, **_: Any) -> int:
        raise LedgerIsAppendOnly("promotions are never changed")

    def bulk_update(self, *_: Any, **__: Any) -> int:
        raise LedgerIsAppendOnly("promotions are never changed")

    def delete(self) -> tuple[int, dict[str, int]]:
        raise LedgerIsAppendOnly("promotions are never deleted")


class Promotion(models.Model):
    """Append-only ledger of what was put in front of users, by whom and on what evidence.

    Migration 0003 has the database itself refuse to change or delete a line.
    """

    class Action(models.TextChoices):
        PROMOTE = "promote", "promote"
        ROLLBACK = "rollback", "rollback"

    action = models.CharField(max_length=8, choices=Action.choices)
    version = models.ForeignKey(
        AdapterVersion, null=True, on_delete=models.PROTECT, related_name="promotions"
    )
    calibration = models.ForeignKey(
        CalibrationEvaluation, null=True, on_delete=models.PROTECT, related_name="+"
    )
    previous_version = models.ForeignKey(
        AdapterVersion, null=True, on_delete=models.PROTECT, related_name="+"
    )
    previous_calibration = models.ForeignKey(
        CalibrationEvaluation, null=True, on_delete=models.PROTECT, related_name="+"
    )
    restores = models.ForeignKey(
        "self",
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="Rollback: the promotion it went back to; empty = the base.",
    )
    revision = models.PositiveIntegerField(unique=True, help_text="Serving revision after it.")
    by = models.ForeignKey(USER, on_delete=models.PROTECT, related_name="+")
    os_user = models.CharField(max_length=100, blank=True, help_text="Set when a command acted.")
    reason = models.TextField()
    evidence = models.ForeignKey(ShadowEvaluation, null=True, on_delete=models.PROTECT)
    acknowledged = models.BooleanField(
        default=False, help_text="Inconclusive evidence was acknowledged."
    )
    overridden = models.BooleanField(default=False, help_text="The gate was overridden.")
    at = models.DateTimeField(auto_now_add=True)

    objects = PromotionQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "ledger"
        ordering = ["-id"]
        base_manager_name = "objects"  # Django's own plain manager would let a line be changed
        constraints = [
            models.CheckConstraint(
                condition=Q(action="rollback") | Q(version__isnull=False),
                name="promote_names_a_version",
            ),
            models.CheckConstraint(condition=~Q(reason=""), name="promotion_has_a_reason"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.version.name if self.version else 'base'}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise LedgerIsAppendOnly("promotions are never changed")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise LedgerIsAppendOnly("promotions are never deleted")


class PredictionTally(models.Model):
    """Predictions answered per hour, version and label: the correction rate's denominator."""

    hour = models.DateTimeField()
    version = models.ForeignKey(AdapterVersion, null=True, on_delete=models.PROTECT)
    label = models.CharField(max_length=8)
    count = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["hour", "version", "label"],
                condition=Q(version__isnull=False),
                name="tally_unique",
            ),
            models.UniqueConstraint(
                fields=["hour", "label"],
                condition=Q(version__isnull=True),
                name="tally_base_unique",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H}h {self.label}: {self.count}"
