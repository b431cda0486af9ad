"""The one way in: recording verdicts, importing many, editing and reviewing them.

REST, admin and commands all end here. Every change writes its history row in the same transaction.
Checking, predicting and searching for near-duplicates happen before a transaction is opened; the
transaction then verifies that nothing it relied on has changed, and is tried again if it has.

Writers take the lock on the Fold rows first, so they follow one another and cannot deadlock.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from types import EllipsisType
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Prefetch
from django.utils import timezone

from corrections import folds
from corrections.drafts import (
    CHOSEN,
    PREDICTOR,
    Draft,
    ParsedRow,
    Prediction,
    Restored,
    check,
    check_edit,
    content_id,
)
from corrections.labels import Label
from corrections.models import AuditSample, Correction, CorrectionEvent

Status = Correction.Status
Action = CorrectionEvent.Action
Pairs = list[tuple[str, str]]
Predict = Callable[[Pairs], Sequence[Prediction]]
Progress = Callable[[str, int, int], None]  # stage, done, total (0 = unknown)
Known = Callable[[Correction], None]  # the row on record
Then = Callable[[Correction, Mapping[str, list[Any]]], None]  # the row, {field: [before, after]}

# What a curator may change in place. The pair itself is what the model was asked: a wrong one is
# rejected, not rewritten.
EDITABLE = ("correct_label", "reason", "domain", "annotator")
# What a draw is about, and how likely it was: figures stand on it.
OF_A_DRAW = (
    "premise",
    "hypothesis",
    "predicted_label",
    "predicted_confidence",
    "predicted_version",
    "predicted_digest",
    "sampling",
    "sampling_probability",
)
PREDICT_CHUNK = 256


class ReviewRefused(Exception):
    """Rows are not what the reviewer saw, or may not be used; `reasons` says by id why."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(" ".join(reasons.values()))
        self.reasons = dict(reasons)


class RevisionRefused(Exception):
    """What is on record may not be revised like this; the message says why."""


@dataclass(frozen=True)
class Seen:
    """What a reviewer saw of a row; None = not said, so not compared."""

    revision: int | None = None
    status: str | None = None


@dataclass(frozen=True)
class Review:
    """What a person decides on a row, and what they saw of it."""

    status: str
    note: str = ""
    seen: Seen = Seen()


class _RowsChangedError(Exception):
    """A correction that a plan speaks of was added or changed after the plan was made."""


# --- One verdict ----------------------------------------------------------------------------------


def record_correction(
    *,
    by: User,
    premise: str,
    hypothesis: str,
    predicted_label: str,
    predicted_confidence: float,
    correct_label: str,
    predicted_version: int | EllipsisType | None = ...,
    predicted_digest: str = "",
    sampling: str | None = None,
    sampling_probability: float | None = None,
    reason: str | None = None,
    domain: str | None = None,
    page_id: str | None = None,
    external_id: str | None = None,
    annotator: str = "",
    corrected_at: datetime | None = None,
    expected_revision: int | None = None,
    accept: bool = False,
    known: Known | None = None,
    then: Then | None = None,
) -> tuple[Correction, bool]:
    """Record a verdict; (correction, whether it is new).

    A known `external_id` with the content it had last time changes nothing, edits made here since
    included; with new content it is a revision, which goes back to pending and keeps what is left
    open here: the optional fields that are None, how the row was sampled and, as long as it is the
    same prediction of the same pair, who made it (`predicted_version` None = the base, ... = left
    open). `expected_revision` is of the row on record (0 = there is none; None = not compared).
    `accept` accepts it in `by`'s name, unless it is quarantined. `known` hears of the row on
    record, if there is one, before anything is compared with it, and refuses by raising. `then`
    hears of the row and of what changed in the same transaction, and undoes everything by raising.
    Raises ValidationError with a message per field, RevisionRefused where another revision is on
    record, or the row answers an audit sample and what was drawn would change.
    """
    fields: dict[str, Any] = {
        "premise": premise,
        "hypothesis": hypothesis,
        "predicted_label": predicted_label,
        "predicted_confidence": predicted_confidence,
        "predicted_digest": predicted_digest,
        "correct_label": correct_label,
        "sampling": sampling,
        "sampling_probability": sampling_probability,
        "reason": reason,
        "domain": domain,
        "page_id": page_id,
        "external_id": external_id,
        "annotator": annotator or by.get_username(),
        "corrected_at": corrected_at,
    }
    if predicted_version is not ...:
        fields["predicted_version"] = predicted_version
    draft = check(fields)
    if draft.prediction is None:
        raise ValidationError(_missing_prediction(fields))
    draft = replace(draft, expected_revision=expected_revision)
    [plan] = _write([draft], by=by, accept=accept, known=known, then=then)
    return plan.row, plan.stored is None


