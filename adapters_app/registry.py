"""Which adapter versions there are and which one serves: register, promote, roll back.

Only promote() and rollback() write the Serving row. No torch here.
"""

import getpass
import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Max, OuterRef, Q, Subquery

from adapters_app import liveness, storage, training
from adapters_app.models import (
    AdapterVersion,
    CalibrationEvaluation,
    Promotion,
    Serving,
    ShadowEvaluation,
    Snapshot,
    TrainingRun,
    name_of,
)
from adapters_app.training import Lease

BASE = training.BASE
Verdict = ShadowEvaluation.Verdict


class PromotionRefused(Exception):
    """The Serving row was left as it is; the message says why and what to do."""


class VersionUnknown(LookupError):
    """No registered version has this name or number."""


@dataclass(frozen=True)
class Incumbent:
    """What a version is compared with: another one or the base (None), and its calibrator."""

    version: AdapterVersion | None
    calibration: CalibrationEvaluation | None
    serves: bool


@dataclass(frozen=True)
class NewVersion:
    """What a finished training hands over; fields of AdapterVersion."""

    snapshot: Snapshot
    base_name: str
    base_fingerprint: str
    artifact_digest: str
    sibling_digests: list[str]
    artifact_bytes: int
    trainable_parameters: int
    config: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class NewCalibration:
    """A fitted calibrator and its figures; fields of CalibrationEvaluation."""

    method: str
    parameters: dict[str, Any]
    fitted_rows: int
    rows: int
    brier_before: float
    brier_after: float
    ece_before: float
    ece_after: float
    log_loss_before: float
    log_loss_after: float
    bins_before: list[dict[str, Any]]
    bins_after: list[dict[str, Any]]
    candidates: dict[str, float]
    not_tried: dict[str, str]
    reliability_before: dict[str, Any]
    reliability_after: dict[str, Any]
    replaces: CalibrationEvaluation | None = None
    replaced: dict[str, float] = field(default_factory=dict)
    snapshot: Snapshot | None = None  # whose rows it was fitted on


@dataclass(frozen=True)
class NewEvaluation:
    """A measured comparison; fields of ShadowEvaluation."""

    incumbent: AdapterVersion | None
    incumbent_calibration: CalibrationEvaluation | None
    snapshot: Snapshot
    rows_fingerprint: str
    rows: int
    groups: int
    effective_groups: float
    verdict: str
    needed_pairs: int | None
    figures: dict[str, Any]
    per_label: dict[str, Any]
    flips: list[dict[str, Any]]
    guard: dict[str, Any]
    later: dict[str, Any]
    advice: list[str]
    incumbent_served: bool = True


# --- looking --------------------------------------------------------------------------------------


def serving() -> Serving:
    """The one row that says who answers."""
    return Serving.objects.select_related("version", "calibration").get(pk=1)


def answering() -> Serving:
    """The same row for whoever answers, read again only when it has changed.

    It is asked for by every prediction. No more of the version and its calibrator is read than an
    answer needs; neither ever changes. Not to be written to: threads share it.
    """
    with connection.cursor() as cursor:  # the ORM takes longer to ask than the database to answer
        cursor.execute(REVISION)
        return _answering(cursor.fetchone())


# The time as well: a database that was put in the place of another may be at the same revision.
REVISION = "SELECT revision, changed_at FROM adapters_app_serving WHERE id = 1"


@lru_cache(maxsize=1)
def _answering(_revision: tuple[Any, ...]) -> Serving:
    calibration = ("number", "method", "parameters", "base_fingerprint", "version")
    found = (
        Serving.objects.select_related("version", "calibration")
        .only(
            *("revision", "version", "calibration"),
            *(f"version__{name}" for name in ("number", "artifact_digest")),
            *(f"calibration__{name}" for name in calibration),
        )
        .get(pk=1)
    )
    if found.calibration is not None and found.calibration.version_id == found.version_id:
        found.calibration.version = found.version  # or its name would be another query
    return found


