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
from adapters_app.nli.config import CHOICES, RANGES, TrainConfig
from corrections.folds import MAX_ID
from corrections.labels import LABELS
from corrections.requests import (
    ChoiceField,
    NumberField,
    RequestSerializer,
    TextField,
    TrueFalseField,
    WholeNumberField,
)

MAX_REASON = 2_000  # characters
LONGEST_VERSION = 32  # characters of the name that a request gives
MAX_REVISION = 2**31 - 1


@extend_schema_field({"type": "integer", "nullable": True, "example": 7})
class VersionNumber(serializers.SlugRelatedField[AdapterVersion]):
    """An adapter version by its number, as everywhere in answers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(slug_field="number", read_only=True, **options)


@extend_schema_field(
    {
        "oneOf": [{"type": "string", "maxLength": LONGEST_VERSION}, {"type": "integer"}],
        "example": "v7",
    }
)
class VersionField(TextField):
    """A version as people name it, “v7”, or by its number, as answers do."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_length=LONGEST_VERSION, **options)

    def to_internal_value(self, data: Any) -> str:
        number = isinstance(data, int) and not isinstance(data, bool)
        return super().to_internal_value(str(data) if number else data)


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

    version = VersionNumber(help_text="The version evaluated (kind = shadow).")
    against = serializers.SerializerMethodField(
        help_text="What it is compared with (kind = shadow): “v3” or “base”; null = what serves."
    )
    produced = serializers.SerializerMethodField(help_text="The version this run made.")
    snapshot = SnapshotDigest()
    requested_by = UserName()
    cancel_requested_by = UserName()

    class Meta:
        model = TrainingRun
        exclude = ["fencing_token", "loss_curve", "log_tail"]

    def get_against(self, run: TrainingRun) -> str | None:
        return run.against or None

    def get_produced(self, run: TrainingRun) -> int | None:
        produced = getattr(run, "produced", None)
        return produced.number if produced else None


class TrainingRunSerializer(TrainingSummarySerializer):
    class Meta:
        model = TrainingRun
        exclude = ["fencing_token"]


