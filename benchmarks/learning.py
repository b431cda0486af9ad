"""What do a simulated user's verdicts teach, compared with rivals, and what is forgotten?

    python benchmarks/learning.py --data DIR [--stream NAME …] [--budget N …] [--splits 0,1,2,3,4]
        [--seeds 0,1] [--arms ours,full …] [--guard-rows N] [--rounds 2] [--shrink 0,.25,.5,.75,1]
        [--recipes FILE] [--audits .1 --corrects .6 --confirms .2] [--out FILE]

DIR has stream/*.jsonl.gz and guard/*.jsonl.gz (premise, hypothesis, label, group). What serves
answers a stream, the user judges some of it, every arm is fitted on the same verdicts and measured
on the same held-out groups and on the guard. Each cell (stream, split, seed, budget, arm) is
appended to FILE.jsonl as it ends; cells that are there are not computed again, so a run may be
stopped at any time. The tables, also in FILE.json, show all cells of the same base, user and guard.

Arms: base · majority · bias (one per label, and a temperature) · probe (logistic, on the frozen
encoder) · hypothesis (the same without premises) · overlap (four numbers on words and lengths) ·
seeds-corrections (the documents' recipe, literally) · seeds (the same on all verdicts) · full
(fine-tuning; its learning rate is the best on streams of other domains) · ours. Trivial arms are
fitted in this process on the base's answers, which their seconds leave out; they have no peak
memory. What a verdict counts is the same for ours, full and the trivial arms; the documents' count
all alike.

`--recipes benchmarks/recipes.json --arms ours-released --shrink 1,.75,.5` looks at the frozen grid
of recipes that the default was chosen from: released fits alone, uncalibrated, a sixth of a run.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

from django.core.management import call_command
from rich.console import Console

import benchmarks.home  # noqa: F401  Django first

# isort: split
from adapters_app.nli.base_model import BUNDLED
from adapters_app.nli.config import TrainConfig
from benchmarks import protocol, report, trivial
from benchmarks.bench import ACTIVE, TOO_FEW, Arm, Bench, Cell
from benchmarks.cells import Cells
from benchmarks.protocol import User

ROOT = Path(__file__).resolve().parent.parent
TABLE_WIDTH = 160  # also where the output goes to a file
BUDGETS = (100, 300, 1000)
FULL_RATES = (2e-5, 5e-5, 1e-4)
T = TypeVar("T")


def catalogue(full_rates: Sequence[float], recipes: Sequence[Mapping[str, Any]]) -> list[Arm]:
    """Every arm, ours last: one per recipe, the default where none is given."""
    return [
        *(Arm(name) for name in trivial.ARMS),
        Arm("seeds-corrections", {"corrections_only": True}),
        Arm("seeds", {"corrections_only": False}),
        *(Arm("full", {"learning_rate": rate}, f"lr {rate:g}") for rate in full_rates),
        *(
            _recipe(family, overrides, several=len(recipes) > 1)
            for overrides in recipes or [{}]
            for family in (report.RELEASED, report.OURS)
        ),
    ]


def _recipe(family: str, overrides: Mapping[str, Any], *, several: bool) -> Arm:
    """An arm of ours by a recipe, which may have a `name`; the seed is each cell's own."""
    changes = {name: value for name, value in overrides.items() if name != "name"}
    settings = TrainConfig.from_mapping(changes).to_dict()
    del settings["seed"]
    said = ", ".join(f"{name} {value}" for name, value in changes.items())
    return Arm(family, settings, str(overrides.get("name", said or "default")) if several else "")


def cells_of(
    streams: Sequence[str],
    budgets: Sequence[int],
    splits: Sequence[int],
    seeds: Sequence[int],
    rounds: int,
) -> Iterator[Cell]:
    """Every cell; all streams before the next budget, split and seed, so that a run that is
    stopped has something of each."""
    for split in splits:
        for seed in seeds:
            for budget in budgets:
                for name in streams:
                    for number in range(1, rounds + 1):
                        yield Cell(name, split, seed, budget, number)