def find_version(text: str) -> AdapterVersion:
    """The version called “v7” or “7”.

    Raises:
        VersionUnknown: there is none.
    """
    number = text.strip().lower().removeprefix("v")
    if number.isascii() and number.isdecimal() and len(number) < 10:
        version = AdapterVersion.objects.filter(number=int(number)).first()
        if version is not None:
            return version
    raise VersionUnknown(f"There is no adapter version “{text[:50]}”.")


def latest_evidence(version: AdapterVersion) -> ShadowEvaluation | None:
    """The newest comparison of a version with what served then, whatever that was."""
    return version.evaluations.evidence().select_related("incumbent").first()


def incumbent(against: str = "") -> Incumbent:
    """What a version is compared with: what serves, or what this names, “v3” or “base”.

    Raises:
        VersionUnknown: there is no such version.
    """
    row = serving()
    named = None if against in {"", BASE} else find_version(against)
    version = named if against else row.version
    if version == row.version:
        return Incumbent(version, row.calibration, serves=True)
    return Incumbent(version, latest_calibration(version) if version else None, serves=False)


def comparisons_with(incumbent: Incumbent) -> list[ShadowEvaluation]:
    """The evaluations that compare some candidate with what serves, oldest first: which
    candidate and on how much, no more. Of what does not serve there are none.

    A calibrator that changes no answer makes nothing else of what serves: or luck could be tried
    again at the level of a first attempt.
    """
    if not incumbent.serves:
        return []
    calibration = incumbent.calibration
    answers_alike = Q(incumbent_calibration=calibration)
    if calibration is None or calibration.method in CalibrationEvaluation.OF_ANY_MIX:
        answers_alike = Q(incumbent_calibration=None) | Q(
            incumbent_calibration__method__in=CalibrationEvaluation.OF_ANY_MIX
        )
    found = ShadowEvaluation.objects.evidence().filter(answers_alike, incumbent=incumbent.version)
    compared_on = ("rows", "effective_groups", "rows_fingerprint")
    return list(found.only("candidate", "candidate_calibration", *compared_on).order_by("id"))


def latest_calibration(version: AdapterVersion) -> CalibrationEvaluation | None:
    """The newest calibrator fitted for a version."""
    return version.calibrations.first()


def newest_candidate() -> AdapterVersion | None:
    """The version that a releaser may promote next; None where there is none.

    The newest one of the configured base that is newer than what serves, never served, and of
    which the latest evidence does not say `worse`.
    """
    served = serving().version
    latest = ShadowEvaluation.objects.evidence().filter(candidate=OuterRef("pk")).order_by("-id")
    unpromoted = AdapterVersion.objects.filter(
        base_name=training.base_label(),
        number__gt=served.number if served else 0,
        promotions=None,
    )
    judged = unpromoted.annotate(verdict=Subquery(latest.values("verdict")[:1]))
    return judged.filter(verdict__in=set(Verdict) - {Verdict.WORSE}).order_by("-number").first()


def present_calibration(version: AdapterVersion) -> CalibrationEvaluation | None:
    """What a version answers with: the calibrator that serves with it, else its newest."""
    row = serving()
    return row.calibration if row.version == version else latest_calibration(version)


# --- registering ----------------------------------------------------------------------------------


def register(
    lease: Lease, *, version: NewVersion, calibration: NewCalibration, evaluation: NewEvaluation
) -> AdapterVersion:
    """Commit a trained version, its calibrator, its evaluation and the end of its run, or nothing.

    Raises:
        LeaseLost, CancelRequested: the run is not ours to finish.
        ArtifactMissing: an artifact was not stored first.
    """
    for digest in (version.artifact_digest, *version.sibling_digests):
        if not storage.holds(digest):
            raise storage.ArtifactMissing(f"Artifact {digest[:12]} is not in storage.")
    with transaction.atomic():
        training.succeed(lease)
        run = TrainingRun.objects.select_related("requested_by").get(pk=lease.run_id)
        registered = AdapterVersion.objects.create(
            number=_next_number(),
            run=run,
            scope=run.scope,
            domain=run.domain,
            created_by=run.requested_by,
            **_fields(version),
        )
        learnt = replace(calibration, snapshot=registered.snapshot)
        fitted = _add_calibration(registered, learnt, by=run.requested_by)
        _add_evaluation(registered, run, fitted, evaluation)
    return registered