def edit_correction(correction: Correction, *, by: User, note: str = "", **changes: Any) -> bool:
    """Change EDITABLE fields; whether anything changed. A changed label goes back to pending.

    Raises ValidationError where a value is wrong or a field is not editable, ReviewRefused where
    somebody else changed the row since `correction` was read.
    """
    fixed = {name: f"{name} cannot be edited." for name in changes if name not in EDITABLE}
    if fixed:
        raise ValidationError(fixed)
    values = check_edit(changes)
    with transaction.atomic():
        locked = folds.lock_folds()
        row = Correction.objects.select_related("group").get(pk=correction.pk)
        if row.revision != correction.revision:
            raise ReviewRefused({row.pk: _changed_since(row)})
        differences = _differences(row, values)
        if differences:
            _apply_edit(row, differences, locked, by=by, note=note)
    correction.refresh_from_db()
    return bool(differences)


def review(
    correction_ids: Iterable[int],
    *,
    by: User,
    status: str,
    note: str = "",
    seen: Mapping[int, Seen] | None = None,
) -> int:
    """Accept, reject or reopen (`status` pending) in one transaction; how many rows changed.

    A row that has the status keeps its reviewer and takes no more than a note that is new. `seen`
    is what the reviewer saw, by id: who saw the row decided as they decide it has looked at it
    again, which is in its history. Raises ReviewRefused if a row has changed or was reviewed
    since, or if a quarantined row would be accepted, or if there is none; then nothing changes.
    """
    reviewed_at = None if status == Status.PENDING else timezone.now()
    with transaction.atomic():
        folds.lock_folds()
        asked = dict.fromkeys(correction_ids)
        found = _rows_to_review(asked, status)
        _refuse_review(asked, found, status, seen or {}, by)
        rows = [row for row in found if row.status != status]
        same = [row for row in found if row.status == status]
        noted = [row for row in same if note not in ("", row.review_note)]
        silent = [row for row in same if note in ("", row.review_note)]
        looked = [row for row in silent if _saw(seen, row).status == status]
        for chunk in folds.chunks(rows, folds.IN_CHUNK):
            Correction.objects.filter(pk__in=[row.pk for row in chunk]).update(
                status=status,
                reviewer=by if reviewed_at else None,
                reviewer_name="",
                reviewed_at=reviewed_at,
                review_note=note,
                updated_at=timezone.now(),
            )
        CorrectionEvent.objects.bulk_create(
            _event(row, by, _REVIEW_ACTIONS[status], {"status": [row.status, status]}, note)
            for row in rows
        )
        if reviewed_at:
            CorrectionEvent.objects.bulk_create(
                _event(row, by, _REVIEW_ACTIONS[status], {}, note) for row in looked
            )
        _take_note(noted, by=by, note=note)
    return len(rows) + len(noted)


def review_each(reviews: Mapping[int, Review], *, by: User) -> int:
    """Review rows by id, each in its own way, in one transaction; how many changed.

    Raises ReviewRefused, with the reasons of all rows that `review` refuses; then nothing changes.
    """
    alike: dict[tuple[str, str], dict[int, Seen]] = {}
    for pk, each in reviews.items():
        alike.setdefault((each.status, each.note), {})[pk] = each.seen
    changed, refused = 0, dict[int, str]()
    with transaction.atomic():
        folds.lock_folds()
        for (status, note), seen in alike.items():
            try:
                changed += review(seen, by=by, status=status, note=note, seen=seen)
            except ReviewRefused as error:
                refused |= error.reasons
        if refused:
            raise ReviewRefused({pk: refused[pk] for pk in reviews if pk in refused})
    return changed


