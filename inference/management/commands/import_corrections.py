"""Record the verdicts of a file: JSON Lines, CSV, or the upstream project's database.

It lives here, not in `corrections`, because `--predict-missing` asks what serves.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import CommandParser
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from corrections import importers, intake
from corrections.acting import ActingCommand, Refused, WrongUsage, is_system
from corrections.drafts import Prediction
from corrections.models import Correction
from inference import engine

SHOWN_REFUSALS = 200
DRAW_EVERY = 50  # rows
BY_CHOICE = Correction.Sampling.USER.value


class Command(ActingCommand):
    help = (
        "Import corrections from JSON Lines, CSV or a Lyra database; importing twice is harmless."
    )
    permission = "corrections.import_correction"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--dry-run", action="store_true", help="say what would happen")
        parser.add_argument("--accept", action="store_true", help="mark the rows accepted")
        parser.add_argument(
            "--predict-missing",
            action="store_true",
            help="let what serves predict the rows that carry no prediction",
        )
        parser.add_argument(
            "--partial",
            action="store_true",
            help="record the good rows although others are refused (default: all or nothing)",
        )
        parser.add_argument(
            "--sampling",
            choices=[BY_CHOICE, Correction.Sampling.COMPLETE.value],
            help="how rows that do not say so were chosen: by people, or a complete labelled set "
            "(default: by people in a Lyra database and where a row states what was predicted, "
            "else complete)",
        )

    def act(
        self,
        *,
        by: User,
        file: Path,
        dry_run: bool,
        accept: bool,
        predict_missing: bool,
        partial: bool,
        sampling: str | None,
        **options: Any,
    ) -> dict[str, Any]:
        may_review = is_system(by) or by.has_perm("corrections.review_correction")
        if accept and not may_review:
            raise Refused(f"User “{by.username}” may import but not accept corrections.")
        try:
            source = importers.read(file)
            with _progress_bar() as progress:
                report = intake.import_corrections(
                    source.rows,
                    by=by,
                    accept=accept,
                    dry_run=dry_run,
                    partial=partial,
                    restore=may_review,
                    predict=_predict if predict_missing else None,
                    sampling=sampling,
                    usual=BY_CHOICE if source.format == "lyra" else None,
                    progress=progress,
                )
        except importers.FileMissing as error:
            raise WrongUsage(str(error)) from error
        except (importers.FileUnreadable, engine.EngineUnavailable) as error:
            raise Refused(str(error)) from error
        return self._tell(file, report, dry_run=dry_run, guessed=sampling is None)

    def _tell(
        self, file: Path, report: intake.ImportReport, *, dry_run: bool, guessed: bool
    ) -> dict[str, Any]:
        for refused in report.refused[:SHOWN_REFUSALS]:
            self.stderr.write(f"line {refused.line}: {refused.reason}")
        if len(report.refused) > SHOWN_REFUSALS:
            self.stderr.write(f"… and {len(report.refused) - SHOWN_REFUSALS} more refused rows")
        result = {"file": str(file), "dry_run": dry_run} | report.to_dict()
        if report.withheld:
            raise Refused(
                f"{len(report.refused)} of {report.rows} rows are refused, so nothing was "
                "imported; mend them or use --partial.",
                details=result,
            )
        self.stdout.write(
            f"{'Would import' if dry_run else 'Imported'} {report.rows} rows of {file}: "
            f"{report.created} new, {report.revised} revised, {report.unchanged} unchanged, "
            f"{len(report.refused)} refused; {report.corrected} corrected, "
            f"{report.confirmed} confirmed; {report.accepted} accepted, "
            f"{report.quarantined} quarantined, {report.predicted} predicted."
        )
        if guessed and report.by_choice:
            self.stdout.write(
                f"{report.by_choice} are taken for what people chose to report: such rows train, "
                "but no figure counts them. Is it all of a labelled set? --sampling complete."
            )
        return result


def _predict(pairs: intake.Pairs) -> list[Prediction]:
    answer = engine.predict_with(engine.ACTIVE, pairs)
    return [
        Prediction(result.label, result.confidence, answer.version, answer.digest)
        for result in answer.results
    ]


@contextmanager
def _progress_bar() -> Iterator[intake.Progress | None]:
    """A bar per stage on standard error, if somebody is looking at it."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            if done % DRAW_EVERY == 0 or done == total:
                bar.update(tasks[stage], completed=done, total=total or None)

        yield show