def record_evaluation(
    lease: Lease,
    *,
    version: AdapterVersion,
    calibration: CalibrationEvaluation | None,
    evaluation: NewEvaluation,
) -> ShadowEvaluation:
    """Commit a shadow evaluation of an existing version and the end of its run, or nothing.

    Raises:
        LeaseLost, CancelRequested: the run is not ours to finish.
    """
    with transaction.atomic():
        training.succeed(lease)
        run = TrainingRun.objects.get(pk=lease.run_id)
        return _add_evaluation(version, run, calibration, evaluation)


def record_calibration(
    version: AdapterVersion, fitted: NewCalibration, *, by: User
) -> CalibrationEvaluation:
    """Add a calibrator to a version. It serves only after the next promotion of that version."""
    with transaction.atomic():
        AdapterVersion.objects.select_for_update().get(pk=version.pk)  # numbers are never reused
        return _add_calibration(version, fitted, by=by)


def _next_number() -> int:
    # Two runs that end at once must not take the same number.
    Serving.objects.select_for_update().get(pk=1)
    return (AdapterVersion.objects.aggregate(last=Max("number"))["last"] or 0) + 1


def _add_calibration(
    version: AdapterVersion, fitted: NewCalibration, *, by: User
) -> CalibrationEvaluation:
    last = version.calibrations.aggregate(last=Max("number"))["last"] or 0
    return CalibrationEvaluation.objects.create(
        version=version,
        number=last + 1,
        base_fingerprint=version.base_fingerprint,
        created_by=by,
        **_fields(fitted),
    )


def _add_evaluation(
    version: AdapterVersion,
    run: TrainingRun,
    calibration: CalibrationEvaluation | None,
    evaluation: NewEvaluation,
) -> ShadowEvaluation:
    return ShadowEvaluation.objects.create(
        candidate=version, run=run, candidate_calibration=calibration, **_fields(evaluation)
    )


def _fields(new: NewVersion | NewCalibration | NewEvaluation) -> dict[str, Any]:
    """Field values without copying: dataclasses.asdict() would deep-copy model instances."""
    return {name: getattr(new, name) for name in type(new).__dataclass_fields__}


# --- promoting and rolling back -------------------------------------------------------------------


def promote(
    version: AdapterVersion,
    *,
    by: User,
    reason: str,
    expected_revision: int,
    acknowledge: bool = False,
    override: bool = False,
    evidence_id: int | None = None,
    calibration_id: int | None = None,
    os_user: str = "",
) -> Promotion:
    """Let `version` answer from the next request on, with the calibrator that was measured.

    Of the version that serves already it puts the newest calibrator into service.
    `acknowledge` accepts inconclusive evidence, `override` a verdict of worse; both are recorded.
    `evidence_id` and `calibration_id` name what the decision was taken on, if that is known.

    Raises:
        PromotionRefused: the gate, a stale page, another base, damaged files or a store that is
            away; the message says which.
    """
    _need_reason(reason)
    _need_four_eyes(version, by)
    _need_usable(version)
    with transaction.atomic():
        row = _locked(expected_revision)
        if row.version == version:
            chosen = _newer_calibrator(row, version, by, seen=calibration_id, override=override)
        else:
            _need_difference(version, row)
            evidence = _evidence_seen(version, row, evidence_id)
            gate = _pass_gate(evidence, acknowledge=acknowledge, override=override)
            calibration = evidence.candidate_calibration
            chosen = {"calibration": calibration, "evidence": evidence, **gate}
        return _switch(
            row,
            action=Promotion.Action.PROMOTE,
            version=version,
            by=by,
            os_user=os_user,
            reason=reason,
            **chosen,
        )


