"""The whole loop without a browser, by the commands everybody uses, in a fresh home of its own."""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.table import Table

from corrections.acting import Refused
from corrections.models import Correction
from lyra_site import demo

# What would make the demo work on somebody's own system instead of a fresh one.
OWN_SYSTEM = ("DATABASE_URL", "LYRA_ARTIFACTS", "LYRA_COMMAND_USER", "LYRA_FOUR_EYES")
PAGES = 88


class Command(BaseCommand):
    help = (
        "Import, train, calibrate, shadow-evaluate, promote, predict and roll back the demo's "
        "verdicts in a fresh temporary home. Fails if any step does; nothing is overridden."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--verdicts", type=Path, default=demo.VERDICTS, metavar="FILE")
        parser.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="as for train_adapter"
        )
        parser.add_argument(
            "--pages",
            type=int,
            default=PAGES,
            help="of how many pages verdicts are taken; default: as many as end in 3 minutes",
        )
        parser.add_argument("--in-this-home", action="store_true", help="LYRA_HOME is fresh")

    def handle(
        self, *args: Any, verdicts: Path, pages: int, in_this_home: bool, **options: Any
    ) -> None:
        if not in_this_home:
            _repeat_in_fresh_home()
        loop = Loop(Console())
        chosen = [word for pair in options["set"] for word in ("--set", pair)]
        try:
            _walk(loop, demo.spread(verdicts, pages, settings.LYRA_HOME / "verdicts.jsonl"), chosen)
        finally:
            loop.console.print(loop.table)


def _repeat_in_fresh_home() -> NoReturn:
    """Run this command line again where LYRA_HOME, read once at start, is a temporary directory."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN_SYSTEM}
    with tempfile.TemporaryDirectory(prefix="lyra-demo-") as home:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--in-this-home"],
            env=environment | {"LYRA_HOME": home},
            check=False,
        )
    sys.exit(done.returncode)


class Loop:
    """The commands of this home; `table` gets a line for every step."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.table = Table("step", "result", "seconds", title="The loop")
        self.table.columns[2].justify = "right"
        self._started = time.monotonic()

    def run(self, *command: str) -> dict[str, Any]:
        """Run `manage.py COMMAND --json`; return its result. Raises Refused where it fails."""
        self.console.print(f"[dim]manage.py {' '.join(command)}[/dim]", highlight=False)
        self._started = time.monotonic()
        output = io.StringIO()
        try:
            call_command(*command, "--json", stdout=output)
        except CommandError as error:
            self.note(command[0], "[red]failed[/red]")
            raise Refused(f"{command[0]} failed: {error}") from error
        result: dict[str, Any] = json.loads(output.getvalue().splitlines()[-1])
        return result

    def predict(self, verdicts: Path, name: str) -> list[dict[str, Any]]:
        """What serves predicts the verdicts' pairs: one dictionary per pair, in order."""
        out = settings.LYRA_HOME / f"{name}.jsonl"
        self.run("predict", str(verdicts), "--out", str(out))
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    def note(self, step: str, result: str, *, within_last: bool = False) -> None:
        """A line of the table about the command that ran last, or a part of what it did."""
        seconds = "″" if within_last else f"{time.monotonic() - self._started:.1f}"
        self.table.add_row(step, result, seconds)


def _walk(loop: Loop, verdicts: Path, chosen: list[str]) -> None:
    """The loop, step by step."""
    call_command("migrate", verbosity=0)
    imported = loop.run(
        "import_corrections",
        str(verdicts),
        "--accept",
        "--predict-missing",
        f"--sampling={Correction.Sampling.COMPLETE.value}",
    )
    loop.note(
        "import",
        f"{imported['accepted']} verdicts: {imported['corrected']} corrected, "
        f"{imported['confirmed']} confirmed",
    )
    before = loop.predict(verdicts, "before")
    loop.note("predict", f"the base answered {len(before)} pairs")

    trained = loop.run("train_adapter", "--wait", "--reason", "demo", *chosen)
    version = trained["version"]
    loop.note("train", f"{version}, artifact {trained['digest'][:12]}")
    _tell_of_training(loop, trained)

    loop.run("promote_adapter", version, "--reason", "better by its shadow evaluation")
    loop.note("promote", f"{version} serves")
    after = loop.predict(verdicts, "after")
    changed = sum(
        a["predicted_label"] != b["predicted_label"] for a, b in zip(before, after, strict=True)
    )
    loop.note("predict", f"{version} answers {changed} of {len(after)} pairs differently")
    if after == before:
        raise Refused(f"{version} was promoted, yet the answers are the base's.")

    loop.run("rollback_adapter", "--reason", "end of the demo")
    loop.note("roll back", "the base serves")
    if loop.predict(verdicts, "again") != before:
        raise Refused("After the rollback the answers are not those before the promotion.")
    loop.note("predict", f"all {len(before)} answers are those before the promotion, exactly")


def _tell_of_training(loop: Loop, trained: dict[str, Any]) -> None:
    """What the run did after fitting: it calibrated and shadow-evaluated, on pages it never saw."""
    fitted = trained["calibration"]
    loop.note(
        "calibrate",
        f"{fitted['method']}: ECE {fitted['ece_before']:.3f} → {fitted['ece_after']:.3f} "
        f"on {fitted['rows']} pairs",
        within_last=True,
    )
    loop.note(
        "shadow",
        f"[bold]{trained['verdict']}[/bold], out of fold on {trained['rows']} pairs of "
        f"{trained['groups']} pages: accuracy {trained['incumbent_accuracy']:.3f} → "
        f"{trained['accuracy']:.3f}",
        within_last=True,
    )
    if trained["verdict"] != "better":
        raise Refused(f"{trained['version']} is not better than the base by its shadow evaluation.")
