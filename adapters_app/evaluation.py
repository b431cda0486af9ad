"""Shadow evaluation: from the logits of two models on the same rows to a verdict and its evidence.

Figures out of fold speak of the recipe on this data: sibling k judges only rows of fold k.
Imported by what runs in the trainer's process only (numpy, scipy).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from django.contrib.humanize.templatetags.humanize import ordinal

from adapters_app import reporting, snapshots
from adapters_app.models import (
    AdapterVersion,
    CalibrationEvaluation,
    ShadowEvaluation,
    Snapshot,
    name_of,
)
from adapters_app.nli import hajek, label_noise, metrics
from adapters_app.nli.betting import bet_on_gain
from adapters_app.nli.calibration import (
    METHODS,
    OF_ANY_MIX,
    Calibrator,
    Choice,
    Identity,
    choose,
    from_dict,
)
from adapters_app.nli.guard import GuardSet, unlabelled
from adapters_app.nli.guard import load as shipped_guard_set
from adapters_app.nli.slices import Slice, compare_slices
from adapters_app.registry import NewCalibration, NewEvaluation
from adapters_app.snapshots import SnapshotRow
from adapters_app.templatetags.figures import confidence, percent
from corrections.labels import LABELS, Label
from corrections.models import Correction

Verdict = ShadowEvaluation.Verdict
LISTED_FLIPS = 500
WANTED_ACCURACY = 0.85  # the documents' wish; advice, not a gate
MOST_LOST_ELSEWHERE = 0.01  # of the guard set's accuracy, by a calibrator's offsets per label
# Every verdict is ranked; a version keeps the fifth worth reading, of huge snapshots less.
SUSPICIOUS_SHARE = 0.2
LISTED_SUSPICIOUS = 2000
NO_KNOWN_ROWS = (
    "No row has a known sampling probability, so nothing can be said about accuracy: what people "
    "choose to report is biased. Review drawn samples, or import a complete set."
)
ALL_CLAIMS_LEARNT = (
    "One of the models has learnt about every claim that was judged, so nothing can be said about "
    "accuracy. Review verdicts about other claims."
)


@dataclass(frozen=True, eq=False)
class Contestant:
    """One model's raw answers: out of fold on the snapshot's rows, and on general pairs."""

    logits: np.ndarray  # (rows, 3)
    general_logits: np.ndarray  # (guard.unlabelled() pairs, 3), of the released adapter
    calibrator: Calibrator
    digest: str = ""  # of the released artifact; empty = the base
    # (rows,) whether it learnt nothing about the row's claim; None = of none
    unseen: np.ndarray | None = None
    # (rows, 3) by calibrators that were not fitted on the row, see `cross_fitted`; None = it was
    # fitted on none of them
    crossed: np.ndarray | None = None

    def probabilities(self) -> np.ndarray:
        if self.crossed is not None:
            return self.crossed
        return self.calibrator.predict_proba(self.logits)

    def general_probabilities(self) -> np.ndarray:
        return self.calibrator.predict_proba(self.general_logits)


@dataclass(frozen=True, eq=False)
class Judged:
    """The rows that carry figures, as arrays over the n rows of known sampling probability."""

    rows: list[SnapshotRow]
    index: np.ndarray  # (n,) positions in the snapshot
    labels: np.ndarray  # (n,) columns in the order of LABELS
    weights: np.ndarray  # (n,) inverse sampling probabilities, see judged()
    groups: np.ndarray  # (n,) source groups

    @property
    def claims(self) -> np.ndarray:
        """(n,) normalised hypotheses."""
        return np.array([row.claim for row in self.rows])


def judged(rows: Sequence[SnapshotRow], *, among: np.ndarray | None = None) -> Judged:
    """Rows of known probability; what people chose to report is biased and carries no figure.

    `among` (rows,) leaves out others.

    What was drawn from live answers, for audit or disagreement, is one sample; complete labelled
    sets, which nobody asked about, are another. Figures speak of a mixture of both, in proportion
    to their verdicts: see `hajek.pooled_weights`.
    """
    known = [i for i, row in enumerate(rows) if row.known and (among is None or among[i])]
    chosen = [rows[i] for i in known]
    live = np.array([row.sampling in Correction.DRAWN for row in chosen], dtype=bool)
    return Judged(
        rows=chosen,
        index=np.array(known, dtype=int),
        labels=label_columns(chosen),
        weights=hajek.pooled_weights(np.array([row.weight for row in chosen]), live),
        groups=np.array([row.group_id for row in chosen], dtype=int),
    )


def representative(rows: Sequence[SnapshotRow]) -> Judged:
    """All rows, weighted so as to stand for what is asked: what a temperature is fitted on.

    Where too few were drawn to tell how people report, those of known probability alone.
    """
    weights = reporting.sample_weights(rows)
    if weights is None:
        return judged(rows)
    return Judged(
        rows=list(rows),
        index=np.arange(len(rows)),
        labels=label_columns(rows),
        weights=weights,
        groups=np.array([row.group_id for row in rows], dtype=int),
    )


def label_columns(rows: Sequence[SnapshotRow]) -> np.ndarray:
    """(n,) column of each row's label."""
    return np.array([Label(row.label).column for row in rows], dtype=int)


