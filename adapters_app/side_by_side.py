"""Two versions beside each other, from what is on record of each; either may be the base.

Nothing is measured here. Figures that were measured on different verdicts are shown without a
difference, which would be one of the verdicts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import Q, QuerySet

from adapters_app import evidence, registry
from adapters_app.evidence import FigureRow
from adapters_app.models import (
    AdapterVersion,
    CalibrationEvaluation,
    Promotion,
    Serving,
    ShadowEvaluation,
    name_of,
)
from adapters_app.progress import seconds_taken
from adapters_app.templatetags.figures import (
    ABSENT,
    duration,
    mebibytes,
    moment,
    percent,
    points,
)

DIFFERS = "differs"


@dataclass(frozen=True)
class Side:
    """One of the two, and what is on record of it; no version is the base."""

    version: AdapterVersion | None
    serves: bool
    calibration: CalibrationEvaluation | None
    last_change: Promotion | None  # that put it in front of users
    evaluation: ShadowEvaluation | None  # its newest

    @property
    def name(self) -> str:
        return name_of(self.version)

    @property
    def key(self) -> str:
        """What requests call it: “v3” or “base”."""
        return self.version.name if self.version else registry.BASE

    @property
    def status(self) -> str:
        if self.serves:
            return "serving"
        # Before the first promotion it was the base that served.
        return "was serving" if self.last_change or self.version is None else "never served"


@dataclass(frozen=True)
class Table:
    """Rows about both; `warning` says why figures in it cannot be held against each other."""

    title: str
    rows: list[FigureRow]
    note: str = ""
    warning: str = ""
    numbers: bool = False  # they are set to the right

    @property
    def differences(self) -> bool:
        return any(row.difference for row in self.rows)


def side(version: AdapterVersion | None, serving: Serving) -> Side:
    """What is on record of a version, or of the base; `serving` says what serves now."""
    serves = serving.version == version
    if version is None:
        calibration = serving.calibration if serves else None
    else:
        calibration = registry.present_calibration(version)
    return Side(
        version=version,
        serves=serves,
        calibration=calibration,
        last_change=Promotion.objects.select_related("by").filter(version=version).first(),
        evaluation=version.evaluations.only("guard", "created_at").first() if version else None,
    )


def roles(a: Side, b: Side) -> tuple[Side, Side]:
    """Which of the two a comparison measures, and against which: against what serves, else
    against the base, else against the older one."""
    if a.version is None or b.version is None:
        return (b, a) if a.version is None else (a, b)
    if a.serves or b.serves:
        return (b, a) if a.serves else (a, b)
    return (b, a) if a.version.number < b.version.number else (a, b)


def evaluations(a: Side, b: Side) -> QuerySet[ShadowEvaluation]:
    """The shadow evaluations between exactly these two, in either direction, newest first."""
    found = Q()
    for candidate, incumbent in ((a, b), (b, a)):
        if candidate.version is not None:
            found |= Q(candidate=candidate.version, incumbent=incumbent.version)
    compared = ShadowEvaluation.objects.filter(found).select_related(
        "candidate", "incumbent", "snapshot", "candidate_calibration", "incumbent_calibration"
    )
    long = [*AdapterVersion.details("candidate__"), *AdapterVersion.details("incumbent__")]
    return compared.defer("flips", *long)


def tables(a: Side, b: Side) -> list[Table]:
    """All that is on record of both, a table for each matter."""
    return [
        _serving(a, b),
        _out_of_fold(a, b),
        _guard(a, b),
        _calibration(a, b),
        _data(a, b),
        _training(a, b),
        _settings(a, b),
    ]


def _serving(a: Side, b: Side) -> Table:
    return Table(
        "Serving",
        [
            _row("Status", a, b, lambda side: side.status),
            _row("Last put into service", a, b, _put_into_service),
            _of_versions("Made", a, b, lambda version: moment(version.created_at)),
            _of_versions("For", a, b, _purpose),
        ],
    )


def _put_into_service(side: Side) -> str:
    entry = side.last_change
    if entry is None:
        return ABSENT
    return f"{moment(entry.at)}: {entry.get_action_display()} by {entry.by}"


def _purpose(version: AdapterVersion) -> str:
    return " · ".join(filter(None, [version.get_scope_display(), version.domain]))


def _data(a: Side, b: Side) -> Table:
    rows = [
        _of_versions("Verdicts", a, b, lambda version: str(version.snapshot.rows)),
        _of_versions("Sources", a, b, lambda version: str(version.snapshot.groups)),
    ]
    verdicts = _items(a, b, lambda version: version.snapshot.verdict_counts, "0")
    labels = _items(a, b, lambda version: version.snapshot.label_counts, "0")
    rows += [replace(row, name=row.name.capitalize()) for row in verdicts]
    rows += [replace(row, name=f"Label {row.name}") for row in labels]
    rows.append(_of_versions("Snapshot", a, b, lambda version: version.snapshot.digest[:12]))
    return Table("Data", rows, note=_same_data(a, b))


def _same_data(a: Side, b: Side) -> str:
    if a.version is None or b.version is None:
        return "The base was made of training data of its own."
    if a.version.snapshot_id == b.version.snapshot_id:
        return "Both learnt from the same verdicts."
    return "They learnt from different sets of verdicts."


def _training(a: Side, b: Side) -> Table:
    return Table(
        "Training",
        [
            _of_versions("Run", a, b, lambda version: str(version.run_id)),
            _of_versions("Took", a, b, lambda version: duration(seconds_taken(version.run))),
            _of_versions("Device", a, b, lambda version: version.run.device or ABSENT),
            _of_versions("Epochs", a, b, _epochs),
            _of_versions(
                "Trained parameters", a, b, lambda found: f"{found.trainable_parameters:,}"
            ),
            _of_versions("Artifact size", a, b, lambda found: mebibytes(found.artifact_bytes)),
        ],
    )


def _epochs(version: AdapterVersion) -> str:
    chosen, most = version.metrics.get("chosen_epoch"), version.config.get("epochs")
    return ABSENT if chosen is None else f"{chosen} of at most {most}"


def _settings(a: Side, b: Side) -> Table:
    """Every setting of either; those that differ are marked."""
    both = a.version is not None and b.version is not None
    rows = _items(a, b, lambda version: version.config, ABSENT)
    if not both:
        return Table("Settings", rows, note="The base was not trained here: it has no settings.")
    rows = [replace(row, note=DIFFERS) if row.a != row.b else row for row in rows]
    different = sum(row.note == DIFFERS for row in rows)
    note = f"{different} of {len(rows)} differ." if different else "None differs."
    return Table("Settings", rows, note=note)


def _calibration(a: Side, b: Side) -> Table:
    def after(calibration: CalibrationEvaluation | None, name: str) -> float | None:
        return getattr(calibration, f"{name}_after") if calibration else None

    names = ("brier", "ece", "log_loss")
    stored = [{name: after(each.calibration, name) for name in names} for each in (a, b)]
    figures = [row for row in evidence.beside(*stored) if row.note]
    same = _measured_alike(a, b)
    rows = [
        _of_calibrations("Calibrator", a, b, lambda found: f"c{found.number}"),
        _of_calibrations("Method", a, b, lambda found: found.get_method_display()),
        _of_calibrations("Fitted on", a, b, lambda found: f"{found.fitted_rows} verdicts"),
        _of_calibrations("Figures of", a, b, lambda found: f"{found.rows} verdicts"),
        *(figures if same else _without_differences(figures)),
    ]
    warning = ""
    if a.calibration and b.calibration and not same:
        warning = "The two calibrators were fitted and measured on different verdicts."
    return Table("Calibration", rows, warning=warning, numbers=True)


def _measured_alike(a: Side, b: Side) -> bool:
    """Whether both calibrators' figures are of the same verdicts."""
    if a.calibration is None or b.calibration is None:
        return False
    return _fitted_on(a.calibration) == _fitted_on(b.calibration)