def _take_note(rows: Sequence[Correction], *, by: User, note: str) -> None:
    # Not a review anew: when a verdict was reviewed tells which models may be judged on it.
    events = [
        _event(row, by, Action.EDITED, {"review_note": [row.review_note, note]}, note)
        for row in rows
    ]
    for chunk in folds.chunks(rows, folds.IN_CHUNK):
        Correction.objects.filter(pk__in=[row.pk for row in chunk]).update(
            review_note=note, updated_at=timezone.now()
        )
    CorrectionEvent.objects.bulk_create(events)


def edit_and_review(
    correction: Correction,
    *,
    by: User,
    status: str,
    note: str = "",
    seen_status: str | None = None,
    **changes: Any,
) -> bool:
    """Edit a row and review what it says then, or neither; whether the edit changed anything.

    `correction` and `seen_status` are what the reviewer saw. Raises as the two of them do.
    """
    seen = {correction.pk: Seen(correction.revision, seen_status)}
    with transaction.atomic():
        edited = False
        if changes:
            folds.lock_folds()
            # Before the edit, which puts a changed label back to pending, whatever it was.
            before = Correction.objects.filter(pk=correction.pk)
            _refuse_review(seen, before, status, seen, by)
            edited = edit_correction(correction, by=by, note=note, **changes)
            seen = {}
        review([correction.pk], by=by, status=status, note=note, seen=seen)
    correction.refresh_from_db()
    return edited


# --- Many verdicts --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RefusedRow:
    line: int
    reason: str


