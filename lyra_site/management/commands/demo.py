"""The whole loop without a browser, by the commands everybody uses, in a fresh home of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from rich.console import Console
from rich.table import Table

from corrections.acting import Refused
from corrections.models import Correction
from lyra_site import demo

# What would make the demo work on somebody's own system instead of a fresh one.
OWN_SYSTEM = ("DATABASE_URL", "LYRA_ARTIFACTS", "LYRA_COMMAND_USER", "LYRA_FOUR_EYES")
# Two processes on one machine may sum in another order; more is another model (DESIGN, exactness).
LARGEST_DIFFERENCE = 1e-5


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

    def handle(self, *args: Any, verdicts: Path, **options: Any) -> None:
        console = Console()
        chosen = [word for pair in options["set"] for word in ("--set", pair)]
        with tempfile.TemporaryDirectory(prefix="lyra-demo-") as home:
            loop = Loop(home=Path(home), console=console)
            try:
                _walk(loop, verdicts.resolve(), chosen)
            finally:
                console.print(loop.table)


class Loop:
    """A system in `home`, driven by commands; `table` gets a line for every step."""

    def __init__(self, *, home: Path, console: Console) -> None:
        self.home = home
        self.table = Table("step", "result", "seconds", title="The loop")
        self.table.columns[2].justify = "right"
        self._console = console
        self._environment = {
            name: value for name, value in os.environ.items() if name not in OWN_SYSTEM
        } | {"LYRA_HOME": str(home)}

    def run(self, *command: str) -> dict[str, Any]:
        """Run `manage.py COMMAND --json`; return its result. Raises Refused where it fails."""
        self._console.print(f"[dim]manage.py {' '.join(command)}[/dim]", highlight=False)
        self._started = time.monotonic()
        done = subprocess.run(
            [sys.executable, str(settings.BASE_DIR / "manage.py"), *command, "--json"],
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            self.note(command[0], "[red]failed[/red]")
            raise Refused(f"{command[0]} failed with exit status {done.returncode}.")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def migrate(self) -> None:
        """Make the database; the one step without a result."""
        manage = [sys.executable, str(settings.BASE_DIR / "manage.py"), "migrate", "--verbosity=0"]
        subprocess.run(manage, env=self._environment, check=True)

    def predict(self, verdicts: Path, name: str) -> list[dict[str, Any]]:
        """What serves predicts the verdicts' pairs: one dictionary per pair, in order."""
        out = self.home / f"{name}.jsonl"
        self.run("predict", str(verdicts), "--out", str(out))
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    def note(self, step: str, result: str) -> None:
        """A line of the table about the command that ran last."""
        self.table.add_row(step, result, f"{time.monotonic() - self._started:.1f}")


def _walk(loop: Loop, verdicts: Path, chosen: list[str]) -> None:
    """The loop, step by step."""
    loop.migrate()
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
    calibrated = loop.run("calibrate", version)
    loop.note(
        "calibrate",
        f"{calibrated['method']}: ECE {calibrated['ece_before']:.3f} → "
        f"{calibrated['ece_after']:.3f} on {calibrated['rows']} pairs",
    )
    _shadow(loop, version)

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
    difference = _largest_difference(before, loop.predict(verdicts, "again"))
    loop.note("predict", f"as before the promotion (largest difference {difference:.0e})")
    if difference > LARGEST_DIFFERENCE:
        raise Refused(f"After the rollback the answers differ by {difference} from those before.")


def _shadow(loop: Loop, version: str) -> None:
    evaluation = loop.run("shadow_evaluate", version)
    figures = evaluation["figures"]["against_incumbent"]
    loop.note(
        "shadow",
        f"[bold]{evaluation['verdict']}[/bold], out of fold on {evaluation['rows']} pairs of "
        f"{evaluation['groups']} pages: accuracy {figures['a']['accuracy']:.3f} → "
        f"{figures['b']['accuracy']:.3f}",
    )
    if evaluation["verdict"] != "better":
        raise Refused(f"{version} is not better than the base by its shadow evaluation.")


def _largest_difference(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> float:
    """Over all pairs and labels, in probability."""
    return max(
        abs(a["probabilities"][label] - b["probabilities"][label])
        for a, b in zip(before, after, strict=True)
        for label in a["probabilities"]
    )