def rollback(
    *,
    by: User,
    reason: str,
    expected_revision: int | None = None,
    to: AdapterVersion | str | None = None,
    os_user: str = "",
) -> Promotion:
    """Restore what an earlier promotion put in front of users: version and calibrator.

    `to` is a version that once served, "base", or None for the one before in the walk back.

    Raises:
        PromotionRefused: nothing to go back to, a stale page, another base, damaged files or a
            store that is away.
    """
    _need_reason(reason)
    revision, target = _rollback_target(to, expected_revision)
    if target is not None and target.version is not None:
        _need_usable(target.version)
    with transaction.atomic():
        row = _locked(revision)
        return _switch(
            row,
            action=Promotion.Action.ROLLBACK,
            version=target.version if target else None,
            calibration=target.calibration if target else None,
            restores=target,
            by=by,
            os_user=os_user,
            reason=reason,
        )


def evidence_against(version: AdapterVersion, row: Serving) -> ShadowEvaluation:
    """The newest evaluation of `version` against what serves, with the calibrator it serves with.

    Raises:
        PromotionRefused: there is none.
    """
    against = (
        version.evaluations.evidence()
        .select_related("candidate_calibration")
        .filter(incumbent=row.version)
    )
    for evidence in against:
        if evidence.is_against(row):
            return evidence
    who = name_of(row.version)
    if against:
        raise PromotionRefused(
            f"{version.name} was measured against {who} with another calibrator than serves now. "
            f"Run a shadow evaluation of {version.name} first."
        )
    other = latest_evidence(version)
    measured = f"it was measured against {name_of(other.incumbent)}" if other else "it has none"
    if version.evaluations.filter(incumbent=row.version).exists():
        measured += f"; it was compared with {who} when that did not serve, which is no evidence"
    raise PromotionRefused(
        f"{version.name} has no evidence against {who}, which serves now ({measured}). "
        f"Run a shadow evaluation of {version.name} first."
    )


def newer_calibration(row: Serving) -> CalibrationEvaluation | None:
    """The newest calibrator of the version that serves, where it is newer than its present one."""
    if row.version is None:
        return None
    newest = latest_calibration(row.version)
    if newest is None or (row.calibration is not None and newest.pk <= row.calibration.pk):
        return None
    return newest


def replaced_figures(
    newer: CalibrationEvaluation, present: CalibrationEvaluation | None
) -> dict[str, float] | None:
    """{brier, ece, log_loss} of the calibrator that serves, on the pairs `newer` was fitted on.

    Uncalibrated answers stand in where none serves; None where it was not measured on those pairs.
    """
    if present is None:
        return {name: getattr(newer, f"{name}_before") for name in ("brier", "ece", "log_loss")}
    return newer.replaced if newer.replaces_id == present.pk else None


def calibrates_worse(
    newer: CalibrationEvaluation, present: CalibrationEvaluation | None
) -> list[str]:
    """What speaks against a newer calibrator, in words with both numbers.

    Both are judged on the same pairs, each pair by one that was not fitted on its fold. Figures of
    each on pairs of its own would compare the pairs.
    """
    figures = replaced_figures(newer, present)
    if figures is None:
        return [f"nobody has compared it with {present} on the same pairs: calibrate again"]
    found = []
    for name, words in (("brier", "Brier score"), ("log_loss", "log loss")):
        had, has = figures[name], getattr(newer, f"{name}_after")
        if has > had:
            found.append(f"its {words} on {newer.rows} pairs is {has:.4f}, now {had:.4f}")
    return found


def rollback_default() -> Promotion | None:
    """The promotion that a rollback without a target restores; None = the base."""
    walk = _walk()
    return walk[-2] if len(walk) > 1 else None


def _evidence_seen(
    version: AdapterVersion, row: Serving, evidence_id: int | None
) -> ShadowEvaluation:
    evidence = evidence_against(version, row)
    if evidence_id not in {None, evidence.pk}:
        _need_comparison_with_what_served(version, evidence_id)
        raise PromotionRefused(
            f"{version.name} was evaluated against {name_of(row.version)} again since you looked: "
            f"{evidence.get_verdict_display()} (evaluation {evidence.pk}; you saw {evidence_id}). "
            "Look again, then decide."
        )
    return evidence