def stored_calibrator(calibration: CalibrationEvaluation | None) -> Calibrator:
    """The calibrator a stored evaluation describes; the identity where there is none."""
    if calibration is None:
        return Identity()
    return from_dict(calibration.method, calibration.parameters)


# --- calibration ----------------------------------------------------------------------------------


def calibrate(
    logits: np.ndarray,
    rows: Sequence[SnapshotRow],
    *,
    general: np.ndarray | None = None,
    replaces: CalibrationEvaluation | None = None,
    replaces_among: np.ndarray | None = None,
) -> tuple[Calibrator, NewCalibration]:
    """Fit and choose a calibrator on out-of-fold logits (n, 3) of the n rows of a snapshot.

    Its figures are those of `judged` rows. On these it is fitted where they show that offsets per
    label pay, and where `general`, the released adapter's raw answers (pairs, 3) to the guard set
    or to that and more, shows that they cost next to nothing elsewhere; without it none are taken.
    Otherwise it is fitted, without offsets, on all `representative` rows: how often which label is
    right only a sample tells. With fewer than 30 rows nothing is fitted: probabilities stay as they
    are; other methods need more, see `calibration.choose`. What it is worth is told `cross_fitted`.
    `replaces` is the version's calibrator so far, fitted on those `replaces_among` (n,) these rows;
    it is measured on the same rows in the same way.
    """
    sample, known = representative(rows), judged(rows)
    choice, fitted_rows = _choose(logits, known, METHODS), len(known.rows)
    too_dear = choice.calibrator.by_label and _cost_elsewhere(choice.calibrator, general)
    if too_dear or (not choice.calibrator.by_label and len(sample.rows) > fitted_rows):
        passed_over = {
            kind.method: "on rows of known probability: "
            + choice.not_tried.get(kind.method, "no better")
            for kind in METHODS
            if kind.by_label
        }
        if too_dear:
            passed_over[choice.calibrator.method] = too_dear
        choice, fitted_rows = _choose(logits, sample, OF_ANY_MIX), len(sample.rows)
        choice = replace(choice, not_tried=choice.not_tried | passed_over)
    own = logits[known.index]
    uncalibrated = Identity().predict_proba(own)
    calibrated = cross_fitted(choice.calibrator, logits, rows)[known.index]
    before, after = _figures(uncalibrated, known), _figures(calibrated, known)
    replaced = {}
    if replaces:
        present = stored_calibrator(replaces)
        so_far = cross_fitted(present, logits, rows, among=replaces_among)[known.index]
        replaced = {name: _figures(so_far, known)[name] for name in ("brier", "ece", "log_loss")}
    fitted = NewCalibration(
        method=choice.calibrator.method,
        parameters=choice.calibrator.to_dict(),
        fitted_rows=fitted_rows,
        rows=len(known.rows),
        candidates=choice.log_losses,
        not_tried=choice.not_tried,
        replaces=replaces,
        replaced=replaced,
        reliability_before=_reliability(uncalibrated, known),
        reliability_after=_reliability(calibrated, known),
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
    )
    return choice.calibrator, fitted


