"""Train the bundled base, minilm-nli, from labelled NLI files."""

import argparse
from pathlib import Path
from typing import Any

import torch
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from adapters_app.nli import train, train_base
from adapters_app.nli.checkpoint import BUNDLED_DIR

LOG_EVERY = 100  # steps; a file gets lines where a terminal gets a bar


class Command(BaseCommand):
    help = (
        "Train the bundled base from DIR/base/*.jsonl.gz (premise, hypothesis, label, source, "
        "group) and measure it on DIR/guard, where there is one."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--data", type=Path, required=True, help="directory with base/ and guard/"
        )
        parser.add_argument("--out", type=Path, help="default: the bundled base's own directory")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
        parser.add_argument(
            "--work",
            type=Path,
            metavar="DIR",
            help="keep the trained teachers there: a run that was stopped goes on behind them",
        )
        parser.add_argument("--limit", type=int, help="train on this many rows only (a trial)")

    def handle(self, *args: Any, **options: Any) -> None:
        device = options["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        columns = (
            TextColumn(
                "{task.description}, epoch {task.fields[epoch]}, loss {task.fields[loss]:.3f}"
            ),
            BarColumn(),
            TextColumn("{task.fields[speed]:.0f} pairs/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("starting", total=None, epoch=0, loss=0.0, speed=0.0)

            def announce(stage: str) -> None:
                progress.update(task, description=stage, completed=0)
                if not progress.console.is_terminal:
                    progress.console.print(stage, highlight=False)

            def show(step: train.Step) -> None:
                progress.update(
                    task,
                    completed=step.step,
                    total=step.total,
                    epoch=step.epoch,
                    loss=step.loss,
                    speed=step.pairs_per_second,
                )
                if not progress.console.is_terminal and step.step % LOG_EVERY == 0:
                    progress.console.print(
                        f"step {step.step} of {step.total}, loss {step.loss:.3f}, "
                        f"{step.pairs_per_second:.0f} pairs/s",
                        highlight=False,
                    )

            try:
                facts = train_base.train_base(
                    options["data"],
                    options["out"] or BUNDLED_DIR,
                    device=device,
                    limit=options["limit"],
                    work=options["work"],
                    on_stage=announce,
                    on_step=show,
                )
            except ValueError as error:
                raise CommandError(str(error)) from error
        for name, row in facts["measured"].items():
            self.stdout.write(f"{name}: accuracy {row['accuracy']:.3f} on {row['n']} rows")