@dataclass
class ImportReport:
    """What an import did, or with `written` False would do or would have done, in rows."""

    rows: int = 0
    created: int = 0
    revised: int = 0
    unchanged: int = 0
    corrected: int = 0
    confirmed: int = 0
    accepted: int = 0
    by_choice: int = 0  # what people chose to report: it trains, and is no evidence
    quarantined: int = 0
    predicted: int = 0
    refused: list[RefusedRow] = field(default_factory=list)
    written: bool = False
    withheld: bool = False  # refused rows kept the good ones out

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def import_corrections(
    rows: Iterable[ParsedRow],
    *,
    by: User,
    accept: bool = False,
    dry_run: bool = False,
    partial: bool = False,
    restore: bool = False,
    predict: Predict | None = None,
    sampling: str | None = None,
    usual: str | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Record the rows of a file in one transaction, all or nothing unless `partial`.

    `predict` answers for rows without a prediction; a stored prediction of the same pair is kept.
    `restore` takes over what an export says of new rows beyond the verdict: review, revision and
    place among the folds. A dry run predicts and writes nothing.
    `sampling` is of rows that do not name theirs, `usual` of those among them that are new; both
    None = reported by choice where a row states what was predicted, since somebody saw that answer,
    and else a row of a complete labelled set.
    """
    report = ImportReport()
    progress = progress or _no_progress
    lines = _checked(rows, report, sampling, usual, progress)
    if not restore:
        lines = {line: replace(draft, restored=Restored()) for line, draft in lines.items()}
    stored = _stored(draft.external_id for draft in lines.values())
    _adopt_predictions(lines, stored)
    _refuse_unfit(lines, stored, report)
    if predict is None:
        _refuse_unpredicted(lines, report)
    report.refused.sort(key=lambda refused: refused.line)
    if report.refused and not partial:
        report.withheld = True
        return report
    if dry_run:
        report.predicted = sum(draft.prediction is None for draft in lines.values())
        plans = _preview(list(lines.values()), accept=accept, progress=progress)
        _tally(plans, report)
        return report
    if predict is not None:
        report.predicted = _predict(lines, predict, progress)
    plans = _write(list(lines.values()), by=by, accept=accept, progress=progress)
    _tally(plans, report)
    report.written = True
    return report


def _checked(
    rows: Iterable[ParsedRow],
    report: ImportReport,
    sampling: str | None,
    usual: str | None,
    progress: Progress,
) -> dict[int, Draft]:
    """Drafts by line; what cannot be recorded goes to the report."""
    drafts: dict[int, Draft] = {}
    first: dict[str, int] = {}
    for row in rows:
        report.rows += 1
        progress("reading", report.rows, 0)
        try:
            draft = _draft(row, sampling, usual)
        except ValidationError as error:
            said = " ".join(error.messages)
            reason = f"{row.name}: {said}" if row.name else said
            report.refused.append(RefusedRow(row.line, reason))
            continue
        line = first.setdefault(draft.external_id, row.line)
        if line == row.line:
            drafts[row.line] = draft
        elif draft == drafts[line]:
            report.unchanged += 1
        else:
            reason = f"external_id {draft.external_id} is on line {line} too, with other content."
            report.refused.append(RefusedRow(row.line, reason))
    return drafts


def _draft(row: ParsedRow, sampling: str | None, usual: str | None) -> Draft:
    if row.problem:
        raise ValidationError(row.problem)
    named = dict(row.fields)
    if not named.get("external_id"):
        named["external_id"] = content_id(named)
    if sampling and not named.get("sampling"):
        named["sampling"] = sampling
    kinds = Correction.Sampling
    guessed = kinds.USER if named.get("predicted_label") else kinds.COMPLETE
    return check(named, sampling=usual or guessed)


def _adopt_predictions(lines: dict[int, Draft], stored: Mapping[str, Correction]) -> None:
    """Keep the prediction on record for a known row of the same pair: asking again is no news."""
    for line, draft in lines.items():
        row = stored.get(draft.external_id)
        if row and draft.prediction is None and draft.is_about(row):
            lines[line] = replace(draft, prediction=_prediction_of(row))


def _refuse_unfit(
    lines: dict[int, Draft], stored: Mapping[str, Correction], report: ImportReport
) -> None:
    """Refuse what does not go with what is on record."""
    for line, draft in list(lines.items()):
        try:
            _plan(draft, stored.get(draft.external_id))
        except ValidationError as error:
            report.refused.append(RefusedRow(line, " ".join(error.messages)))
        except RevisionRefused as error:
            report.refused.append(RefusedRow(line, str(error)))
        else:
            continue
        del lines[line]


def _refuse_unpredicted(lines: dict[int, Draft], report: ImportReport) -> None:
    for line in [line for line, draft in lines.items() if draft.prediction is None]:
        reason = "predicted_label and predicted_confidence are missing: predict the missing ones."
        report.refused.append(RefusedRow(line, reason))
        del lines[line]


def _predict(lines: dict[int, Draft], predict: Predict, progress: Progress) -> int:
    """Ask for the missing predictions, chunk by chunk; how many there were."""
    missing = [line for line, draft in lines.items() if draft.prediction is None]
    for done in range(0, len(missing), PREDICT_CHUNK):
        chunk = missing[done : done + PREDICT_CHUNK]
        answers = predict([(lines[n].premise, lines[n].hypothesis) for n in chunk])
        for line, prediction in zip(chunk, answers, strict=True):
            lines[line] = replace(lines[line], prediction=prediction, predicted_now=True)
        progress("predicting", done + len(chunk), len(missing))
    return len(missing)


def _tally(plans: Sequence["_Plan"], report: ImportReport) -> None:
    kinds = Counter(plan.kind for plan in plans)
    report.created += kinds["created"]
    report.revised += kinds["revised"]
    report.unchanged += kinds["unchanged"]
    report.quarantined = sum(bool(plan.quarantine) for plan in plans)
    report.accepted = sum(plan.accepted for plan in plans)
    report.by_choice = sum(plan.draft.sampling == Correction.Sampling.USER for plan in plans)
    verdicts = Counter(_verdict(plan.draft) for plan in plans if plan.draft.prediction)
    report.corrected = verdicts[Correction.Verdict.CORRECTED]
    report.confirmed = verdicts[Correction.Verdict.CONFIRMED]


# --- Writing --------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Plan:
    """A draft beside what is stored under its external id."""

    draft: Draft
    stored: Correction | None
    changes: dict[str, list[Any]]
    pair_digest: str
    edited: bool = False  # its source says nothing new, but it was edited here
    placement: folds.Placement | None = None
    accepted: bool = False
    made: Correction | None = None  # the new row

    @property
    def kind(self) -> str:
        if self.stored is None:
            return "created"
        return "revised" if self.changes else "unchanged"

    @property
    def moves(self) -> bool:
        """Whether the row needs a place: it is new, or comes from elsewhere than before."""
        return self.stored is None or not self.changes.keys().isdisjoint({"premise", "page_id"})

    @property
    def quarantine(self) -> str:
        if self.placement:
            return self.placement.quarantine
        return self.stored.quarantine if self.stored else ""

    @property
    def row(self) -> Correction:
        """The row as it is recorded."""
        row = self.made or self.stored
        if row is None:
            raise ValueError("The plan has not been written.")
        return row


def _write(
    drafts: Sequence[Draft],
    *,
    by: User,
    accept: bool,
    progress: Progress | None = None,
    known: Known | None = None,
    then: Then | None = None,
) -> list[_Plan]:
    """Record drafts with distinct external ids, in one transaction; `known` is told of each row on
    record before, `then` of each as it is written."""
    progress = progress or _no_progress
    plans = _plans(drafts, known)
    survey = _survey(plans, progress)
    while True:
        try:
            with transaction.atomic():
                locked = folds.lock_folds()
                _verify_unchanged(plans)
                moving = [number for number, plan in enumerate(plans) if plan.moves]
                for number, placement in survey.place(locked, moving).items():
                    plans[number].placement = placement
                _write_rows(plans, locked, by=by, accept=accept)
                if then is not None:
                    for plan in plans:
                        then(plan.row, plan.changes)
            return plans
        except (folds.SurveyOutdatedError, _RowsChangedError):
            # Somebody else got in between and is done: at every retry one writer has finished.
            pages = [plan.draft.page_id for plan in plans]
            plans = _plans(drafts, known)
            if [plan.draft.page_id for plan in plans] == pages:
                survey.update()
            else:
                survey = _survey(plans, progress)


def _survey(plans: Sequence[_Plan], progress: Progress) -> folds.Survey:
    return folds.Survey(
        (
            folds.Source(
                premise=plan.draft.premise,
                page_id=plan.draft.page_id,
                label=plan.draft.correct_label,
                group=plan.draft.restored.group,
                fold=plan.draft.restored.fold,
            )
            for plan in plans
        ),
        progress=lambda done, total: progress("comparing", done, total),
    )


def _preview(drafts: Sequence[Draft], *, accept: bool, progress: Progress) -> list[_Plan]:
    """The plans of a dry run: placed, not written."""
    plans = _plans(drafts)
    moving = [number for number, plan in enumerate(plans) if plan.moves]
    for number, placement in _survey(plans, progress).preview(moving).items():
        plans[number].placement = placement
    for plan in plans:
        plan.accepted = accept and _would_accept(plan)
    return plans


def _would_accept(plan: _Plan) -> bool:
    """Whether `_accept` would, of a plan that is not written."""
    if plan.quarantine or plan.edited:
        return False
    if plan.stored is None:
        return plan.draft.restored.status == Status.PENDING
    return bool(plan.changes) or plan.stored.status == Status.PENDING


def _plans(drafts: Sequence[Draft], known: Known | None = None) -> list[_Plan]:
    stored = _stored(draft.external_id for draft in drafts)
    if known is not None:
        for row in stored.values():
            known(row)
    return [_plan(draft, stored.get(draft.external_id)) for draft in drafts]


def _refuse_revision(plan: _Plan) -> None:
    """Where nothing would change nothing is lost: the same may be sent again, as by a client that
    never got the answer."""
    revision = plan.stored.revision if plan.stored else 0
    expected = plan.draft.expected_revision
    if expected in (None, revision) or plan.kind == "unchanged":
        return
    now = f"is at revision {revision}" if plan.stored else "is not on record"
    raise RevisionRefused(
        f"external_id {plan.draft.external_id} {now}, but expected_revision is {expected}: look at "
        "it again."
    )


def _plan(draft: Draft, stored: Correction | None) -> _Plan:
    if stored and draft.predicted_now and draft.is_about(stored):
        # Another import of the same rows predicted them first; floats differ with the batch.
        draft = replace(draft, prediction=_prediction_of(stored))
    draft = draft.beside(stored)
    changes = _differences(stored, draft.content()) if stored else {}
    plan = _Plan(draft, stored, changes, folds.pair_digest(draft.premise, draft.hypothesis))
    if stored and stored.source_digest == draft.source_digest and not _named_anew(plan):
        plan.edited, plan.changes = bool(changes), {}
    _refuse_revision(plan)
    if stored and not plan.changes.keys().isdisjoint(OF_A_DRAW):
        _refuse_redrawing(stored, plan.changes)
    return plan


def _named_anew(plan: _Plan) -> bool:
    """Whether the source names another sampling or version than the row's: it may have left that
    open before, and then says of the row what it said last time."""
    named, changed = plan.draft.named, plan.changes.keys()
    chosen = "sampling" in named and not changed.isdisjoint(CHOSEN)
    return chosen or PREDICTOR in named & changed


def _refuse_redrawing(row: Correction, changes: Mapping[str, list[Any]]) -> None:
    """The answer to an audit sample is about what was drawn, or live figures would be biased."""
    sample = getattr(row, "audit_sample", None)  # `_stored` has asked for those of all rows
    if sample is not None:
        fixed = ", ".join(name for name in OF_A_DRAW if name in changes)
        raise RevisionRefused(
            f"Row {row.pk} answers audit sample {sample.pk}: its pair, prediction, sampling and "
            f"probability stay as they were drawn, but {fixed} would change."
        )


def _stored(external_ids: Iterable[str]) -> dict[str, Correction]:
    rows: dict[str, Correction] = {}
    samples = Prefetch("audit_sample", AuditSample.objects.only("correction"))
    known = Correction.objects.select_related("group").prefetch_related(samples)
    for chunk in folds.chunks(external_ids, folds.IN_CHUNK):
        for row in known.filter(external_id__in=chunk):
            rows[row.external_id or ""] = row
    return rows


def _verify_unchanged(plans: Sequence[_Plan]) -> None:
    """Raise _RowsChangedError unless the database still holds what the plans were made from."""
    now: dict[str | None, tuple[int, str]] = {}
    for chunk in folds.chunks((plan.draft.external_id for plan in plans), folds.IN_CHUNK):
        rows = Correction.objects.filter(external_id__in=chunk)
        for external_id, revision, status in rows.values_list("external_id", "revision", "status"):
            now[external_id] = (revision, status)
    planned = {
        p.stored.external_id: (p.stored.revision, p.stored.status) for p in plans if p.stored
    }
    if now != planned:
        raise _RowsChangedError


def _write_rows(
    plans: Sequence[_Plan], locked: list[folds.Fold], *, by: User, accept: bool
) -> None:
    now = timezone.now()
    reviewers = _reviewers(plans)
    recounts: list[tuple[int, str, int]] = []
    for plan in plans:
        if plan.stored is None:
            plan.made = _new_row(plan, now)
            _restore_review(plan.made, plan.draft, reviewers)
        elif plan.changes:
            recounts += _revise(plan)
        if accept:
            _accept(plan, by, now)
    Correction.objects.bulk_create([plan.made for plan in plans if plan.made])
    _save_stored(plans)
    CorrectionEvent.objects.bulk_create(event for plan in plans for event in _events(plan, by))
    folds.recount(locked, recounts)


def _save_stored(plans: Iterable[_Plan]) -> None:
    # One by one: a bulk update of long texts is a statement of megabytes, and slower.
    for plan in plans:
        row, digest = plan.stored, plan.draft.source_digest
        if row and (plan.changes or plan.accepted or row.source_digest != digest):
            row.source_digest = digest
            row.save()


def _events(plan: _Plan, by: User) -> Iterator[CorrectionEvent]:
    if plan.made:
        yield _event(plan.row, by, Action.RECORDED, {})
    elif plan.changes:
        yield _event(plan.row, by, Action.REVISED, plan.changes)
    if plan.accepted:
        yield _event(plan.row, by, Action.ACCEPTED, {"status": [Status.PENDING, Status.ACCEPTED]})


def _new_row(plan: _Plan, now: datetime) -> Correction:
    if plan.placement is None:
        raise ValueError("A new row needs a place.")
    values = {"corrected_at": now} | plan.draft.content()
    return Correction(
        **values,
        external_id=plan.draft.external_id,
        revision=plan.draft.restored.revision,
        source_digest=plan.draft.source_digest,
        pair_digest=plan.pair_digest,
        verdict=_verdict(plan.draft),
        group_id=plan.placement.group.pk,
        quarantine=plan.placement.quarantine,
    )


def _restore_review(row: Correction, draft: Draft, reviewers: Mapping[str, User]) -> None:
    """Take over the review of an export; a quarantined row was never accepted."""
    restored = draft.restored
    if row.quarantine and restored.status == Status.ACCEPTED:
        return
    row.status = restored.status
    row.reviewer = reviewers.get(restored.reviewer)
    row.reviewer_name = "" if row.reviewer else restored.reviewer
    row.reviewed_at = restored.reviewed_at
    row.review_note = restored.review_note


def _reviewers(plans: Iterable[_Plan]) -> dict[str, User]:
    names = {plan.draft.restored.reviewer for plan in plans}
    users = get_user_model().objects.filter(username__in=names - {""})
    return {user.username: user for user in users}


def _revise(plan: _Plan) -> list[tuple[int, str, int]]:
    """Put new content into a stored row, back to pending; how the fold counts change."""
    row = plan.row
    before = (row.group.fold, row.correct_label, -1)
    for name, (_, after) in plan.changes.items():
        setattr(row, name, after)
    if plan.placement:
        row.group = plan.placement.group
        row.quarantine = plan.placement.quarantine
    row.pair_digest = plan.pair_digest
    _set_verdict(row)
    _back_to_pending(row)
    row.revision += 1
    # `place` has counted a row that moved in its new fold already.
    after = [] if plan.placement else [(row.group.fold, row.correct_label, 1)]
    return [before, *after]


def _accept(plan: _Plan, by: User, now: datetime) -> None:
    """Accept what is pending and usable; a person's rejection stands, and an edit waits for one."""
    row = plan.row
    if row.status == Status.PENDING and not row.quarantine and not plan.edited:
        row.status, row.reviewer, row.reviewed_at = Status.ACCEPTED, by, now
        row.reviewer_name = ""
        plan.accepted = True


def _apply_edit(
    row: Correction,
    changes: dict[str, list[Any]],
    locked: list[folds.Fold],
    *,
    by: User,
    note: str,
) -> None:
    for name, (_, after) in changes.items():
        setattr(row, name, after)
    if "correct_label" in changes:
        before, after = changes["correct_label"]
        folds.recount(locked, [(row.group.fold, before, -1), (row.group.fold, after, 1)])
        _set_verdict(row)
        if row.status != Status.PENDING:
            changes["status"] = [row.status, Status.PENDING]
            _back_to_pending(row)
    row.revision += 1
    row.save()
    _event(row, by, Action.EDITED, changes, note).save()


_REVIEW_ACTIONS = {
    Status.ACCEPTED.value: Action.ACCEPTED,
    Status.REJECTED.value: Action.REJECTED,
    Status.PENDING.value: Action.REOPENED,
}


def _rows_to_review(correction_ids: Iterable[int], status: str) -> list[Correction]:
    if status not in _REVIEW_ACTIONS:
        raise ValidationError({"status": f"status must be one of {', '.join(_REVIEW_ACTIONS)}."})
    rows: list[Correction] = []
    for chunk in folds.chunks(correction_ids, folds.IN_CHUNK):
        found = Correction.objects.filter(pk__in=chunk)
        rows += found.only("pk", "status", "quarantine", "revision", "review_note", "reviewer_id")
    return rows


def _refuse_review(
    asked: Iterable[int],
    rows: Iterable[Correction],
    status: str,
    seen: Mapping[int, Seen],
    by: User,
) -> None:
    reasons = {pk: f"There is no row {pk}." for pk in asked}
    reasons |= {row.pk: _why_not(row, status, _saw(seen, row), by) for row in rows}
    if refused := {pk: reason for pk, reason in reasons.items() if reason}:
        raise ReviewRefused(refused)


def _saw(seen: Mapping[int, Seen] | None, row: Correction) -> Seen:
    return (seen or {}).get(row.pk, Seen())


def _why_not(row: Correction, status: str, saw: Seen, by: User) -> str:
    """Why `by`, who saw the row like that, may not give it the status; empty where they may."""
    if row.status == status and row.reviewer_id == by.pk:
        saw = replace(saw, status=None)  # sent again by a client that never got the answer
    if saw.revision not in (None, row.revision):
        return _changed_since(row)
    if saw.status not in (None, row.status):
        return f"{_last_review(row)}; you saw it {saw.status}: look at it again."
    if status == Status.ACCEPTED and row.quarantine:
        return f"Row {row.pk} is quarantined. {row.quarantine}"
    return ""


def _changed_since(row: Correction) -> str:
    return f"Row {row.pk} has changed since you saw it: look at it again."


def _last_review(row: Correction) -> str:
    """Who put the row into its status, and when: “Row 5 was rejected by ana on 2026-01-05 …”."""
    reviews = row.events.filter(action__in=_REVIEW_ACTIONS.values()).select_related("by")
    last = reviews.last()
    if last is None:
        return f"Row {row.pk} is {row.status}"
    return f"Row {row.pk} was {last.action} by {last.by} on {last.at:%Y-%m-%d at %H:%M} UTC"


# --- Details --------------------------------------------------------------------------------------


def _differences(row: Correction, values: Mapping[str, Any]) -> dict[str, list[Any]]:
    """{field: [stored, new]} of what `values` would change."""
    return {
        name: [getattr(row, name), value]
        for name, value in values.items()
        if getattr(row, name) != value
    }


def _event(
    row: Correction, by: User, action: str, changes: Mapping[str, list[Any]], note: str = ""
) -> CorrectionEvent:
    shown = {
        name: [v.isoformat() if isinstance(v, datetime) else v for v in values]
        for name, values in changes.items()
    }
    return CorrectionEvent(
        correction_id=row.pk, by_id=by.pk, action=action, changes=shown, note=note
    )


def _verdict(draft: Draft) -> Correction.Verdict:
    if draft.prediction is None:
        raise ValueError("A verdict needs the prediction it is about.")
    return _verdict_on(draft.prediction.label, draft.correct_label)


def _set_verdict(row: Correction) -> None:
    row.verdict = _verdict_on(row.predicted_label, row.correct_label)


def _verdict_on(predicted: str, correct: str) -> Correction.Verdict:
    right = predicted == correct
    return Correction.Verdict.CONFIRMED if right else Correction.Verdict.CORRECTED


def _back_to_pending(row: Correction) -> None:
    row.status = Status.PENDING
    row.reviewer = None
    row.reviewer_name = ""
    row.reviewed_at = None
    row.review_note = ""


def _prediction_of(row: Correction) -> Prediction:
    return Prediction(
        Label(row.predicted_label),
        row.predicted_confidence,
        row.predicted_version,
        row.predicted_digest,
    )


def _missing_prediction(fields: Mapping[str, Any]) -> dict[str, str]:
    names = ("predicted_label", "predicted_confidence")
    return {name: f"{name} is missing." for name in names if fields[name] in (None, "")}


def _no_progress(stage: str, done: int, total: int) -> None:
    """Nobody is watching."""