@extend_schema_field(
    {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
)
class ModuleNames(serializers.JSONField):
    """“auto”, names separated by commas, or a list of names; TrainConfig says which can be."""


def _setting(name: str, usual: Any) -> serializers.Field[Any, Any, Any, Any]:
    if name in CHOICES:
        return ChoiceField(choices=CHOICES[name], required=False)
    if isinstance(usual, bool):
        return TrueFalseField(required=False)
    low, high = RANGES[name]
    if isinstance(usual, int):
        return WholeNumberField(required=False, min_value=int(low), max_value=int(high))
    return NumberField(required=False, min_value=low, max_value=high)


class TrainSettingsSerializer(RequestSerializer):
    """The fields of TrainConfig, and its limits."""

    target_modules = ModuleNames(required=False)

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        declared, usual = super().get_fields(), TrainConfig().to_dict()
        return declared | {
            name: _setting(name, value) for name, value in usual.items() if name not in declared
        }

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "\\u0000" in json.dumps(attrs):
            raise serializers.ValidationError("Null characters are not allowed.")
        try:
            TrainConfig.from_mapping(attrs)
        except ValueError as error:
            name, _, problem = str(error).partition(": ")
            raise serializers.ValidationError({name: [f"{problem}."]}) from error
        return attrs


class TrainingRequestSerializer(RequestSerializer):
    kind = ChoiceField(choices=TrainingRun.Kind.choices, default=TrainingRun.Kind.TRAIN.value)
    version = VersionField(
        required=False,
        allow_null=True,
        help_text="The version to evaluate; needed where kind is shadow.",
    )
    against = VersionField(
        required=False,
        allow_null=True,
        help_text="What to compare it with (kind = shadow): a version, or “base”; without it what "
        "serves. A comparison with what does not serve is no evidence for a promotion.",
    )
    scope = ChoiceField(choices=Scope.choices, default=Scope.USER.value)
    domain = TextField(max_length=100, allow_blank=True, default="")
    reason = TextField(max_length=MAX_REASON, allow_blank=True, default="")
    config = TrainSettingsSerializer(
        required=False, help_text="The settings that differ from the preset's."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        shadow = attrs["kind"] == TrainingRun.Kind.SHADOW
        if shadow and not attrs.get("version"):
            raise serializers.ValidationError({"version": "Name the version to evaluate."})
        if not shadow and attrs.get("version"):
            raise serializers.ValidationError({"version": "Only for kind = shadow."})
        if not shadow and attrs.get("against"):
            raise serializers.ValidationError({"against": "Only for kind = shadow."})
        if shadow and attrs.get("config"):
            raise serializers.ValidationError({"config": "Only for kind = train."})
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
    version = VersionNumber(help_text="Null = the base model.")
    name = serializers.CharField(source="__str__", read_only=True)
    snapshot = SnapshotDigest()
    replaces = CalibrationName(help_text="What it was compared with on the same pairs.")
    created_by = UserName()

    class Meta:
        model = CalibrationEvaluation
        fields = "__all__"


class ShadowSummarySerializer(serializers.ModelSerializer[ShadowEvaluation]):
    """Without the flipped pairs, which hold people's texts and may be many."""

    candidate = VersionNumber()
    incumbent = VersionNumber(help_text="Null = the base model.")
    snapshot = SnapshotDigest()
    figures = serializers.JSONField(
        help_text="Both comparisons, against_incumbent and against_base. In each, `accuracy.low` "
        "and `accuracy.high` are an interval of the gain, of `accuracy.confidence` (0.95 where it "
        "is absent); `accuracy.high_95` ends the 95 % interval, by which a loss is judged. "
        "`attempt`: which comparison with the incumbent this is; each is surer than the last. "
        "`slices`: the incumbent (`a`) and the candidate (`b`) on the rows of each right label "
        "and, where there are several, each domain; `lost` where the candidate is surely worse."
    )

    class Meta:
        model = ShadowEvaluation
        exclude = ["flips"]


class ShadowEvaluationSerializer(ShadowSummarySerializer):
    class Meta:
        model = ShadowEvaluation
        fields = "__all__"


class PromotionSerializer(serializers.ModelSerializer[Promotion]):
    version = VersionNumber(help_text="Null = the base model.")
    previous_version = VersionNumber(help_text="Null = the base model.")
    by = UserName()

    class Meta:
        model = Promotion
        exclude = ["os_user"]


class ServingSerializer(serializers.ModelSerializer[Serving]):
    version = VersionNumber(help_text="Null = the base model.")
    calibration = CalibrationName()

    class Meta:
        model = Serving
        fields = ["version", "calibration", "revision", "changed_at"]


class PromoteSerializer(RequestSerializer):
    reason = TextField(max_length=MAX_REASON)
    expected_revision = WholeNumberField(
        min_value=0,
        max_value=MAX_REVISION,
        help_text="The serving revision this decision was taken at.",
    )
    acknowledge = TrueFalseField(
        default=False, help_text="Promote although the evidence is inconclusive."
    )
    evidence = WholeNumberField(
        source="evidence_id",
        min_value=1,
        max_value=MAX_ID,
        required=False,
        allow_null=True,
        help_text="The shadow evaluation this decision was taken on; refused if there is a newer.",
    )
    override = TrueFalseField(
        default=False, help_text="Promote against the gate's verdict; the reason is recorded."
    )


class RollbackSerializer(RequestSerializer):
    reason = TextField(max_length=MAX_REASON)
    expected_revision = WholeNumberField(
        min_value=0, max_value=MAX_REVISION, required=False, allow_null=True
    )
    to = VersionField(
        required=False,
        allow_null=True,
        help_text="A version, or “base”; without it the one before.",
    )


class RunFilterSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=TrainingRun.Status.choices, required=False)
    kind = serializers.ChoiceField(choices=TrainingRun.Kind.choices, required=False)


class VersionFilterSerializer(serializers.Serializer[Any]):
    version = serializers.RegexField(
        r"^(base|v?[0-9]{1,9})$", required=False, help_text="“v7”; “base” for the base model."
    )


class ShadowFilterSerializer(VersionFilterSerializer):
    against = serializers.RegexField(
        r"^(base|v?[0-9]{1,9})$",
        required=False,
        help_text="What it was compared with: “v3”; “base” for the base model.",
    )


class Counts(serializers.DictField):
    """How many there are of each kind; of kinds that are not named there are none."""

    child = serializers.IntegerField()


class CorrectionCountsSerializer(serializers.Serializer[Any]):
    by_status = Counts()
    accepted_by_verdict = Counts()
    accepted_by_label = Counts()


class AnsweredSerializer(serializers.Serializer[Any]):
    adapter = serializers.CharField(help_text="“v7” or “base”.")
    label = serializers.ChoiceField(choices=[label.value for label in LABELS])  # type: ignore[assignment]  # hides Field.label
    count = serializers.IntegerField(help_text="Pairs answered so.")


class ShareSerializer(serializers.Serializer[Any]):
    """An estimated share with its 95 % interval."""

    estimate = serializers.FloatField()
    low = serializers.FloatField()
    high = serializers.FloatField()
    rows = serializers.IntegerField(help_text="Verdicts that it was estimated from.")
    groups = serializers.IntegerField(help_text="Pages or documents that they came from.")
    effective_groups = serializers.FloatField()


class ResponsesSerializer(serializers.Serializer[Any]):
    """What became of the draws of one version."""

    answered = serializers.IntegerField()
    waiting = serializers.IntegerField()
    skipped = serializers.IntegerField()
    expired = serializers.IntegerField()
    not_kept = serializers.IntegerField(help_text="The queue was full.")
    rate = serializers.FloatField(
        allow_null=True, help_text="Share that was answered; null where none is settled yet."
    )


class LiveFiguresSerializer(serializers.Serializer[Any]):
    adapter = serializers.CharField(help_text="“v7” or “base”.")
    version = serializers.IntegerField(allow_null=True, help_text="null = the base.")
    digest = serializers.CharField()
    accuracy = ShareSerializer(allow_null=True, help_text="null where it cannot be told.")
    audits = serializers.IntegerField(help_text="Verdicts of `accuracy` that were drawn for audit.")
    correction_rate = ShareSerializer(allow_null=True, help_text="Share of wrong answers.")
    labelled_sets = ShareSerializer(
        allow_null=True, help_text="Accuracy on complete labelled sets that it predicted."
    )
    responses = ResponsesSerializer()


class LiveSerializer(serializers.Serializer[Any]):
    serving = LiveFiguresSerializer(help_text="Of what serves.")
    by_version = LiveFiguresSerializer(many=True)


class ConditionSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    holds = serializers.BooleanField()
    have = serializers.FloatField(allow_null=True, help_text="null where it cannot be told.")
    need = serializers.FloatField()
    sentence = serializers.CharField()


class TriggersSerializer(serializers.Serializer[Any]):
    should_train = serializers.BooleanField()
    conditions = ConditionSerializer(many=True)


class StatsSerializer(serializers.Serializer[Any]):
    serving = ServingSerializer()
    corrections = CorrectionCountsSerializer()
    predictions = AnsweredSerializer(many=True)
    live = LiveSerializer(help_text="Accuracy of live answers, from audits.")
    training_runs = Counts(help_text="By status.")
    adapter_versions = serializers.IntegerField()
    training_triggers = TriggersSerializer()
