"""Importing a file of verdicts: the operation, and what its doors say of it.

It lives here, not in `corrections`, because missing predictions ask what serves.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import User

from adapters_app import scratch
from corrections import folds, importers, intake
from corrections.drafts import Prediction
from corrections.intake import ImportReport, RefusedRow
from corrections.models import Correction
from inference import engine
from inference.batching import ForwardFailed, Overloaded

# What a request may send more to than to other paths: tests hold it against the views.
PATHS = frozenset({"/api/v1/corrections/import", "/admin/corrections/correction/import/"})
IMPORT, REVIEW = "corrections.import_correction", "corrections.review_correction"
BY_CHOICE, COMPLETE = Correction.Sampling.USER, Correction.Sampling.COMPLETE
SHOWN_REFUSALS = 200
# Pairs that a web process asks for together; between two such the time is looked at.
ASKED_AT_ONCE = 128
# Seconds that a request may read, compare and predict before it writes.
PREPARING_S = 30.0
DONE = {"reading": "read", "comparing": "compared", "predicting": "predicted"}
BY_COMMAND = "import it in parts, or with manage.py import_corrections"
# A model that cannot be loaded or falls over, or more than it takes: nothing was written.
UNPREDICTED = (engine.EngineUnavailable, ForwardFailed, Overloaded)


class Busy(RuntimeError):
    """This process is importing another file."""

    def __init__(self) -> None:
        super().__init__("Another file is being imported; try again in a moment.")


class TooLarge(RuntimeError):
    """The file, of so many bytes, is larger than LYRA_MAX_IMPORT_BYTES: 413 at every door."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class TakesTooLong(importers.FileUnreadable):
    """More is to be done than a request has time for."""


@dataclass(frozen=True)
class Choices:
    """What may be said of an import beside the file."""

    dry_run: bool = False
    accept: bool = False
    partial: bool = False
    predict_missing: bool = False
    sampling: str | None = None  # of rows that name none; None = the file says, see `intake`


# --- Importing ------------------------------------------------------------------------------------


def import_file(
    path: Path,
    choices: Choices,
    *,
    by: User,
    may_review: bool,
    progress: intake.Progress | None = None,
) -> ImportReport:
    """Import a file of this machine. Whoever may review restores what an export says beyond
    the verdicts: reviews, revisions and folds.

    Raises:
        importers.FileUnreadable, engine.EngineUnavailable
    """
    source = importers.read(path)
    return _import(source, choices, _asked, by=by, may_review=may_review, progress=progress)


def import_upload(
    chunks: Iterable[bytes], choices: Choices, *, name: str, by: User
) -> ImportReport:
    """Import what a request sends: one file at a time in a process, and no more than a request has
    time for. `name` is what the sender calls it; nothing is left of it afterwards. Only an
    administrator restores what an export says beyond the verdicts: reviews are in the names of
    others, and a fold decides what a model is judged on.

    Raises:
        TooLarge, Busy, importers.FileUnreadable, and UNPREDICTED
    """
    with scratch.directory() as place:
        path = place / "upload"
        with path.open("wb") as kept:
            kept.writelines(chunks)  # as slowly as they come: nobody waits for that
            size = kept.tell()
        if size > settings.LYRA_MAX_IMPORT_BYTES:
            raise TooLarge(size)
        try:
            source = importers.read(path, name=name, most_rows=settings.LYRA_MAX_IMPORT_ROWS)
            with _turn():
                hurry = _Hurry()
                return _import(
                    source,
                    choices,
                    hurry.predict,
                    by=by,
                    may_review=by.is_superuser,
                    progress=hurry.progress,
                )
        except importers.TooManyRows as error:
            said = str(error).rstrip(".")
            raise importers.TooManyRows(f"{said}: {BY_COMMAND}.") from error


def _import(
    source: importers.Source,
    choices: Choices,
    predict: intake.Predict,
    *,
    by: User,
    may_review: bool,
    progress: intake.Progress | None = None,
) -> ImportReport:
    return intake.import_corrections(
        source.rows,
        by=by,
        accept=choices.accept,
        dry_run=choices.dry_run,
        partial=choices.partial,
        restore=may_review,
        predict=predict if choices.predict_missing else None,
        sampling=choices.sampling,
        usual=BY_CHOICE.value if source.format == "lyra" else None,
        progress=progress,
    )


_importing = threading.Lock()


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Files are held in memory while they are compared: not as many as there are threads."""
    if not _importing.acquire(blocking=False):
        raise Busy
    try:
        yield
    finally:
        _importing.release()


def _asked(pairs: intake.Pairs) -> list[Prediction]:
    return _predictions(engine.predict_with(engine.ACTIVE, pairs))


class _Hurry:
    """Gives up an import that a request has no time for, before anything is written."""

    def __init__(self) -> None:
        self._until = time.monotonic() + PREPARING_S
        self._predicted = 0

    def progress(self, stage: str, done: int, total: int) -> None:
        if time.monotonic() > self._until:
            of = f" of {total}" if total else ""
            raise TakesTooLong(
                f"Importing this takes too long: in {PREPARING_S:g} seconds {done}{of} rows were "
                f"{DONE[stage]}, so nothing was imported; {BY_COMMAND}."
            )

    def predict(self, pairs: intake.Pairs) -> list[Prediction]:
        """By turns with everybody else's requests."""
        predictions: list[Prediction] = []
        for chunk in folds.chunks(pairs, ASKED_AT_ONCE):
            self.progress("predicting", self._predicted, 0)
            predictions += _predictions(engine.answer(engine.ACTIVE, chunk))
            self._predicted += len(chunk)
        return predictions


def _predictions(answer: engine.Answer) -> list[Prediction]:
    return [
        Prediction(result.label, result.confidence, answer.version, answer.digest)
        for result in answer.results
    ]


# --- What is said of it ---------------------------------------------------------------------------


def summary(report: ImportReport, name: str, *, dry_run: bool) -> str:
    """What was, or would be, imported."""
    counted = "1 row" if report.rows == 1 else f"{report.rows} rows"
    return (
        f"{'Would import' if dry_run else 'Imported'} {counted} of {name}: "
        f"{report.created} new, {report.revised} revised, {report.unchanged} unchanged, "
        f"{len(report.refused)} refused; {report.corrected} corrected, "
        f"{report.confirmed} confirmed; {report.accepted} accepted, "
        f"{report.quarantined} quarantined, {report.predicted} predicted."
    )


def refusal(report: ImportReport, *, otherwise: str) -> str:
    """Why nothing is imported; `otherwise` is how a door is told to import the good rows."""
    refused = len(report.refused)
    return (
        f"{refused} of {report.rows} rows {'is' if refused == 1 else 'are'} refused, so nothing "
        f"is imported; mend {'it' if refused == 1 else 'them'} or {otherwise}."
    )


def doubt(report: ImportReport, choices: Choices, *, complete: str) -> str:
    """What may be meant otherwise; `complete` is how a door is told so. Empty where nothing may."""
    if choices.sampling is not None or not report.by_choice:
        return ""
    taken = "is" if report.by_choice == 1 else "are"
    return (
        f"{report.by_choice} {taken} taken for what people chose to report: such rows train, "
        f"but no figure counts them. Is it all of a labelled set? {complete}"
    )


def shown(report: ImportReport) -> tuple[list[RefusedRow], int]:
    """The first refused rows, and how many more there are."""
    return report.refused[:SHOWN_REFUSALS], max(0, len(report.refused) - SHOWN_REFUSALS)


def may_not_accept(user: User) -> str:
    return f"User “{user.username}” may import but not accept corrections."