def _need_comparison_with_what_served(version: AdapterVersion, seen: int | None) -> None:
    others = version.evaluations.select_related("incumbent").filter(incumbent_served=False)
    found = None if seen is None else others.filter(pk=seen).first()
    if found is not None:
        raise PromotionRefused(
            f"Evaluation {found.pk} compares {version.name} with {name_of(found.incumbent)}, which "
            "did not serve then: it is no evidence for a promotion. Look at the comparison with "
            "what serves, then decide."
        )


def _newer_calibrator(
    row: Serving, version: AdapterVersion, by: User, *, seen: int | None, override: bool
) -> dict[str, Any]:
    """What a promotion of the version that serves puts into service and records."""
    newer = newer_calibration(row)
    if newer is None:
        raise PromotionRefused(f"{version.name} already serves, with its newest calibrator.")
    if seen not in {None, newer.pk}:
        raise PromotionRefused(
            f"{version.name} was calibrated again since you looked. Look again, then decide."
        )
    if settings.LYRA_FOUR_EYES and by.pk == newer.created_by_id:
        raise PromotionRefused(
            f"You fitted {newer}; somebody else has to promote it (LYRA_FOUR_EYES is set)."
        )
    worse = calibrates_worse(newer, row.calibration)
    if worse and not override:
        raise PromotionRefused(
            f"{newer} is not shown to calibrate as well as what serves: {' and '.join(worse)}. To "
            "promote it all the same, override the gate; the ledger keeps your reason."
        )
    return {"calibration": newer, "overridden": bool(worse)}


def _pass_gate(evidence: ShadowEvaluation, *, acknowledge: bool, override: bool) -> dict[str, bool]:
    if evidence.verdict == Verdict.WORSE and not override:
        raise PromotionRefused(
            "The shadow evaluation says worse. To promote it all the same, override the gate; "
            "the ledger keeps your reason."
        )
    if evidence.verdict == Verdict.INCONCLUSIVE and not (acknowledge or override):
        more = f"; about {evidence.needed_pairs} more reviewed pairs might decide"
        raise PromotionRefused(
            f"The shadow evaluation is inconclusive on {evidence.rows} pairs"
            f"{more if evidence.needed_pairs else ''}. Acknowledge that to promote it all the same."
        )
    return {
        "acknowledged": evidence.verdict == Verdict.INCONCLUSIVE,
        "overridden": evidence.verdict == Verdict.WORSE,
    }


def _switch(
    row: Serving,
    *,
    action: str,
    version: AdapterVersion | None,
    calibration: CalibrationEvaluation | None,
    reason: str,
    **ledger: Any,
) -> Promotion:
    """Point the locked row at `version` and write the ledger."""
    if row.version == version and row.calibration == calibration:
        raise PromotionRefused(f"{name_of(version).capitalize()} already serves.")
    entry = Promotion(
        action=action,
        version=version,
        calibration=calibration,
        previous_version=row.version,
        previous_calibration=row.calibration,
        revision=row.revision + 1,
        reason=reason.strip(),
        **ledger,
    )
    entry.save()
    row.version, row.calibration = version, calibration
    row.revision, row.changed_at = entry.revision, entry.at
    row.save()
    return entry


def _locked(expected_revision: int) -> Serving:
    row = Serving.objects.select_for_update().get(pk=1)
    if row.revision != expected_revision:
        raise PromotionRefused(_who_was_faster(row, expected_revision))
    return row


def _who_was_faster(row: Serving, expected_revision: int) -> str:
    last = Promotion.objects.select_related("by", "version").filter(revision=row.revision).first()
    if last is None:
        return f"Revision {expected_revision} is not what serves; that is revision {row.revision}."
    did = "promoted" if last.action == Promotion.Action.PROMOTE else "rolled back to"
    return (
        f"What serves has changed since you looked: {last.by} {did} {name_of(last.version)} at "
        f"{last.at:%Y-%m-%d %H:%M:%S} UTC (revision {row.revision}; you saw {expected_revision}). "
        "Look again, then decide."
    )


def _need_reason(reason: str) -> None:
    if not reason.strip():
        raise PromotionRefused("Give a reason; the ledger keeps it.")


