"""Record the verdicts of a file: JSON Lines, CSV, or the upstream project's database."""

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
from inference import engine, imports

DRAW_EVERY = 50  # rows


class Command(ActingCommand):
    help = (
        "Import corrections from JSON Lines, CSV or a Lyra database; importing twice is harmless."
    )
    permission = imports.IMPORT

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
            choices=[imports.BY_CHOICE.value, imports.COMPLETE.value],
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
        may_review = is_system(by) or by.has_perm(imports.REVIEW)
        if accept and not may_review:
            raise Refused(imports.may_not_accept(by))
        choices = imports.Choices(dry_run, accept, partial, predict_missing, sampling)
        try:
            with _progress_bar() as progress:
                report = imports.import_file(
                    file, choices, by=by, may_review=may_review, progress=progress
                )
        except importers.FileMissing as error:
            raise WrongUsage(str(error)) from error
        except (importers.FileUnreadable, engine.EngineUnavailable) as error:
            raise Refused(str(error)) from error
        return self._tell(file, report, choices)

    def _tell(
        self, file: Path, report: intake.ImportReport, choices: imports.Choices
    ) -> dict[str, Any]:
        refused, more = imports.shown(report)
        for row in refused:
            self.stderr.write(f"line {row.line}: {row.reason}")
        if more:
            self.stderr.write(f"… and {more} more refused rows")
        result = {"file": str(file), "dry_run": choices.dry_run} | report.to_dict()
        if report.withheld:
            raise Refused(imports.refusal(report, otherwise="use --partial"), details=result)
        self.stdout.write(imports.summary(report, str(file), dry_run=choices.dry_run))
        if doubt := imports.doubt(report, choices, complete="--sampling complete."):
            self.stdout.write(doubt)
        return result


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
