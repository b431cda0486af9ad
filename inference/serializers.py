"""What `POST /api/v1/nli` accepts and answers."""

import threading
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.validators import MaxLengthValidator, MinLengthValidator
from rest_framework import serializers

from corrections.drafts import SHORT_TEXTS
from corrections.labels import LABELS
from corrections.requests import RequestSerializer, TextField
from inference.engine import ACTIVE, Answer


class JudgedText(TextField):
    """A premise or a hypothesis: NUL and lone surrogates are refused; at most LYRA_MAX_CHARS
    characters, not blank, white space kept."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=settings.LYRA_MAX_CHARS, trim_whitespace=False, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if not text.strip():
            self.fail("blank")
        return text


class PairSerializer(RequestSerializer):
    premise = JudgedText()
    hypothesis = JudgedText()
    page_id = TextField(
        required=False,
        allow_blank=True,
        max_length=SHORT_TEXTS["page_id"],
        help_text="The page or document of the premise: answers of one page are judged as alike.",
    )


class PairsField(serializers.ListSerializer[Any]):
    """1 to LYRA_MAX_PAIRS pairs; the count is looked at before any pair is."""

    def to_internal_value(self, data: Any) -> list[Any]:
        if isinstance(data, list) and len(data) > settings.LYRA_MAX_PAIRS:
            raise serializers.ValidationError(
                f"{len(data)} pairs; at most {settings.LYRA_MAX_PAIRS} fit in one request.",
                code="max_length",
            )
        return super().to_internal_value(data)


class NliRequestSerializer(RequestSerializer):
    pairs = PairsField(
        child=PairSerializer(),
        allow_empty=False,
        # For the schema; nothing that they would refuse gets as far as them.
        validators=[MinLengthValidator(1), MaxLengthValidator(lambda: settings.LYRA_MAX_PAIRS)],
    )
    adapter = TextField(
        default=ACTIVE,
        max_length=32,
        help_text="“active” (what serves), “base”, or a version such as “v7”.",
    )


class _Readers(threading.local):
    """A serializer takes longer to make than to use; fields keep nothing of what they have read."""

    def __init__(self) -> None:
        self.request = NliRequestSerializer()


_readers = _Readers()


def read_request(data: Any) -> Any:
    """What NliRequestSerializer makes of a request's data.

    Raises:
        ValidationError: as by its `is_valid`.
    """
    try:
        return _readers.request.run_validation(data)
    except serializers.ValidationError:
        asked = NliRequestSerializer(data=data)
        asked.is_valid(raise_exception=True)
        return asked.validated_data


class ProbabilitiesSerializer(serializers.Serializer[Any]):
    supports = serializers.FloatField()
    refutes = serializers.FloatField()
    neutral = serializers.FloatField()


class ResultSerializer(serializers.Serializer[Any]):
    label = serializers.ChoiceField(choices=[label.value for label in LABELS])  # type: ignore[assignment]  # hides Field.label
    probabilities = ProbabilitiesSerializer(help_text="Calibrated; they sum to 1.")
    confidence = serializers.FloatField(help_text="The calibrated probability of `label`.")
    raw_confidence = serializers.FloatField(help_text="Top softmax before calibration.")


class NliAnswerSerializer(serializers.Serializer[Any]):
    """Everything in one answer was said by one version."""

    results = ResultSerializer(many=True, help_text="One per pair, in order.")
    adapter = serializers.CharField(help_text="Who answered: “v7” or “base”.")
    version = serializers.IntegerField(allow_null=True, help_text="Its number; null = the base.")
    digest = serializers.CharField(
        help_text="SHA-256 of its tensor file; the base's fingerprint where the base answered."
    )
    calibrator = serializers.CharField(help_text="e.g. “v7/c1 (temperature)”; “none”.")
    revision = serializers.IntegerField(help_text="Goes up with every promote and rollback.")


def answer_json(answer: Answer) -> Mapping[str, Any]:
    """An engine answer as NliAnswerSerializer describes it."""
    return {
        "results": [
            {
                "label": result.label.value,
                "probabilities": {
                    label.value: result.probabilities[label.column] for label in LABELS
                },
                "confidence": result.confidence,
                "raw_confidence": result.raw_confidence,
            }
            for result in answer.results
        ],
        "adapter": answer.adapter,
        "version": answer.version,
        "digest": answer.digest,
        "calibrator": answer.calibrator,
        "revision": answer.revision,
    }