def _cost_elsewhere(calibrator: Calibrator, general: np.ndarray | None) -> str:
    """Why offsets per label are not for general pairs; empty where they are hardly noticed there.

    They learn which labels are frequent here, and are added to every answer.
    """
    if general is None:
        return "what it costs on general pairs is not known"
    labels = shipped_guard_set().labels
    own = general[: len(labels)]
    before, after = own.argmax(1), calibrator.predict_proba(own).argmax(1)
    lost = float((before == labels).mean() - (after == labels).mean())
    return f"loses {100 * lost:.1f} points on general pairs" if lost > MOST_LOST_ELSEWHERE else ""


def cross_fitted(
    calibrator: Calibrator,
    logits: np.ndarray,
    rows: Sequence[SnapshotRow],
    *,
    among: np.ndarray | None = None,
) -> np.ndarray:
    """(n, 3) probabilities of out-of-fold logits (n, 3), each by the calibrator's kind, fitted
    without the row's fold.

    `calibrator` was fitted by `calibrate` on those `among` (n,) the rows, by default on all; others
    are answered by itself. On its own rows it flatters: with offsets, which change answers, by a
    point of accuracy on 150 rows.
    """
    used = np.arange(len(rows)) if among is None else np.flatnonzero(among)
    own = [rows[int(i)] for i in used]
    learnt_on = judged(own) if calibrator.by_label else representative(own)
    folds = np.array([row.fold for row in own], dtype=int)
    probabilities = calibrator.predict_proba(logits)
    for fold in np.unique(folds):
        elsewhere = folds[learnt_on.index] != fold
        labels = learnt_on.labels[elsewhere]
        other: Calibrator = Identity()
        if len(np.unique(labels)) > 1:
            known = logits[used[learnt_on.index[elsewhere]]]
            other = type(calibrator)().fit(known, labels, learnt_on.weights[elsewhere])
        held = used[folds == fold]
        probabilities[held] = other.predict_proba(logits[held])
    return probabilities


def _choose(logits: np.ndarray, rows: Judged, methods: Sequence[type[Calibrator]]) -> Choice:
    own = logits[rows.index]
    return choose(own, rows.labels, rows.weights, rows.groups, methods=methods)


def _figures(probabilities: np.ndarray, rows: Judged) -> dict[str, Any]:
    if not rows.rows:
        return {"brier": 0.0, "ece": 0.0, "log_loss": 0.0, "bins": []}
    error, bins = metrics.ece(probabilities, rows.labels, rows.weights)
    return {
        "brier": metrics.brier(probabilities, rows.labels, rows.weights),
        "ece": error,
        "log_loss": metrics.log_loss(probabilities, rows.labels, rows.weights),
        "bins": bins,
    }


def _reliability(probabilities: np.ndarray, rows: Judged) -> dict[str, Any]:
    """What `CalibrationEvaluation.reliability_after` keeps; empty without rows."""
    if not rows.rows:
        return {}
    _, bins = metrics.ece(probabilities, rows.labels, rows.weights)
    return {
        "ece_debiased": metrics.debiased_ece(bins),
        "ece_floor": metrics.ece_floor(probabilities, rows.weights),
        "brier_skill": metrics.brier_skill(probabilities, rows.labels, rows.weights),
        "labels": metrics.label_reliability(probabilities, rows.labels, rows.weights),
    }


# --- comparison -----------------------------------------------------------------------------------


