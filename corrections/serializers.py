"""What the REST API shows of corrections and what it accepts; `drafts` says what a value may be."""

from collections import Counter
from typing import Any

from django.conf import settings
from django.core.validators import MaxLengthValidator, MinLengthValidator
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from corrections import folds
from corrections.drafts import MAX_NOTE, MAX_VERSION, SHORT_TEXTS
from corrections.labels import LABELS
from corrections.models import MIN_PROBABILITY, AuditSample, Correction, CorrectionEvent
from corrections.requests import (
    ChoiceField,
    NumberField,
    RequestSerializer,
    TextField,
    WholeNumberField,
)

MAX_REVIEWS = 200  # in one request: as many as a page of the list holds
# What `AuditSample.objects.drawn()` can be in.
DRAWN_STATES = [
    choice for choice in AuditSample.State.choices if choice[0] != AuditSample.State.COMPARING
]


class Text(TextField):
    """Text exactly as it was sent; `drafts.check` says whether it may be blank."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_blank": True, "trim_whitespace": False, **kwargs})


class EventSerializer(serializers.ModelSerializer[CorrectionEvent]):
    by = serializers.CharField(source="by.username", read_only=True)

    class Meta:
        model = CorrectionEvent
        fields = ("at", "by", "action", "changes", "note")


class CorrectionSerializer(serializers.ModelSerializer[Correction]):
    # What these two tell of other sources is for those who may read all: the context's `reads_all`.
    group = serializers.SerializerMethodField(
        help_text="null where it is named after another source, and you read your own alone."
    )
    quarantine = serializers.SerializerMethodField(
        help_text="Why this row cannot be used; empty where it can be."
    )
    fold = serializers.IntegerField(source="group.fold", read_only=True)
    reviewer = serializers.SerializerMethodField(help_text="null where nobody reviewed.")

    class Meta:
        model = Correction
        exclude = ("pair_digest", "reviewer_name", "source_digest")

    def get_group(self, row: Correction) -> str | None:
        key = row.group.key
        own = self._reads_all() or key == folds.own_key(row.premise, row.page_id)
        return key if own else None

    def get_quarantine(self, row: Correction) -> str:
        return row.quarantine if self._reads_all() or not row.quarantine else folds.NAMELESS

    def get_reviewer(self, row: Correction) -> str | None:
        return row.reviewed_by or None

    def _reads_all(self) -> bool:
        return bool(self.context.get("reads_all"))


class CorrectionWithHistorySerializer(CorrectionSerializer):
    events = EventSerializer(many=True, read_only=True)


class NewCorrectionSerializer(RequestSerializer):
    premise = Text(allow_blank=False, max_length=settings.LYRA_MAX_CHARS)
    hypothesis = Text(allow_blank=False, max_length=settings.LYRA_MAX_CHARS)
    predicted_label = ChoiceField(choices=[label.value for label in LABELS])
    predicted_confidence = NumberField(min_value=0, max_value=1, help_text="Top probability.")
    predicted_version = WholeNumberField(
        required=False,
        allow_null=True,
        min_value=1,
        max_value=MAX_VERSION,
        help_text="Number of the version that predicted; null = the base.",
    )
    predicted_digest = Text(
        required=False,
        max_length=SHORT_TEXTS["predicted_digest"],
        help_text="Its digest, as the answer named it.",
    )
    correct_label = ChoiceField(choices=[label.value for label in LABELS])
    sampling = ChoiceField(
        choices=Correction.Sampling.choices,
        required=False,
        help_text="Other than “user” only for those who may import.",
    )
    sampling_probability = NumberField(
        required=False,
        allow_null=True,
        max_value=1,
        help_text=f"Chance that it was drawn, {MIN_PROBABILITY:f} to 1; not of what users chose.",
    )
    reason = Text(required=False, max_length=settings.LYRA_MAX_CHARS)
    domain = Text(required=False, max_length=SHORT_TEXTS["domain"])
    page_id = Text(
        required=False,
        max_length=SHORT_TEXTS["page_id"],
        help_text="The page or document the premise came from.",
    )
    external_id = Text(
        required=False,
        max_length=SHORT_TEXTS["external_id"],
        help_text="Yours; sending it again with new content is a revision.",
    )
    annotator = Text(
        required=False,
        max_length=SHORT_TEXTS["annotator"],
        help_text="Who judged; by default you.",
    )
    corrected_at = serializers.DateTimeField(required=False)
    expected_revision = WholeNumberField(
        required=False,
        min_value=0,
        help_text="The revision that you revise, 0 for a new correction; 409 if it is another.",
    )


class CorrectionEditSerializer(RequestSerializer):
    correct_label = ChoiceField(
        choices=[label.value for label in LABELS],
        required=False,
        help_text="Another one than on record goes back to pending.",
    )
    reason = Text(required=False, max_length=settings.LYRA_MAX_CHARS)
    domain = Text(required=False, max_length=SHORT_TEXTS["domain"])
    annotator = Text(required=False, max_length=SHORT_TEXTS["annotator"])
    revision = WholeNumberField(
        min_value=1, help_text="The one you saw; 409 if the content has changed."
    )
    note = TextField(
        max_length=MAX_NOTE, allow_blank=True, default="", help_text="Why, for the history."
    )


class ReviewSerializer(RequestSerializer):
    status = ChoiceField(choices=Correction.Status.choices)
    note = TextField(max_length=MAX_NOTE, allow_blank=True, default="")
    revision = WholeNumberField(
        required=False, min_value=1, help_text="The one you saw; 409 if the content has changed."
    )
    seen_status = ChoiceField(
        choices=Correction.Status.choices,
        required=False,
        help_text="The one you saw; 409 if somebody has reviewed the row otherwise since.",
    )


class ReviewOfOneSerializer(ReviewSerializer):
    id = WholeNumberField(min_value=1, max_value=folds.MAX_ID)


class ReviewsSerializer(RequestSerializer):
    reviews: serializers.ListSerializer[Any] = serializers.ListSerializer(
        child=ReviewOfOneSerializer(),
        allow_empty=False,
        max_length=MAX_REVIEWS,
        # For the schema; nothing that they would refuse gets as far as them.
        validators=[MinLengthValidator(1), MaxLengthValidator(MAX_REVIEWS)],
    )

    def validate_reviews(self, reviews: list[dict[str, Any]]) -> list[dict[str, Any]]:
        counts = Counter(each["id"] for each in reviews)
        if twice := [pk for pk, count in counts.items() if count > 1]:
            raise serializers.ValidationError(f"Correction {twice[0]} is reviewed twice.")
        return reviews


class ReviewedSerializer(serializers.Serializer[Any]):
    changed = serializers.IntegerField(
        help_text="Corrections that had another status, or that a new note was put on."
    )


class RefusedReviewsSerializer(serializers.Serializer[Any]):
    """Why nothing was reviewed."""

    detail = serializers.CharField(help_text="How many are refused.")
    refused = serializers.DictField(
        child=serializers.CharField(), help_text="Why, in a sentence, by the correction's id."
    )


class CorrectionFilterSerializer(serializers.Serializer[Any]):
    status = ChoiceField(choices=Correction.Status.choices, required=False)
    verdict = ChoiceField(choices=Correction.Verdict.choices, required=False)
    correct_label = ChoiceField(choices=[label.value for label in LABELS], required=False)
    sampling = ChoiceField(choices=Correction.Sampling.choices, required=False)
    domain = serializers.CharField(max_length=SHORT_TEXTS["domain"], required=False)
    page_id = serializers.CharField(max_length=SHORT_TEXTS["page_id"], required=False)
    annotator = serializers.CharField(max_length=SHORT_TEXTS["annotator"], required=False)
    external_id = serializers.CharField(
        max_length=SHORT_TEXTS["external_id"],
        trim_whitespace=False,  # it is stored as it came
        required=False,
    )
    updated_after = serializers.DateTimeField(
        required=False,
        help_text="Sent, reviewed or changed in any other way after this time (`updated_at`). To "
        "follow what changes, ask again from some minutes before you last asked: a change is seen "
        "a moment after the time that it bears.",
    )
    quarantined = serializers.BooleanField(required=False)
    conflicting = serializers.BooleanField(
        required=False,
        help_text="true: pairs that people judged differently, in what you may read.",
    )


class AuditPredictionSerializer(serializers.ModelSerializer[AuditSample]):
    label = serializers.CharField(source="predicted_label")  # type: ignore[assignment]  # hides Field.label
    version = serializers.IntegerField(source="predicted_version", allow_null=True)
    digest = serializers.CharField(source="predicted_digest")

    class Meta:
        model = AuditSample
        fields = ("label", "raw_confidence", "confidence", "version", "digest")


class AuditDrawSerializer(serializers.ModelSerializer[AuditSample]):
    class Meta:
        model = AuditSample
        fields = ("sampling", "probability", "compared_with", "disagrees")


class AuditSampleSerializer(serializers.ModelSerializer[AuditSample]):
    """An audit sample: a live answer that was drawn. What the model said, and whether another one
    disagrees, is told once it is answered: it would sway people."""

    draw = serializers.SerializerMethodField(help_text="null until it is answered.")
    prediction = serializers.SerializerMethodField(help_text="null until it is answered.")
    state = serializers.ChoiceField(choices=DRAWN_STATES)
    decided_by = serializers.CharField(
        source="decided_by.username",
        default=None,
        allow_null=True,
        help_text="null until somebody has.",
    )

    class Meta:
        model = AuditSample
        fields = (
            "id",
            "premise",
            "hypothesis",
            "page_id",
            "drawn_at",
            "state",
            "decided_by",
            "decided_at",
            "skip_reason",
            "prediction",
            "draw",
            "correction",
        )

    @extend_schema_field(AuditPredictionSerializer(allow_null=True))
    def get_prediction(self, sample: AuditSample) -> dict[str, Any] | None:
        answered = sample.state == AuditSample.State.ANSWERED
        return dict(AuditPredictionSerializer(sample).data) if answered else None

    @extend_schema_field(AuditDrawSerializer(allow_null=True))
    def get_draw(self, sample: AuditSample) -> dict[str, Any] | None:
        answered = sample.state == AuditSample.State.ANSWERED
        return dict(AuditDrawSerializer(sample).data) if answered else None


class AuditFilterSerializer(serializers.Serializer[Any]):
    state = ChoiceField(choices=DRAWN_STATES, default=AuditSample.State.WAITING.value)


class AuditAnswerSerializer(RequestSerializer):
    correct_label = ChoiceField(choices=[label.value for label in LABELS])
    reason = Text(default="", max_length=settings.LYRA_MAX_CHARS)


class AuditSkipSerializer(RequestSerializer):
    reason = Text(allow_blank=False, max_length=MAX_NOTE, help_text="Why it cannot be told.")


class RefusalSerializer(serializers.Serializer[Any]):
    """Why a request was refused."""

    detail = serializers.CharField(help_text="Why, in a sentence.")
