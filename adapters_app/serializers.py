"""What the REST API shows of runs, versions, evaluations and the ledger, and what it accepts."""

import json
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from adapters_app.models import (
    AdapterVersion,
    CalibrationEvaluation,
    Promotion,
    Scope,
    Serving,
    ShadowEvaluation,
    Snapshot,
    TrainingRun,
)

MAX_REASON = 2_000  # characters
MAX_REVISION = 2**31 - 1
MAX_ID = 2**63 - 1


@extend_schema_field({"type": "string", "nullable": True, "example": "v7"})
class VersionName(serializers.StringRelatedField[Any]):
    """An adapter version as “v7”."""


@extend_schema_field({"type": "string", "nullable": True, "example": "v7/c2 (temperature)"})
class CalibrationName(serializers.StringRelatedField[Any]):
    """A calibrator by the name it is shown under."""


@extend_schema_field({"type": "string", "nullable": True})
class UserName(serializers.StringRelatedField[Any]):
    """A user by name."""


@extend_schema_field({"type": "string", "nullable": True})
class SnapshotDigest(serializers.SlugRelatedField[Snapshot]):
    """A snapshot by its SHA-256."""

    def __init__(self) -> None:
        super().__init__(slug_field="digest", read_only=True)


class TrainingSummarySerializer(serializers.ModelSerializer[TrainingRun]):
    """Without the loss curve and the log, which a list of a hundred runs need not carry."""

    version = VersionName(help_text="The version evaluated (kind = shadow).")
    produced = serializers.SerializerMethodField(help_text="The version this run made.")
    snapshot = SnapshotDigest()
    requested_by = UserName()
    cancel_requested_by = UserName()

    class Meta:
        model = TrainingRun
        exclude = ["fencing_token", "loss_curve", "log_tail"]

    def get_produced(self, run: TrainingRun) -> str | None:
        produced = getattr(run, "produced", None)
        return produced.name if produced else None


class TrainingRunSerializer(TrainingSummarySerializer):
    class Meta:
        model = TrainingRun
        exclude = ["fencing_token"]


class TrainingRequestSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(
        choices=TrainingRun.Kind.choices, default=TrainingRun.Kind.TRAIN.value
    )
    version = serializers.CharField(
        required=False,
        allow_null=True,
        max_length=32,
        help_text="The version to evaluate; needed where kind is shadow.",
    )
    scope = serializers.ChoiceField(choices=Scope.choices, default=Scope.USER.value)
    domain = serializers.CharField(max_length=100, allow_blank=True, default="")
    reason = serializers.CharField(max_length=MAX_REASON, allow_blank=True, default="")
    config = serializers.DictField(
        required=False, help_text="TrainConfig fields that differ from the preset's."
    )

    def validate_config(self, value: dict[str, Any]) -> dict[str, Any]:
        if "\\u0000" in json.dumps(value):
            raise serializers.ValidationError("Null characters are not allowed.")
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        shadow = attrs["kind"] == TrainingRun.Kind.SHADOW
        if shadow and not attrs.get("version"):
            raise serializers.ValidationError({"version": "Name the version to evaluate."})
        if not shadow and attrs.get("version"):
            raise serializers.ValidationError({"version": "Only for kind = shadow."})
        return attrs


class AdapterSummarySerializer(serializers.ModelSerializer[AdapterVersion]):
    """Without the metrics, which list every verdict that the siblings doubt."""

    name = serializers.CharField(read_only=True)
    snapshot = SnapshotDigest()
    created_by = UserName()

    class Meta:
        model = AdapterVersion
        exclude = ["id", "metrics"]


class AdapterVersionSerializer(AdapterSummarySerializer):
    class Meta:
        model = AdapterVersion
        exclude = ["id"]

    def to_representation(self, instance: AdapterVersion) -> dict[str, Any]:
        """Without what is said of the annotators, which is for curators alone."""
        shown = super().to_representation(instance)
        metrics = {name: value for name, value in shown["metrics"].items() if name != "annotators"}
        return {**shown, "metrics": metrics}


class CalibrationSerializer(serializers.ModelSerializer[CalibrationEvaluation]):
    version = VersionName(help_text="Null = the base model.")
    name = serializers.CharField(source="__str__", read_only=True)
    snapshot = SnapshotDigest()
    replaces = CalibrationName(help_text="What it was compared with on the same pairs.")
    created_by = UserName()

    class Meta:
        model = CalibrationEvaluation
        fields = "__all__"


class ShadowSummarySerializer(serializers.ModelSerializer[ShadowEvaluation]):
    """Without the flipped pairs, which hold people's texts and may be many."""

    candidate = VersionName()
    incumbent = VersionName(help_text="Null = the base model.")
    snapshot = SnapshotDigest()

    class Meta:
        model = ShadowEvaluation
        exclude = ["flips"]


class ShadowEvaluationSerializer(ShadowSummarySerializer):
    class Meta:
        model = ShadowEvaluation
        fields = "__all__"


class PromotionSerializer(serializers.ModelSerializer[Promotion]):
    version = VersionName(help_text="Null = the base model.")
    previous_version = VersionName(help_text="Null = the base model.")
    by = UserName()

    class Meta:
        model = Promotion
        exclude = ["os_user"]


class ServingSerializer(serializers.ModelSerializer[Serving]):
    version = VersionName(help_text="Null = the base model.")
    calibration = CalibrationName()

    class Meta:
        model = Serving
        fields = ["version", "calibration", "revision", "changed_at"]


class PromoteSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(max_length=MAX_REASON)
    expected_revision = serializers.IntegerField(
        min_value=0,
        max_value=MAX_REVISION,
        help_text="The serving revision this decision was taken at.",
    )
    acknowledge = serializers.BooleanField(
        default=False, help_text="Promote although the evidence is inconclusive."
    )
    evidence = serializers.IntegerField(
        source="evidence_id",
        min_value=1,
        max_value=MAX_ID,
        required=False,
        allow_null=True,
        help_text="The shadow evaluation this decision was taken on; refused if there is a newer.",
    )
    override = serializers.BooleanField(
        default=False, help_text="Promote against the gate's verdict; the reason is recorded."
    )


class RollbackSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(max_length=MAX_REASON)
    expected_revision = serializers.IntegerField(
        min_value=0, max_value=MAX_REVISION, required=False, allow_null=True
    )
    to = serializers.CharField(
        required=False,
        allow_null=True,
        max_length=32,
        help_text="A version, or “base”; without it the one before.",
    )


class RunFilterSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=TrainingRun.Status.choices, required=False)
    kind = serializers.ChoiceField(choices=TrainingRun.Kind.choices, required=False)


class VersionFilterSerializer(serializers.Serializer[Any]):
    version = serializers.RegexField(
        r"^(base|v?[0-9]{1,9})$", required=False, help_text="“v7”; “base” for the base model."
    )
