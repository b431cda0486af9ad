"""A verdict as it arrives, whatever door it came by: which fields it has and what each must hold.

Nothing here touches the database: `intake` records what passes; doors and `importers` supply it.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from corrections.labels import LABELS, Label
from corrections.models import FOLDS, MIN_PROBABILITY, Correction

# Longest value of the short text fields, in characters; those of the model's columns.
SHORT_TEXTS = {
    "domain": 100,
    "page_id": 250,
    "external_id": 200,
    "annotator": 150,
    "predicted_digest": 64,
    "group": 255,
    "reviewer": 150,
}
# Names, not texts: white space around them would make another page, domain or person of the same.
STRIPPED = ("domain", "page_id", "annotator")
MAX_VERSION = 2**31 - 1
MAX_REVISION = 100_000  # of an export's row: what is edited here counts on from it
MAX_AHEAD = timedelta(days=1)  # of our clock, for sources whose clock or time zone is wrong
MAX_NOTE = 2_000  # characters of a note on a review or an edit
# Columns a source may not have: where it names none, what is on record stays.
OPTIONAL = ("reason", "domain", "page_id", "annotator")
# How a row was chosen: what a source leaves open of it stays as well.
CHOSEN = ("sampling", "sampling_probability")
# Who predicted: left open where it is absent, and the base where it is null.
PREDICTOR = "predicted_version"


@dataclass(frozen=True)
class Prediction:
    """What a model said of a pair. `version_number` None = the base (or unknown: empty digest)."""

    label: Label
    confidence: float
    version_number: int | None = None
    digest: str = ""

    def completed(self, row: Correction, *, version_named: bool) -> "Prediction":
        """With what it leaves open of who predicted, as `row` on record has it; a version that is
        named is not left open, though it be None.

        Another label, version or digest than the row's is another prediction, to be named anew.
        """
        left_open = self.version_number is None and not version_named
        if (
            self.label.value != row.predicted_label
            or not (left_open or self.version_number == row.predicted_version)
            or (self.digest and row.predicted_digest not in ("", self.digest))
        ):
            return self
        return replace(
            self,
            version_number=row.predicted_version,
            digest=self.digest or row.predicted_digest,
        )


@dataclass(frozen=True)
class ParsedRow:
    """One row of a file: its line, from 1, and its values, or why it could not be read.

    `name` is what the file itself calls the row, where lines mean nothing (a database).
    """

    line: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    name: str = ""


@dataclass(frozen=True)
class Restored:
    """What an export knows beyond the verdict itself: its place and its review."""

    group: str = ""
    fold: int | None = None
    revision: int = 1
    status: str = Correction.Status.PENDING
    reviewer: str = ""
    reviewed_at: datetime | None = None
    review_note: str = ""


@dataclass(frozen=True)
class Draft:
    """A checked verdict, ready to be recorded; `prediction` None = still to be predicted."""

    external_id: str
    premise: str
    hypothesis: str
    correct_label: Label
    prediction: Prediction | None
    sampling: str
    sampling_probability: float | None
    reason: str
    domain: str
    page_id: str
    annotator: str
    corrected_at: datetime | None  # None = not said: the time of recording
    restored: Restored = field(default_factory=Restored)
    # Those of OPTIONAL and CHOSEN that the source carries, and PREDICTOR.
    named: frozenset[str] = frozenset((*OPTIONAL, *CHOSEN, PREDICTOR))
    source_digest: str = ""  # of what the source said, before anything was filled in
    expected_revision: int | None = None  # of the row on record, 0 = none; None = not compared
    predicted_now: bool = False  # the prediction was made for this import, not stated by its source

    def is_about(self, row: Correction) -> bool:
        """Whether `row` judges exactly this pair."""
        return (row.premise, row.hypothesis) == (self.premise, self.hypothesis)

    def beside(self, row: Correction | None) -> "Draft":
        """With what its source leaves open as `row` has it, the one on record (None: it is new).

        Raises ValidationError where sampling and probability do not go together then.
        """
        settled = replace(self, **self._kept(row)) if row else self
        problem = _probability_problem(settled.sampling, settled.sampling_probability)
        if problem:
            raise ValidationError({"sampling_probability": f"sampling_probability {problem}"})
        return settled

    def _kept(self, row: Correction) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        if "page_id" not in self.named:
            kept |= {"page_id": row.page_id, "named": self.named | {"page_id"}}
        if "sampling" not in self.named:
            kept["sampling"] = row.sampling
        same_sampling = kept.get("sampling", self.sampling) == row.sampling
        if same_sampling and "sampling_probability" not in self.named:
            kept["sampling_probability"] = row.sampling_probability
        if self.prediction and self.is_about(row):
            named = PREDICTOR in self.named
            kept["prediction"] = self.prediction.completed(row, version_named=named)
        return kept

    def content(self) -> dict[str, Any]:
        """The columns this draft speaks of; without those it leaves open."""
        values: dict[str, Any] = {
            "premise": self.premise,
            "hypothesis": self.hypothesis,
            "correct_label": self.correct_label.value,
            "sampling": self.sampling,
            "sampling_probability": self.sampling_probability,
        }
        values |= {name: getattr(self, name) for name in OPTIONAL if name in self.named}
        if self.prediction:
            values |= {
                "predicted_label": self.prediction.label.value,
                "predicted_confidence": self.prediction.confidence,
                "predicted_version": self.prediction.version_number,
                "predicted_digest": self.prediction.digest,
            }
        if self.corrected_at:
            values["corrected_at"] = self.corrected_at
        return values


def check(fields: Mapping[str, Any], *, sampling: str = Correction.Sampling.USER) -> Draft:
    """Turn named values into a Draft; `sampling` is used where they name none and the row is new.

    Raises ValidationError with a message per field: blank, too long or unstorable texts, unknown
    labels, confidences and probabilities that are none, times that are no ISO-8601. Whether a
    probability goes with its sampling is for `Draft.beside` to say, which knows what is on record.
    """
    reader = _Reader(fields)
    chosen = reader.choice("sampling", Correction.Sampling.values) or sampling
    draft = Draft(
        premise=reader.text("premise", required=True),
        hypothesis=reader.text("hypothesis", required=True),
        correct_label=reader.label("correct_label") or LABELS[0],
        prediction=reader.prediction(),
        sampling=chosen,
        sampling_probability=reader.sampling_probability(chosen),
        reason=reader.text("reason"),
        domain=reader.text("domain"),
        page_id=reader.text("page_id"),
        annotator=reader.text("annotator"),
        corrected_at=reader.past("corrected_at"),
        external_id=reader.text("external_id") or f"own:{uuid.uuid4()}",
        restored=reader.restored(),
        named=frozenset(
            [name for name in OPTIONAL if fields.get(name) is not None]
            + [name for name in CHOSEN if fields.get(name) not in (None, "")]
            + [name for name in [PREDICTOR] if name in fields]
        ),
    )
    if reader.problems:
        raise ValidationError(reader.problems)
    stripped = {name: getattr(draft, name).strip() for name in STRIPPED}
    return replace(draft, source_digest=_digest(draft.content()), **stripped)


def check_edit(changes: Mapping[str, Any]) -> dict[str, str]:
    """The values of a change to single fields, under the rules of `check`; raises as it does."""
    reader = _Reader(changes)
    values = {
        name: reader.label(name) or "" if name == "correct_label" else reader.text(name)
        for name in changes
    }
    if reader.problems:
        raise ValidationError(reader.problems)
    return {
        name: value.strip() if name in STRIPPED else str(value) for name, value in values.items()
    }


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of named values, 64 hex digits; times as ISO-8601."""
    said = json.dumps(content, sort_keys=True, default=datetime.isoformat)
    return hashlib.sha256(said.encode()).hexdigest()