def measure(
    *,
    snapshot: Snapshot,
    rows: Sequence[SnapshotRow],
    candidate: Contestant,
    incumbent: Contestant,
    base: Contestant,
    served: tuple[AdapterVersion | None, CalibrationEvaluation | None],
    guard_set: GuardSet,
    seed: int,
    registered: tuple[AdapterVersion, CalibrationEvaluation | None] | None = None,
    earlier: Sequence[ShadowEvaluation] = (),
    later: dict[str, Any] | None = None,
    incumbent_served: bool = True,
) -> NewEvaluation:
    """Compare the candidate with the incumbent and with the base, on the same rows, and judge it.

    The incumbent is what serves, or, where not `incumbent_served`, what somebody chose. `served`:
    its version and calibrator. `registered`: the candidate, if it is a version already. `earlier`:
    the comparisons with what serves so far, see `_Looks`. `later` (figures of the released
    adapter) goes with the evidence as it is.
    """
    known = len(judged(rows).rows)
    against = judged(rows, among=_unseen_by(candidate, incumbent, len(rows)))
    guard = compare_on_guard(candidate, incumbent, base, guard_set) | {
        "unlabelled": flips_against_base(
            candidate.general_probabilities(), base.general_probabilities()
        )
    }
    name = name_of(served[0])
    standing = [] if incumbent_served else [_no_evidence(name)]
    if not against.rows:
        reason = ALL_CLAIMS_LEARNT if known else NO_KNOWN_ROWS
        found = _unmeasurable(snapshot, served, guard, later, [reason, *standing])
        return replace(found, incumbent_served=incumbent_served)
    fingerprint = snapshots.fingerprint(against.rows)
    looks = _Looks(earlier, registered, fingerprint)
    domain = _compare(incumbent, candidate, against, seed, level=metrics.spent_level(looks.attempt))
    to_base = _compare(base, candidate, against, seed)
    slices = _slices(incumbent, candidate, against, seed)
    verdict = _verdict(domain, guard, identical=candidate.digest == incumbent.digest)
    inconclusive = verdict == Verdict.INCONCLUSIVE
    return NewEvaluation(
        incumbent=served[0],
        incumbent_calibration=served[1],
        snapshot=snapshot,
        rows_fingerprint=fingerprint,
        rows=domain.rows,
        groups=domain.groups,
        effective_groups=domain.effective_groups,
        verdict=verdict,
        needed_pairs=metrics.needed_pairs(domain, level=looks.level_of_next(domain))
        if inconclusive
        else None,
        figures=finite(
            {
                "against_incumbent": domain.to_dict(),
                "against_base": to_base.to_dict(),
                "stated_effect": metrics.STATED_EFFECT,
                "attempt": looks.attempt,
                "slices": {
                    kind: [each.to_dict() for each in some] for kind, some in slices.items()
                },
            }
        ),
        per_label={
            label.value: {
                "incumbent": domain.a["per_label"][label.value],
                "candidate": domain.b["per_label"][label.value],
            }
            for label in LABELS
        },
        flips=_flips(incumbent, candidate, against),
        guard=guard,
        later=later or {},
        advice=_advice(
            domain,
            to_base,
            guard,
            identical=candidate.digest == incumbent.digest,
            learnt=known - len(against.rows),
            incumbent=name,
        )
        + _lost_slices(slices, name)
        + _surer(looks.attempt, name)
        + standing,
        incumbent_served=incumbent_served,
    )


def compare_on_guard(
    candidate: Contestant, incumbent: Contestant, base: Contestant, guard_set: GuardSet
) -> dict[str, Any]:
    """Released candidate against the incumbent on the guard set, and against the base: small losses
    add up from version to version."""
    # The guard set's pairs are the first of the general ones.
    right = {
        name: contestant.general_probabilities()[: len(guard_set)].argmax(1) == guard_set.labels
        for name, contestant in (
            ("candidate", candidate),
            ("incumbent", incumbent),
            ("base", base),
        )
    }
    changes = right["candidate"].astype(int) - right["incumbent"].astype(int)
    p_loss = metrics.loss_p(changes, guard_set.groups)
    since_base = right["candidate"].astype(int) - right["base"].astype(int)
    return {
        "digest": guard_set.digest,
        "n": len(guard_set),
        **{f"{name}_accuracy": _share(hits) for name, hits in right.items()},
        "gained": int((changes > 0).sum()),
        "lost": int((changes < 0).sum()),
        "p_loss": p_loss,
        "fails": metrics.guard_fails(p_loss),
        "p_loss_since_base": metrics.loss_p(since_base, guard_set.groups),
        "phenomena": _by_phenomenon(guard_set, right),
    }