def _need_four_eyes(version: AdapterVersion, by: User) -> None:
    if settings.LYRA_FOUR_EYES and by.pk == version.created_by_id:
        raise PromotionRefused(
            f"You asked for the training of {version.name}; somebody else has to promote it "
            "(LYRA_FOUR_EYES is set)."
        )


def _need_usable(version: AdapterVersion) -> None:
    """Those who answer have the base it was made for, and its files are whole."""
    _need_same_base(version)
    try:
        storage.verify(version.artifact_digest)
        storage.fetch(version.artifact_digest)
    except (storage.ArtifactMissing, storage.ArtifactCorrupt) as error:
        raise PromotionRefused(f"{version.name} cannot serve. {error}") from error
    except OSError as error:
        raise PromotionRefused(
            f"{version.name} cannot be looked at just now. {error.strerror or error}"
        ) from error


def _need_same_base(version: AdapterVersion) -> None:
    """Ask the web processes; where none lives, the settings and what a run last measured."""
    found = [
        (f"{server.name} answers with", server.base_name, server.base_fingerprint)
        for server in liveness.servers()
    ]
    if not found:
        found = [("this server is set to", training.base_label(), training.base_fingerprint())]
    for whose, name, fingerprint in found:
        same = fingerprint == version.base_fingerprint if fingerprint else name == version.base_name
        if not same:
            raise PromotionRefused(
                f"{version.name} was trained on the base {version.base_name} (fingerprint "
                f"{version.base_fingerprint[:12]}), but {whose} {name} (fingerprint "
                f"{fingerprint[:12] or 'not measured yet'}). An adapter answers only with its own: "
                "bring that base back, or train on this one."
            )


def _need_difference(version: AdapterVersion, row: Serving) -> None:
    if row.version is not None and row.version.artifact_digest == version.artifact_digest:
        raise PromotionRefused(
            f"{version.name} is identical to {row.version.name}, which serves: same artifact "
            f"{version.artifact_digest[:12]}."
        )


def _rollback_target(
    to: AdapterVersion | str | None, expected_revision: int | None
) -> tuple[int, Promotion | None]:
    """The revision the choice was made on, and the promotion to restore (None = the base)."""
    row = serving()
    revision = row.revision if expected_revision is None else expected_revision
    if row.revision != revision:
        raise PromotionRefused(_who_was_faster(row, revision))
    if isinstance(to, AdapterVersion):
        return revision, _last_promotion_of(to)
    if to not in {None, BASE}:
        raise PromotionRefused(f"Roll back to a version or to “{BASE}”, not to “{to}”.")
    if row.version is None:
        raise PromotionRefused("The base already serves; there is nothing to roll back to.")
    return revision, None if to == BASE else rollback_default()


def _last_promotion_of(version: AdapterVersion) -> Promotion:
    promotions = version.promotions.filter(action=Promotion.Action.PROMOTE)
    found = promotions.select_related("version", "calibration").first()
    if found is None:
        raise PromotionRefused(f"{version.name} has never served; promote it instead.")
    return found


def _walk() -> list[Promotion]:
    """Promotions one can walk back through, oldest first; the last one serves.

    P1 P2 P3 R→2 leaves P1 P2: a rollback restores the walk of the promotion it went back to.
    """
    walks: dict[int | None, list[Promotion]] = {None: []}
    walk: list[Promotion] = []
    for entry in Promotion.objects.select_related("version", "calibration").order_by("id"):
        if entry.action == Promotion.Action.PROMOTE:
            walk = [*walk, entry]
            walks[entry.pk] = walk
        else:
            walk = walks[entry.restores_id]
    return walk


def told(entry: Promotion) -> dict[str, Any]:
    """A line of the ledger for programs."""
    return {
        "action": entry.action,
        "version": entry.version.name if entry.version else BASE,
        "previous": entry.previous_version.name if entry.previous_version else BASE,
        "calibration": str(entry.calibration) if entry.calibration else None,
        "revision": entry.revision,
    }


def os_user() -> str:
    """Who is signed in to this machine, for the ledger; a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
