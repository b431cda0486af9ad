"""LoRA against standard fine-tuning: the documents' study, on labelled pairs of one's own."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapters_app import findings, studies
from adapters_app.nli.base_model import BaseModelError
from adapters_app.nli.study import CHOICE, Result, StudyConfig
from adapters_app.nli.train import TrainingDiverged
from adapters_app.recipe import CannotTrain
from adapters_app.snapshots import SnapshotCorrupt
from adapters_app.storage import StoreUnavailable
from corrections.acting import ActingCommand, Refused, WrongUsage

REFUSALS = (
    BaseModelError,
    CannotTrain,
    ChildProcessError,
    SnapshotCorrupt,
    StoreUnavailable,
    TrainingDiverged,
)


class Command(ActingCommand):
    help = (
        "Train the NLI model and all-MiniLM-L6-v2 in full and by LoRA, with the documents' "
        "hyper-parameters and with each way's best learning rate, and compare them on groups held "
        "out. Without --data it takes the accepted verdicts. It trains "
        "4 × (2 × seeds + rates) times per split. Every fit is stored as soon as it is done: the "
        "same command goes on with a study that was cut short, as long as the pairs are the same."
    )
    permission = "adapters_app.request_training"

    def add_arguments(self, parser: ArgumentParser) -> None:
        config = StudyConfig()
        parser.add_argument(
            "--data",
            type=Path,
            metavar="FILE|DIR",
            help="labelled pairs as JSON Lines: premise, hypothesis, label, source, group",
        )
        parser.add_argument("--rows", type=int, help="take whole groups up to this many rows")
        parser.add_argument(
            "--splits", type=int, default=config.splits, help="how many fifths are held out in turn"
        )
        parser.add_argument("--seeds", type=int, default=config.seeds, help="fits per split")
        parser.add_argument(
            "--encoder",
            type=Path,
            metavar="DIR",
            help="a BERT sentence encoder other than the installed one",
        )

    def act(
        self,
        *,
        by: User,
        data: Path | None,
        rows: int | None,
        splits: int,
        seeds: int,
        encoder: Path | None,
        **_: Any,
    ) -> dict[str, Any]:
        if min(splits, seeds, 1 if rows is None else rows) < 1:
            raise WrongUsage("--splits, --seeds and --rows are at least 1.")
        config = StudyConfig(splits=splits, seeds=seeds)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("fits", total=config.fits)

            def show(result: Result) -> None:
                progress.advance(task)
                if not progress.console.is_terminal and not result.known:
                    self.stderr.write(_line(result))

            try:
                stored = studies.conduct(
                    by=by,
                    data=data,
                    limit=rows,
                    config=config,
                    encoder=encoder,
                    on_result=show,
                )
            except REFUSALS as error:
                raise Refused(str(error)) from error
            except KeyboardInterrupt as error:
                raise Refused(
                    "Cut short. The fits that were done are stored; the same command goes on."
                ) from error
        told = findings.export(stored)
        for sentence in told["sentences"]:
            self.stdout.write(sentence)
        return told


def _line(result: Result) -> str:
    job, measure = result.job, CHOICE[result.job.task]
    rate = "" if job.learning_rate is None else f" {job.setting} at {job.learning_rate:g}"
    return (
        f"{job.task}, split {job.split}, seed {job.seed}: {job.method}{rate}: {measure} "
        f"{result.outcome.measures[measure]:.3f} in {result.outcome.seconds:.0f} s"
    )