def _fitted_on(calibration: CalibrationEvaluation) -> tuple[int | None, int]:
    version = calibration.version
    snapshot = calibration.snapshot_id or (version.snapshot_id if version else None)
    return snapshot, calibration.rows


def _out_of_fold(a: Side, b: Side) -> Table:
    """Figures of the training's own out-of-fold answers; the base's were measured beside them."""
    first, second = _figures(a, b), _figures(b, a)
    rows = [
        FigureRow("Verdicts", _count(first), _count(second), "", ""),
        *evidence.beside(first, second),
    ]
    if not (first.get("n") and second.get("n")):
        said = (
            "They are not on record of both: no verdict of known sampling probability was judged."
        )
        return Table("Out of fold", _without_differences(rows), warning=said, numbers=True)
    if _judged_alike(a, b):
        note = (
            "Both were measured on the same verdicts. Whether a difference is more than luck, only "
            "a shadow evaluation says."
        )
        return Table("Out of fold", rows, note=note, numbers=True)
    warning = (
        f"Each version was measured on the verdicts that it was trained from, {a.name} on "
        f"{first['n']} and {b.name} on {second['n']}, and they are not the same. Compare both on "
        "the verdicts of now."
    )
    return Table("Out of fold", _without_differences(rows), warning=warning, numbers=True)


