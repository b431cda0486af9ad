"""How often live answers are right: accuracy and correction rate of each version, from audits.

Only answers drawn for review carry these figures: each stands for 1/p live answers (Hájek), with an
interval over pages and claims; `corrections.audits` says why that is unbiased and what it assumes.
Those drawn where models disagree count with the audits, whose probabilities know of both lots;
alone they stand for no answer on which the models agree, and nothing is said. What people chose to
report has no known probability and is never in them. Complete labelled sets have one, 1, but are no
live answers: their accuracy stands beside the figure, not in it. Rejected verdicts count nowhere;
quarantine keeps a verdict out of training, not out of what was answered.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from django.db.models import F

from adapters_app import training
from adapters_app.models import Serving
from adapters_app.nli.hajek import Share, share
from adapters_app.triggers import FEWEST_JUDGED
from corrections import audits
from corrections.audits import PredictedBy, Responses
from corrections.folds import normalise
from corrections.models import AuditSample, Correction

Sampling = Correction.Sampling
COUNTED = (Correction.Status.PENDING, Correction.Status.ACCEPTED)


@dataclass(frozen=True)
class LiveFigures:
    """One version's figures; without an audited answer its accuracy cannot be told and is None."""

    version: int | None  # None = the base
    digest: str
    accuracy: Share | None = None
    audits: int = 0  # rows of it that were drawn for audit
    labelled_sets: Share | None = None  # on complete sets that it predicted
    responses: Responses = field(default_factory=Responses)

    @property
    def name(self) -> str:
        """What pages call it."""
        return "the base" if self.version is None else f"v{self.version}"

    @property
    def needed(self) -> int:
        """Judged answers without which pages tell no share; programs read the interval."""
        return FEWEST_JUDGED

    @property
    def enough_judged(self) -> bool:
        """Of audits: of what the models agree on the others tell nothing."""
        return self.audits >= FEWEST_JUDGED

    @property
    def correction_rate(self) -> Share | None:
        """Share of its live answers that are wrong."""
        return self.accuracy.complement if self.accuracy else None

    def to_dict(self) -> dict[str, Any]:
        """As REST tells it; null = cannot be told."""
        rate = self.correction_rate
        return asdict(self) | {
            "adapter": "base" if self.version is None else self.name,
            "correction_rate": asdict(rate) if rate else None,
            "responses": asdict(self.responses) | {"rate": self.responses.rate},
        }


def figures() -> list[LiveFigures]:
    """Figures of every version, and base, that anything is known of; newest version first."""
    audited = _shares(Correction.DRAWN, needed=Sampling.AUDIT)
    labelled = _shares((Sampling.COMPLETE,), needed=Sampling.COMPLETE)
    responses = audits.responses()
    known = audited.keys() | labelled.keys() | responses.keys()
    return [
        LiveFigures(
            version=who.version,
            digest=who.digest,
            accuracy=audited[who].share if who in audited else None,
            audits=audited[who].needed if who in audited else 0,
            labelled_sets=labelled[who].share if who in labelled else None,
            responses=responses.get(who, Responses()),
        )
        for who in sorted(known, key=lambda who: (-(who.version or 0), who.digest))
    ]


def of_serving(serving: Serving, found: Iterable[LiveFigures]) -> LiveFigures:
    """Those of `found` that speak of what serves; empty ones where none does."""
    version = serving.version
    if version is None:
        who = PredictedBy(None, _base_digest())
    else:
        who = PredictedBy(version.number, version.artifact_digest)
    known = {PredictedBy(each.version, each.digest): each for each in found}
    return known.get(who) or LiveFigures(who.version, who.digest)


# What a share is computed from, of one row; 48 bytes, so that 100,000s of them are little.
_ROW = np.dtype(
    [
        ("who", int),
        ("right", bool),
        ("weight", float),
        ("group", int),
        ("claim", int),
        ("needed", bool),
    ]
)


@dataclass(frozen=True)
class _Known:
    share: Share
    needed: int  # rows of the kind of sampling without which there is no share


def _shares(kinds: Sequence[str], *, needed: str) -> dict[PredictedBy, _Known]:
    """Share of right answers by who gave them, over verdicts of these kinds of sampling.

    Left out is who has none of the kind `needed`.
    """
    by_number: dict[PredictedBy, int] = {}
    rows = np.fromiter(_judged(kinds, needed, by_number), dtype=_ROW)
    known = {who: _known(rows[rows["who"] == number]) for who, number in by_number.items()}
    return {who: each for who, each in known.items() if each.needed}


def _judged(
    kinds: Sequence[str], needed: str, by_number: dict[PredictedBy, int]
) -> Iterator[tuple[int, bool, float, int, int, bool]]:
    """Each row's _ROW; who answered it gets a number in `by_number`.

    Claims are told apart by their normalised text, which no column has and no database makes:
    texts are read, and go as they come.
    """
    found = (
        # Not “all but the rejected”: an index is read from the status on.
        Correction.objects.filter(status__in=COUNTED, sampling__in=kinds)
        .exclude(predicted_digest="")  # nobody knows who gave that answer
        .order_by()
        .annotate(weight=1 / F("sampling_probability"))
        .values_list(
            "predicted_version",
            "predicted_digest",
            "verdict",
            "weight",
            "group_id",
            "hypothesis",
            "sampling",
        )
    )
    for version, digest, verdict, weight, group, hypothesis, sampling in found.iterator():
        number = by_number.setdefault(PredictedBy(version, digest), len(by_number))
        right = verdict == Correction.Verdict.CONFIRMED
        claim = hash(normalise(hypothesis))
        yield number, right, weight, group, claim, sampling == needed


def _known(rows: np.ndarray) -> _Known:
    found = share(rows["right"], rows["weight"], rows["group"], rows["claim"])
    return _Known(found, int(rows["needed"].sum()))


def _base_digest() -> str:
    """The base that answers: the last one that was drawn from, else the last one measured."""
    drawn = AuditSample.objects.filter(predicted_version=None).order_by("-drawn_at", "-id")
    return drawn.values_list("predicted_digest", flat=True).first() or training.base_fingerprint()
