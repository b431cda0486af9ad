"""How often live answers are right: accuracy and correction rate of each version, from audits.

Only answers drawn for review carry these figures: each stands for 1/p live answers (Hájek), with an
interval over pages; `corrections.audits` says why that is unbiased and what it assumes. Those drawn
where models disagree count with the audits, whose probabilities know of both lots; alone they stand
for no answer on which the models agree, and nothing is said. What people chose to report has no
known probability and is never in them. Complete labelled sets have one, 1, but are no live answers:
their accuracy stands beside the figure, not in it. Rejected verdicts count nowhere; quarantine
keeps a verdict out of training, not out of what was answered.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from django.db.models import Count, F, Q, Sum

from adapters_app import training
from adapters_app.models import Serving
from adapters_app.nli.hajek import Share, share_of_groups
from adapters_app.triggers import FEWEST_JUDGED
from corrections import audits
from corrections.audits import PredictedBy, Responses
from corrections.models import AuditSample, Correction

Sampling = Correction.Sampling


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


@dataclass(frozen=True)
class _Known:
    share: Share
    needed: int  # rows of the kind of sampling without which there is no share


def _shares(kinds: Sequence[str], *, needed: str) -> dict[PredictedBy, _Known]:
    """Share of right answers by who gave them, over verdicts of these kinds of sampling.

    Left out is who has none of the kind `needed`.
    """
    weight = 1 / F("sampling_probability")
    right = Q(verdict=Correction.Verdict.CONFIRMED)
    judged = Correction.objects.filter(sampling__in=kinds).exclude(
        status=Correction.Status.REJECTED
    )
    groups = (
        judged.exclude(predicted_digest="")  # nobody knows who gave that answer
        .order_by()
        .values_list("predicted_version", "predicted_digest", "group_id")
        .annotate(
            size=Sum(weight),
            squares=Sum(weight * weight),
            right=Sum(weight, filter=right, default=0.0),
            rows=Count("pk"),
            needed=Count("pk", filter=Q(sampling=needed)),
        )
    )
    found: dict[PredictedBy, list[tuple[float, ...]]] = {}
    for version, digest, _group, *sums in groups:
        found.setdefault(PredictedBy(version, digest), []).append(tuple(sums))
    known = {who: _known(sums) for who, sums in found.items()}
    return {who: each for who, each in known.items() if each.needed}


def _known(sums: Sequence[tuple[float, ...]]) -> _Known:
    """From each group: weight, squared weights, weighted hits, rows, rows of the kind needed."""
    size, squares, total, rows, needed = np.array(sums).T
    share = share_of_groups(total, size, rows=int(rows.sum()), squares=float(squares.sum()))
    return _Known(share, int(needed.sum()))


def _base_digest() -> str:
    """The base that answers: the last one that was drawn from, else the last one measured."""
    drawn = AuditSample.objects.filter(predicted_version=None).order_by("-drawn_at", "-id")
    return drawn.values_list("predicted_digest", flat=True).first() or training.base_fingerprint()