def _figures(side: Side, other: Side) -> Mapping[str, Any]:
    if side.version is not None:
        return side.version.metrics.get("out_of_fold") or {}
    return (other.version.metrics.get("base") or {}) if other.version else {}


def _count(figures: Mapping[str, Any]) -> str:
    return str(figures.get("n", ABSENT))


def _judged_alike(a: Side, b: Side) -> bool:
    """Whether the out-of-fold figures of both are of the same verdicts."""
    return a.version is None or b.version is None or a.version.snapshot == b.version.snapshot


def _guard(a: Side, b: Side) -> Table:
    """General pairs: what each has right, and how that changed from the base."""
    sides = [each.evaluation.guard if each.evaluation else {} for each in (a, b)]
    first, second = (
        (_base_of(other) if each.version is None else stored)
        for each, stored, other in ((a, sides[0], sides[1]), (b, sides[1], sides[0]))
    )

    def row(name: str, tell: Callable[[Mapping[str, Any]], str]) -> FigureRow:
        return FigureRow(name, tell(first), tell(second), "", "")

    rows = [
        row("General pairs", lambda stored: str(stored.get("n") or ABSENT)),
        row("Right", lambda stored: percent(stored.get("candidate_accuracy"))),
        row("Right, the base", lambda stored: percent(stored.get("base_accuracy"))),
        row("Change from the base", _change),
        row("Answered otherwise than by the base, of pairs without labels", _flipped),
    ]
    digests = {stored.get("digest") for stored in (first, second) if stored}
    warning = "They were measured on different guard sets." if len(digests) > 1 else ""
    return Table("Guard set", rows, warning=warning, numbers=True)


def _base_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The base's own part of what was measured of a version."""
    kept = {name: stored[name] for name in ("n", "digest", "base_accuracy") if name in stored}
    return kept | {"candidate_accuracy": stored.get("base_accuracy")}


def _change(stored: Mapping[str, Any]) -> str:
    had, has = stored.get("base_accuracy"), stored.get("candidate_accuracy")
    return ABSENT if had is None or has is None else points(has - had)


def _flipped(stored: Mapping[str, Any]) -> str:
    found = stored.get("unlabelled") or {}
    return percent(found.get("flipped"))


def _row(name: str, a: Side, b: Side, tell: Callable[[Side], str]) -> FigureRow:
    return FigureRow(name, tell(a), tell(b), "", "")


def _of_versions(name: str, a: Side, b: Side, tell: Callable[[AdapterVersion], str]) -> FigureRow:
    return _row(name, a, b, lambda side: tell(side.version) if side.version else ABSENT)


def _of_calibrations(
    name: str, a: Side, b: Side, tell: Callable[[CalibrationEvaluation], str]
) -> FigureRow:
    return _row(name, a, b, lambda side: tell(side.calibration) if side.calibration else ABSENT)


def _without_differences(rows: list[FigureRow]) -> list[FigureRow]:
    return [replace(row, difference="", tone="") for row in rows]


def _items(
    a: Side, b: Side, of: Callable[[AdapterVersion], Mapping[str, Any]], absent: str
) -> list[FigureRow]:
    """A row for every key of either version's mapping; `absent` stands where one has none."""
    first, second = (of(side.version) if side.version else None for side in (a, b))

    def tell(items: Mapping[str, Any] | None, key: str) -> str:
        return ABSENT if items is None else str(items.get(key, absent))

    keys = dict.fromkeys([*(first or {}), *(second or {})])
    return [FigureRow(key, tell(first, key), tell(second, key), "", "") for key in keys]