def publish(bench: Bench, arms: Sequence[Arm], out: Path) -> None:
    """Print the tables of all cells measured so far in this setting, and write them as JSON."""
    labels = {(arm.family, json.dumps(dict(arm.settings))): arm.label for arm in arms}
    here = [record for record in bench.cells if bench.belongs(record)]
    measured: dict[tuple[int, int], list[report.Named]] = defaultdict(list)
    for record in here:
        key = record["key"]
        label = labels.get((key["arm"], json.dumps(key["settings"])))
        if label is not None:
            measured[key["round"], key["budget"]].append(report.Named(label, record))
    few = [record["key"] for record in here if record["key"]["arm"] == TOO_FEW]
    tried = sum(arm.family == report.OURS for arm in arms)
    tables: dict[str, Any] = {"setting": bench.setting, "recipes_tried": tried, "too_few": few}
    for (number, budget), some in sorted(measured.items()):
        truth = bench.truth(named.record for named in some)
        summary = report.summarise(report.lines(some, truth), truth)
        title = f"round {number}, {budget} verdicts"
        tables[title] = summary
        bench.console.print(report.figures_table(title, summary))
        bench.console.print(report.honesty_table(f"{title}: probabilities", summary))
        bench.console.print(report.differences_table(f"{title}: points [95 %]", summary))
        for sentence in (*report.calibration(summary), *report.choices(summary)):
            bench.console.print(sentence, highlight=False)
        bench.console.print(report.streams_table(f"{title}: macro-F1 − base by stream", summary))
        for sentence in report.undecided(summary):
            bench.console.print(sentence, highlight=False)
    for stream, budget in sorted({(key["stream"], key["budget"]) for key in few}):
        bench.console.print(f"{stream} has too few verdicts for a budget of {budget} in some cells")
    out.with_suffix(".json").write_text(json.dumps(tables, indent=1), encoding="utf-8")


def numbers(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A parser of values separated by commas."""
    return lambda text: [kind(part) for part in text.split(",")]


def options() -> argparse.Namespace:
    user = User()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", default=BUNDLED, help="a base by name or directory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stream", action="append", help="only this one; may be given again")
    parser.add_argument("--budget", type=int, action="append", help="verdicts; as --stream")
    parser.add_argument("--splits", type=numbers(int), default=list(range(protocol.PARTS)))
    parser.add_argument("--seeds", type=numbers(int), default=[0, 1])
    parser.add_argument("--arms", type=numbers(str), help="families, separated by commas")
    parser.add_argument("--guard-rows", type=int, help="drawn from guard/; default all")
    parser.add_argument("--rounds", type=int, choices=(1, 2), default=1)
    parser.add_argument("--shrink", type=numbers(float), default=[1.0], help="shares of ours")
    parser.add_argument("--recipes", type=Path, help="JSON: a list of changes to the default")
    parser.add_argument("--full-rates", type=numbers(float), default=list(FULL_RATES))
    parser.add_argument("--audits", type=float, default=user.audits)
    parser.add_argument("--corrects", type=float, default=user.corrects)
    parser.add_argument("--confirms", type=float, default=user.confirms)
    results = ROOT / "benchmarks" / "results" / "learning.jsonl"
    parser.add_argument("--out", type=Path, default=results)
    return parser.parse_args()


def main() -> None:
    chosen = options()
    console = Console(width=TABLE_WIDTH)
    recipes = json.loads(chosen.recipes.read_text(encoding="utf-8")) if chosen.recipes else []
    if recipes:
        console.print(f"{len(recipes)} recipes are tried; other domains choose a stream's")
    arms = catalogue(chosen.full_rates, recipes)
    serves = next(arm for arm in arms if arm.family == report.OURS)
    second = [Arm(ACTIVE, serves.settings)] if chosen.rounds == 2 else []
    call_command("migrate", verbosity=0)
    bench = Bench(
        data=chosen.data,
        cells=Cells(chosen.out.with_suffix(".jsonl")),
        base_name=chosen.base,
        device=chosen.device,
        user=User(chosen.audits, chosen.corrects, chosen.confirms),
        guard_rows=chosen.guard_rows,
        shares=chosen.shrink,
        serves=serves,
        console=console,
    )
    # The base is what all others are compared with.
    families = {report.BASE, *(chosen.arms or {arm.family for arm in arms} - {report.RELEASED})}
    asked = [arm for arm in arms if arm.family in families]
    for cell in cells_of(
        chosen.stream or list(bench.streams),
        chosen.budget or BUDGETS,
        chosen.splits,
        chosen.seeds,
        chosen.rounds,
    ):
        bench.measure(cell, asked + second if cell.round == 2 else asked)
    publish(bench, arms + second, chosen.out)


if __name__ == "__main__":
    main()