def flips_against_base(candidate: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """How often the candidate answers `guard.unlabelled()` otherwise than the base, as served.

    From probabilities (pairs, 3) of both. Each answer lost is one that changed, so the share of
    those, with its 95 % upper bound over pairs that share texts, bounds any loss on such pairs.
    """
    changed = candidate.argmax(1) != base.argmax(1)
    found = hajek.share(changed, np.ones(len(changed)), unlabelled().groups)
    return {"n": len(changed), "flipped": found.estimate, "loss_at_most": found.high}


def confirmation(
    incumbent: np.ndarray, candidate: np.ndarray, rows: Sequence[SnapshotRow], *, most: int = 1
) -> dict[str, Any]:
    """A bet on the released candidate's gain, from probabilities (n, 3) of both on `rows`.

    `rows` were reviewed after the snapshot, on pages and claims neither model learnt from. Those of
    unknown sampling probability are left out; the others are bet on in the order of their review,
    with their plain weights: pooled ones change with every verdict to come, and a bet may not know
    it. Where more than `betting.DROPPED_AT_MOST` of what they disagree on does not count, for want
    of whole pages or of new claims, it confirms nothing. `most`: see `most_disagreements`.
    """
    on = judged(rows)
    order = sorted(range(len(on.rows)), key=lambda i: (on.rows[i].reviewed_at, on.groups[i]))
    before, after = incumbent[on.index].argmax(1), candidate[on.index].argmax(1)
    bet = bet_on_gain(
        right_a=(before == on.labels)[order],
        right_b=(after == on.labels)[order],
        differ=(before != after)[order],
        groups=on.groups[order],
        weights=np.array([on.rows[i].weight for i in order]),
        claims=np.array([on.rows[i].claim for i in order]),
        most=most,
    )
    return asdict(bet) | {"confirmed": bet.confirmed}


def most_disagreements(
    incumbent: Contestant, candidate: Contestant, rows: Sequence[SnapshotRow], among: np.ndarray
) -> int:
    """How many answers, out of fold, the two give differently on any one page, at least 1; `among`
    (rows,) leaves out other rows."""
    differ = incumbent.probabilities().argmax(1) != candidate.probabilities().argmax(1)
    counts = Counter(row.group_id for row, each in zip(rows, differ & among, strict=True) if each)
    return max(counts.values(), default=1)


def figures_on(probabilities: np.ndarray, rows: Sequence[SnapshotRow]) -> dict[str, Any]:
    """One model's weighted figures on rows of known probability; {"n": 0} where there are none."""
    on = judged(rows)
    if not on.rows:
        return {"n": 0}
    return finite(metrics.summary(probabilities[on.index], on.labels, on.weights))


def suspicious(probabilities: np.ndarray, rows: Sequence[SnapshotRow]) -> list[dict[str, Any]]:
    """The fifth of all verdicts that models which never saw their page doubt most, worst first.

    Args:
        probabilities: (n, 3) of the n rows, out of fold.
    """
    given = label_noise.self_confidence(probabilities, label_columns(rows))
    listed = min(LISTED_SUSPICIOUS, math.ceil(SUSPICIOUS_SHARE * len(rows)))
    return [
        {
            "correction_id": rows[i].correction_id,
            "label": rows[i].label,
            "predicted": LABELS[int(probabilities[i].argmax())].value,
            "probability_of_label": float(given[i]),
        }
        for i in np.argsort(given, kind="stable")[:listed]
    ]


def annotators(
    probabilities: np.ndarray, rows: Sequence[SnapshotRow], said: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Each annotator's verdicts against what the siblings expect, the most careless first.

    `expected` is the confirm rate of a person who labels as the siblings think; those who only
    report what they choose to may well differ from it.

    Args:
        probabilities: (n, 3) of the n rows, out of fold.
        said: the annotator's own label of rows whose label somebody else has changed, by id.
    """
    rows = [replace(row, label=said.get(row.correction_id, row.label)) for row in rows]
    given = label_noise.self_confidence(probabilities, label_columns(rows))
    shown = np.array([Label(row.predicted_label).column for row in rows], dtype=int)
    believed = label_noise.self_confidence(probabilities, shown)
    confirmed = np.array([row.label == row.predicted_label for row in rows])
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_name[row.annotator].append(i)
    found = [
        {
            "annotator": name,
            "n": len(own),
            "confirmed": float(confirmed[own].mean()),
            "expected": float(believed[own].mean()),
            "agreement": float(given[own].mean()),
            "careless": asdict(label_noise.careless_share(given[own], confirmed[own])),
        }
        for name, own in by_name.items()
    ]
    return sorted(found, key=lambda person: -person["careless"]["mean"])


def finite(value: Any) -> Any:
    """The same nested value with None for infinities and NaN, which JSON columns refuse."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class _Looks:
    """Which comparison with what serves this is, of those on enough rows to find anything.

    Each is a chance for luck, so a version that is measured again counts again: on more verdicts,
    or with another calibrator, an equal may come out better that did not before. On the same rows
    its figures are those of before, and luck has no other chance: it keeps its number. Neither has
    it where nothing is said for want of rows. Two runs that end within the same seconds may take
    the same number.
    """

    def __init__(
        self,
        earlier: Sequence[ShadowEvaluation],
        registered: tuple[AdapterVersion, CalibrationEvaluation | None] | None,
        fingerprint: str,
    ) -> None:
        looks: list[tuple[int | None, int | None, str]] = [
            (each.candidate_id, each.candidate_calibration_id, each.rows_fingerprint)
            for each in earlier
            if metrics.enough(each.rows, each.effective_groups)
        ]
        self._so_far = list(dict.fromkeys(looks))
        version, calibration = registered or (None, None)
        own = (
            version.pk if version else None,
            calibration.pk if calibration else None,
            fingerprint,
        )
        self.attempt = [*self._so_far, own].index(own) + 1

    def level_of_next(self, domain: metrics.Comparison) -> float:
        """At which a comparison on more rows will be decided: it is another attempt."""
        looked = self.attempt if metrics.enough(domain.rows, domain.effective_groups) else 0
        return metrics.spent_level(max(len(self._so_far), looked) + 1)


def _compare(
    a: Contestant, b: Contestant, on: Judged, seed: int, *, level: float = metrics.WRONGLY_BETTER
) -> metrics.Comparison:
    return metrics.compare(
        a.probabilities()[on.index],
        b.probabilities()[on.index],
        on.labels,
        on.groups,
        on.weights,
        claims=on.claims,
        level=level,
        seed=seed,
    )


def _slices(
    incumbent: Contestant, candidate: Contestant, on: Judged, seed: int
) -> dict[str, list[Slice]]:
    """By right label and, where there are several, by domain."""
    kinds = {"label": np.array([row.label for row in on.rows])}
    domains = np.array([row.domain for row in on.rows])
    if len(np.unique(domains)) > 1:
        kinds["domain"] = domains
    before, after = (each.probabilities()[on.index].argmax(1) for each in (incumbent, candidate))
    return compare_slices(
        kinds, before, after, on.labels, on.groups, on.weights, claims=on.claims, seed=seed
    )


def _unseen_by(candidate: Contestant, incumbent: Contestant, rows: int) -> np.ndarray:
    """(rows,) whether neither of them learnt about the row's claim."""
    unseen = np.ones(rows, dtype=bool)
    for each in (candidate, incumbent):
        if each.unseen is not None:
            unseen &= each.unseen
    return unseen


def _verdict(domain: metrics.Comparison, guard: dict[str, Any], *, identical: bool) -> str:
    """Domain and guard must both pass. A model is never better or worse than itself."""
    if identical:
        return Verdict.INCONCLUSIVE
    if guard["fails"]:
        return Verdict.WORSE
    return Verdict(metrics.gate(domain))


def _flips(incumbent: Contestant, candidate: Contestant, on: Judged) -> list[dict[str, Any]]:
    before = incumbent.probabilities()[on.index].argmax(1)
    after = candidate.probabilities()[on.index].argmax(1)
    changed = np.flatnonzero(before != after)
    return [
        {
            "correction_id": on.rows[i].correction_id,
            "premise": on.rows[i].premise,
            "hypothesis": on.rows[i].hypothesis,
            "label": on.rows[i].label,
            "incumbent": LABELS[before[i]].value,
            "candidate": LABELS[after[i]].value,
        }
        for i in _by_turns(changed, before == on.labels, after == on.labels)[:LISTED_FLIPS]
    ]


def _by_turns(changed: np.ndarray, lost: np.ndarray, gained: np.ndarray) -> list[int]:
    """Positions `changed`: one that is lost, one that is gained, and so on, then the others.

    People who read the list correct wrong labels in it. Were it the losses that they read, a
    candidate no better than what serves would come to look better.
    """
    place = np.full(len(lost), len(lost))
    for which in (lost, gained):
        at = changed[which[changed]]
        place[at] = np.arange(len(at))
    return sorted(changed.tolist(), key=lambda i: (place[i], not lost[i], i))


def _by_phenomenon(guard_set: GuardSet, right: dict[str, np.ndarray]) -> dict[str, Any]:
    positions: dict[str, list[int]] = defaultdict(list)
    for i, phenomenon in enumerate(guard_set.phenomena):
        positions[phenomenon].append(i)
    return {
        phenomenon: {"n": len(at)} | {name: _share(hits[at]) for name, hits in right.items()}
        for phenomenon, at in sorted(positions.items())
    }


def _share(hits: np.ndarray) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _advice(
    domain: metrics.Comparison,
    to_base: metrics.Comparison,
    guard: dict[str, Any],
    *,
    identical: bool,
    learnt: int,
    incumbent: str,
) -> list[str]:
    said = []
    if learnt:
        verdicts = "1 verdict is" if learnt == 1 else f"{learnt} verdicts are"
        said.append(
            f"{verdicts} left out: one of the models has learnt from other verdicts on the same "
            "claim."
        )
    if identical:
        said.append(f"The candidate is identical to {incumbent}: same artifact.")
    if guard["fails"]:
        said.append(
            f"General ability fell: the guard set lost {guard['lost']} answers and gained "
            f"{guard['gained']} of {guard['n']} (one-sided p = {guard['p_loss']:.3f})."
        )
    elif metrics.guard_fails(guard["p_loss_since_base"]):
        said.append(
            f"General ability has fallen since the base, which answers "
            f"{guard['base_accuracy']:.1%} of the guard set rightly and the candidate "
            f"{guard['candidate_accuracy']:.1%}: {incumbent} had lost some of it before."
        )
    if domain.b["accuracy"] < WANTED_ACCURACY:
        said.append(
            f"Accuracy is {percent(domain.b['accuracy'])} on {domain.rows} pairs, below the "
            f"wished-for {percent(WANTED_ACCURACY, 0)}."
        )
    if domain.b["accuracy"] < to_base.a["accuracy"]:
        of_base = percent(to_base.a["accuracy"])
        said.append(f"It answers fewer pairs right than the base ({of_base}).")
    if domain.brier.p_gain < metrics.LOSS_LEVEL:
        said.append(f"Its probabilities are worse than those of {incumbent} (Brier score).")
    return said


def _lost_slices(slices: Mapping[str, Sequence[Slice]], incumbent: str) -> list[str]:
    """Where it surely answers worse, whatever it gains elsewhere."""
    among = {"label": "pairs that are “{}”", "domain": "pairs of the domain “{}”"}
    return [
        f"Of the {each.rows} {among[kind].format(each.name)} it has fewer right than {incumbent}: "
        f"{percent(each.b)} instead of {percent(each.a)}."
        for kind, some in slices.items()
        for each in some
        if each.lost
    ]


def _surer(attempt: int, incumbent: str) -> list[str]:
    """What many attempts ask of a candidate; nothing is asked of the first."""
    if attempt == 1:
        return []
    now, once = (confidence(1 - 2 * metrics.spent_level(each)) for each in (attempt, 1))
    said = (
        f"This is the {ordinal(attempt)} comparison with {incumbent}; to be called better or not "
        f"worse, a candidate now has to be surer: {now} instead of {once}."
    )
    return [said]


def _no_evidence(incumbent: str) -> str:
    return f"This is no evidence for a promotion: {incumbent} did not serve when it was measured."


def _unmeasurable(
    snapshot: Snapshot,
    served: tuple[AdapterVersion | None, CalibrationEvaluation | None],
    guard: dict[str, Any],
    later: dict[str, Any] | None,
    advice: list[str],
) -> NewEvaluation:
    return NewEvaluation(
        incumbent=served[0],
        incumbent_calibration=served[1],
        snapshot=snapshot,
        rows_fingerprint=snapshots.fingerprint([]),
        rows=0,
        groups=0,
        effective_groups=0.0,
        verdict=Verdict.WORSE if guard["fails"] else Verdict.INCONCLUSIVE,
        needed_pairs=metrics.MIN_ROWS,
        figures={"against_incumbent": None, "against_base": None},
        per_label={},
        flips=[],
        guard=guard,
        later=later or {},
        advice=advice,
    )