def content_id(fields: Mapping[str, Any]) -> str:
    """An external id for a row that has none: the same verdict of the same person, the same id."""
    names = ("premise", "hypothesis", "correct_label", "annotator", "page_id")
    said = "\0".join(str(fields.get(name) or "") for name in names)
    return f"row:{hashlib.sha256(said.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"


class _Reader:
    """Reads typed values out of a mapping and collects what is wrong with each."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        self.problems: dict[str, str] = {}

    def text(self, name: str, *, required: bool = False) -> str:
        value = self.fields.get(name)
        value = "" if value is None else value
        if not isinstance(value, str):
            return self._refuse(name, "must be text.")
        limit = SHORT_TEXTS.get(name, settings.LYRA_MAX_CHARS)
        if required and not value.strip():
            return self._refuse(name, "is blank." if name in self.fields else "is missing.")
        if len(value) > limit:
            return self._refuse(name, f"has {len(value)} characters; at most {limit} are allowed.")
        if "\0" in value:
            return self._refuse(name, "holds a NUL character, which cannot be stored.")
        if not _encodable(value):
            return self._refuse(name, "holds bytes or surrogates that are not valid UTF-8.")
        return value

    def label(self, name: str) -> Label | None:
        value = self.fields.get(name)
        if value is None or value == "":
            self._refuse(name, "is missing.")
            return None
        if not isinstance(value, str) or value not in list(LABELS):
            self._refuse(name, f"is {_shown(value)}; it must be one of {', '.join(LABELS)}.")
            return None
        return Label(value)

    def choice(self, name: str, allowed: list[str]) -> str:
        value = self.fields.get(name)
        if value is None or value == "":
            return ""
        if value not in allowed:
            return self._refuse(
                name, f"is {_shown(value)}; it must be one of {', '.join(allowed)}."
            )
        return str(value)

    def number(self, name: str, *, low: float, high: float) -> float | None:
        value = self.fields.get(name)
        if value is None or value == "":
            return None
        # bool is an int to Python; nan compares false with everything, and an integer too large for
        # a float compares as it should.
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(name, f"is {_shown(value)}; it must be a number.")
        elif not low <= value <= high:
            self._refuse(name, f"is {_shown(value)}; it must lie between {low:g} and {high:.10g}.")
        else:
            return float(value)
        return None

    def whole(self, name: str, *, low: int, high: int) -> int | None:
        value = self.number(name, low=low, high=high)
        if value is not None and not value.is_integer():
            self._refuse(name, f"is {value:g}; it must be a whole number.")
        return None if value is None else int(value)

    def time(self, name: str) -> datetime | None:
        value = self.fields.get(name)
        if value is None or value == "":
            return None
        moment = utc(value)
        if moment is None:
            self._refuse(name, f"is {_shown(value)}; it must be an ISO-8601 time.")
        return moment

    def past(self, name: str) -> datetime | None:
        moment = self.time(name)
        if moment and moment > timezone.now() + MAX_AHEAD:
            said = f"{moment:%Y-%m-%d %H:%M} UTC"
            self._refuse(name, f"is {said}; it may lie at most a day ahead of now.")
        return moment

    def prediction(self) -> Prediction | None:
        """The stored prediction; None where label or confidence is absent."""
        confidence = self.number("predicted_confidence", low=0, high=1)
        version = self.whole("predicted_version", low=1, high=MAX_VERSION)
        digest = self.text("predicted_digest")
        if self.fields.get("predicted_label") in (None, ""):
            return None
        label = self.label("predicted_label")
        if label is None or confidence is None:
            return None
        return Prediction(label, confidence, version, digest)

    def sampling_probability(self, sampling: str) -> float | None:
        """Chance that the row was drawn: 1 for a complete set, unknown for what people chose."""
        value = self.number("sampling_probability", low=0, high=1)
        if sampling == Correction.Sampling.COMPLETE and value is None:
            return 1.0
        return value

    def restored(self) -> Restored:
        if Restored.__dataclass_fields__.keys().isdisjoint(self.fields):
            return Restored()
        status = self.choice("status", Correction.Status.values) or Correction.Status.PENDING
        reviewed_at = self.time("reviewed_at")
        if status != Correction.Status.PENDING and reviewed_at is None:
            self._refuse("reviewed_at", f"is missing, but the row is {status}.")
        group = self.text("group")
        fold = self.whole("fold", low=0, high=FOLDS - 1)
        return Restored(
            # Only an export knows both; a foreign file's “group” is not ours to interpret.
            group=group if fold is not None and group.startswith(("page:", "premise:")) else "",
            fold=fold if group.startswith(("page:", "premise:")) else None,
            revision=self.whole("revision", low=1, high=MAX_REVISION) or 1,
            status=status,
            reviewer=self.text("reviewer"),
            reviewed_at=reviewed_at,
            review_note=self.text("review_note"),
        )

    def _refuse(self, name: str, problem: str) -> str:
        self.problems.setdefault(name, f"{name} {problem}")
        return ""


def _probability_problem(sampling: str, probability: float | None) -> str:
    """What is wrong with a chance of being drawn, given how the row was chosen; or nothing."""
    if sampling == Correction.Sampling.USER:
        given = probability is not None
        said = "is given, but nobody knows it of rows that people chose to report."
        return said if given else ""
    if (probability or 0) >= MIN_PROBABILITY:
        return ""
    said = "is missing" if probability is None else f"is {probability:g}"
    return f"{said}; it must be at least {MIN_PROBABILITY:g} where sampling is {sampling}."


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def utc(value: object) -> datetime | None:
    """A time in UTC (assumed where no offset is given); None where `value` is no time."""
    try:
        moment = parse_datetime(value) if isinstance(value, str) else value
        if not isinstance(moment, datetime):
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # no such day or hour, or one outside the calendar
        return None


def _shown(value: object) -> str:
    """A value for a message: printable ASCII, never long."""
    return ascii(value)[:60]
