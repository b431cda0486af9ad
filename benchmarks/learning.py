"""What do a simulated user's verdicts teach, compared with rivals, and what is forgotten?

    python benchmarks/learning.py --data DIR [--stream NAME …] [--budget N …] [--splits 5]
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
(fine-tuning; its learning rate is the best on the other streams) · ours. Trivial arms are fitted in
this process on the base's answers, which their seconds leave out; they have no peak memory.
"""

import argparse
import hashlib
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

import numpy as np
from django.core.management import call_command
from rich.console import Console
from scipy.special import softmax

import benchmarks.home  # noqa: F401  Django first

# isort: split
from adapters_app.nli import metrics
from adapters_app.nli.base_model import BUNDLED, Base, load_base
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.encoding import Pair
from adapters_app.snapshots import SnapshotRow
from benchmarks import protocol, report, trained, trivial
from benchmarks.cells import Cells, Record
from benchmarks.protocol import User, Verdict
from benchmarks.rows import Row, read
from benchmarks.trained import Task
from corrections.folds import pair_digest
from corrections.labels import Label

ROOT = Path(__file__).resolve().parent.parent
TABLE_WIDTH = 160  # also where the output goes to a file
BUDGETS = (100, 300, 1000)
FULL_RATES = (2e-5, 5e-5, 1e-4)
ACTIVE = "active"  # what served in the second round
TOO_FEW = "too few verdicts"  # stands in the place of an arm where a budget cannot be met
T = TypeVar("T")
FIGURES = ("accuracy", "macro_f1", "log_loss", "ece", "brier")


@dataclass(frozen=True)
class Arm:
    """One way to learn; `label` tells apart those of one family, between which rotation chooses."""

    family: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""


@dataclass(frozen=True)
class Cell:
    """Where the verdicts come from: the same for every arm."""

    stream: str
    split: int
    seed: int
    budget: int
    round: int


@dataclass(frozen=True, eq=False)
class Result:
    """What an arm answers, (held-out rows + guard rows, 3), and what it cost."""

    probabilities: np.ndarray
    parameters: int
    artifact_bytes: int
    seconds: float
    peak_mb: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What there is to learn from in a cell; in a second round also who served in it."""

    verdicts: list[Verdict]
    rows: list[SnapshotRow]
    active: Result | None = None


class Stream:
    """A stream's rows, the base's view of them, and its splits."""

    def __init__(self, path: Path, base: Base) -> None:
        self.name = path.name.removesuffix(".jsonl.gz")
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        self.rows = read([path])
        self.view = trivial.View(base, pairs_of(self.rows))
        self.labels = columns_of(self.rows)
        self.groups = np.array([row["group"] for row in self.rows])
        self._splits: dict[int, protocol.Split] = {}

    def split(self, number: int) -> protocol.Split:
        if number not in self._splits:
            self._splits[number] = protocol.split(self.rows, number)
        return self._splits[number]

    @cached_property
    def index(self) -> dict[str, int]:
        """Digest of a pair → its row."""
        return {pair_digest(r["premise"], r["hypothesis"]): i for i, r in enumerate(self.rows)}


class Bench:
    """The protocol: which cells there are, and how each is measured."""

    def __init__(
        self,
        *,
        data: Path,
        cells: Cells,
        base_name: str = BUNDLED,
        device: str = "cpu",
        user: User,
        guard_rows: int | None = None,
        shares: Sequence[float] = (1.0,),
        console: Console,
    ) -> None:
        self.base = load_base(base_name, device=device)
        self.device = device
        self.user = user
        self.shares = shares
        self.cells = cells
        self.console = console
        self.streams = {
            stream.name: stream
            for path in sorted((data / "stream").glob("*.jsonl.gz"))
            for stream in [Stream(path, self.base)]
        }
        guard = read((data / "guard").glob("*.jsonl.gz"))
        if guard_rows is not None:
            guard = random.Random(0).sample(guard, min(guard_rows, len(guard)))
        self.guard_view = trivial.View(self.base, pairs_of(guard))
        self.guard_labels = columns_of(guard)
        self.guard_groups = np.array([row["group"] for row in guard])

    def measure(self, cell: Cell, arms: Sequence[Arm], *, serves: Arm) -> None:
        """Measure what of the cell is not there yet; `serves` is promoted after a first round."""
        pending = {
            number: shares
            for number, arm in enumerate(arms)
            if (
                shares := [s for s in self._shares(arm) if self.key(cell, arm, s) not in self.cells]
            )
        }
        if not pending or self.key(cell, Arm(TOO_FEW)) in self.cells:
            return
        lesson = self._lesson(cell, serves)
        if len(lesson.verdicts) < cell.budget * cell.round:
            self.console.print(f"{cell}: only {len(lesson.verdicts)} verdicts")
            self.cells.add(self.key(cell, Arm(TOO_FEW)), {"verdicts": len(lesson.verdicts)})
            return
        for number, shares in pending.items():
            arm = arms[number]
            for share, result in self._results(cell, arm, lesson, shares).items():
                figures = self._figures(cell, arm, share, lesson, result)
                self._tell(cell, arm, share, figures)
                self.cells.add(self.key(cell, arm, share), figures)

    def key(self, cell: Cell, arm: Arm, share: float = 1.0) -> dict[str, Any]:
        """Everything that decides what comes out of a cell, but the code itself."""
        return self.setting | {
            "stream": cell.stream,
            "rows": self.streams[cell.stream].digest,
            "split": cell.split,
            "seed": cell.seed,
            "budget": cell.budget,
            "round": cell.round,
            "arm": arm.family,
            "settings": dict(arm.settings),
            "share": share,
        }

    @property
    def setting(self) -> dict[str, Any]:
        """What all cells of one table have in common."""
        return {
            "base": self.base.fingerprint,
            "user": self.user.to_dict(),
            "guard_rows": len(self.guard_labels),
        }

    def truth(self, cells: Iterable[Record]) -> report.Truth:
        """The right answers to the rows that `cells` were measured on."""
        held_out = {}
        for name, number in {(record["key"]["stream"], record["key"]["split"]) for record in cells}:
            stream = self.streams[name]
            index = stream.split(number).held_out
            held_out[name, number] = (stream.labels[index], stream.groups[index])
        return report.Truth(held_out, self.guard_labels, self.guard_groups)

    def _shares(self, arm: Arm) -> Sequence[float]:
        return self.shares if arm.family == report.OURS else (1.0,)

    # What there is to learn from

    def _lesson(self, cell: Cell, serves: Arm) -> Lesson:
        """The verdicts of a cell: at most its budget in each round."""
        stream = self.streams[cell.stream]
        judged = stream.split(cell.split).judged
        draw = random.Random(f"{cell.stream} {cell.split} {cell.seed}")
        answers = softmax(stream.view.logits.astype(float), axis=1)
        if cell.round == 1:
            verdicts = self._judge(cell, judged, answers[judged], draw)
            return Lesson(verdicts, protocol.training_set(verdicts))
        first, second = protocol.halves(stream.rows, judged, cell.seed)
        verdicts = self._judge(cell, first, answers[first], draw)
        if len(verdicts) < cell.budget:
            return Lesson(verdicts, [])
        asked = [stream.view.pairs[i] for i in second]
        rows = protocol.training_set(verdicts)
        active = self._train(cell, serves, rows, (1.0,), first_asked=asked)[1.0]
        said, kept = np.split(active.probabilities, [len(second)])
        verdicts += self._judge(cell, second, said, draw)
        active = replace(active, probabilities=kept)
        return Lesson(verdicts, protocol.training_set(verdicts), active)

    def _judge(
        self, cell: Cell, index: Sequence[int], answers: np.ndarray, draw: random.Random
    ) -> list[Verdict]:
        rows = [self.streams[cell.stream].rows[i] for i in index]
        return self.user.judge(rows, answers, budget=cell.budget, draw=draw)

    # What each arm makes of it

    def _results(
        self, cell: Cell, arm: Arm, lesson: Lesson, shares: Sequence[float]
    ) -> dict[float, Result]:
        if arm.family == ACTIVE and lesson.active is not None:
            return {1.0: lesson.active}
        if arm.family in trivial.ARMS:
            return {1.0: self._fit_trivial(cell, arm, lesson.rows)}
        return self._train(cell, arm, lesson.rows, shares)

    def _fit_trivial(self, cell: Cell, arm: Arm, rows: Sequence[SnapshotRow]) -> Result:
        stream = self.streams[cell.stream]
        judged = trivial.Judged(
            stream.view.at([stream.index[row.pair_digest] for row in rows]),
            labels=np.array([Label(row.label).column for row in rows]),
            folds=np.array([row.fold for row in rows]),
        )
        started = perf_counter()
        fitted = trivial.ARMS[arm.family](judged)
        seconds = perf_counter() - started
        held_out = stream.view.at(stream.split(cell.split).held_out)
        answers = [fitted.predict(view) for view in (held_out, self.guard_view)]
        return Result(np.concatenate(answers), fitted.parameters, fitted.artifact_bytes, seconds)

    def _train(
        self,
        cell: Cell,
        arm: Arm,
        rows: Sequence[SnapshotRow],
        shares: Sequence[float],
        first_asked: Sequence[Pair] = (),
    ) -> dict[float, Result]:
        """By share of what was learnt; `first_asked` pairs are answered before the others."""
        stream = self.streams[cell.stream]
        held_out = [stream.view.pairs[i] for i in stream.split(cell.split).held_out]
        task = Task(
            base=self.base.name,
            device=self.device,
            arm=arm.family,
            settings=arm.settings,
            seed=cell.seed,
            rows=rows,
            asked=[*first_asked, *held_out, *self.guard_view.pairs],
            shares=shares,
        )
        made = trained.in_own_process(task)
        return {
            share: Result(
                probabilities,
                made.parameters,
                made.artifact_bytes,
                made.seconds,
                made.peak_mb,
                made.facts,
            )
            for share, probabilities in made.probabilities.items()
        }

    # What is kept of it

    def _figures(
        self, cell: Cell, arm: Arm, share: float, lesson: Lesson, result: Result
    ) -> dict[str, Any]:
        stream = self.streams[cell.stream]
        labels = stream.labels[stream.split(cell.split).held_out]
        held_out, guard = np.split(result.probabilities, [len(labels)])
        summary = metrics.summary(held_out, labels)
        return {
            "figures": {name: summary[name] for name in FIGURES},
            "guard": self._guard_figures(guard.argmax(1)),
            "answers": digits(held_out.argmax(1)),
            "guard_answers": digits(guard.argmax(1)),
            "parameters": result.parameters,
            "artifact_bytes": result.artifact_bytes,
            "seconds": result.seconds,
            "peak_mb": result.peak_mb,
            "facts": dict(result.facts),
            "verdicts": {
                "corrected": sum(v.predicted != v.row["label"] for v in lesson.verdicts),
                "audited": sum(v.probability is not None for v in lesson.verdicts),
                "in_snapshot": len(lesson.rows),
            },
        }

    def _guard_figures(self, answers: np.ndarray) -> dict[str, float]:
        base = self.guard_view.logits.argmax(1)
        right, before = answers == self.guard_labels, base == self.guard_labels
        return {
            "accuracy": float(right.mean()),
            "change": float(right.mean() - before.mean()),
            "flipped": float((answers != base).mean()),
        }

    def _tell(self, cell: Cell, arm: Arm, share: float, figures: Mapping[str, Any]) -> None:
        self.console.print(
            f"{cell.stream} {cell.budget}, split {cell.split}, seed {cell.seed}, "
            f"round {cell.round}, {arm.family} {arm.label} × {share:g}: "
            f"macro-F1 {figures['figures']['macro_f1']:.3f}, "
            f"guard {figures['guard']['change']:+.3f}, {figures['seconds']:.1f} s",
            highlight=False,
        )


def pairs_of(rows: Sequence[Row]) -> list[Pair]:
    return [(row["premise"], row["hypothesis"]) for row in rows]


def columns_of(rows: Sequence[Row]) -> np.ndarray:
    """(n,) column of each row's label."""
    return np.array([Label(row["label"]).column for row in rows])


def digits(answers: np.ndarray) -> str:
    """Label columns (n,) as one digit each."""
    return "".join(map(str, answers.tolist()))


def catalogue(full_rates: Sequence[float], recipes: Sequence[Mapping[str, Any]]) -> list[Arm]:
    """Every arm, ours last: one per recipe, the default where none is given."""
    return [
        *(Arm(name) for name in trivial.ARMS),
        Arm("seeds-corrections", {"corrections_only": True}),
        Arm("seeds", {"corrections_only": False}),
        *(Arm("full", {"learning_rate": rate}, f"lr {rate:g}") for rate in full_rates),
        *(_recipe(overrides, several=len(recipes) > 1) for overrides in recipes or [{}]),
    ]


def _recipe(overrides: Mapping[str, Any], *, several: bool) -> Arm:
    """Our arm by a recipe; the seed is each cell's own."""
    settings = TrainConfig.from_mapping(overrides).to_dict()
    del settings["seed"]
    said = ", ".join(f"{name} {value}" for name, value in overrides.items())
    return Arm(report.OURS, settings, (said or "default") if several else "")


def cells_of(
    bench: Bench,
    streams: Sequence[str],
    budgets: Sequence[int],
    splits: int,
    seeds: Sequence[int],
    rounds: int,
) -> Iterator[Cell]:
    """Every cell; all streams before the next budget, split and seed, so that a run that is
    stopped has something of each."""
    for split in range(splits):
        for seed in seeds:
            for budget in budgets:
                for name in streams or bench.streams:
                    for number in range(1, rounds + 1):
                        yield Cell(name, split, seed, budget, number)


def publish(bench: Bench, arms: Sequence[Arm], out: Path) -> None:
    """Print the tables of all cells measured so far in this setting, and write them as JSON."""
    labels = {(arm.family, json.dumps(dict(arm.settings))): arm.label for arm in arms}
    here = [r for r in bench.cells if bench.setting.items() <= r["key"].items()]
    measured: dict[tuple[int, int], list[report.Named]] = defaultdict(list)
    for record in here:
        key = record["key"]
        label = labels.get((key["arm"], json.dumps(key["settings"])))
        if label is not None:
            measured[key["round"], key["budget"]].append(report.Named(label, record))
    few = [record["key"] for record in here if record["key"]["arm"] == TOO_FEW]
    tables: dict[str, Any] = {"setting": bench.setting, "too_few": few}
    for (number, budget), some in sorted(measured.items()):
        truth = bench.truth(named.record for named in some)
        summary = report.summarise(report.lines(some, truth), truth)
        title = f"round {number}, {budget} verdicts"
        tables[title] = summary
        bench.console.print(report.figures_table(title, summary))
        bench.console.print(report.differences_table(f"{title}: points [95 %]", summary))
        bench.console.print(report.streams_table(f"{title}: macro-F1 − base by stream", summary))
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
    parser.add_argument("--splits", type=int, default=protocol.PARTS)
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
    call_command("migrate", verbosity=0)
    bench = Bench(
        data=chosen.data,
        cells=Cells(chosen.out.with_suffix(".jsonl")),
        base_name=chosen.base,
        device=chosen.device,
        user=User(chosen.audits, chosen.corrects, chosen.confirms),
        guard_rows=chosen.guard_rows,
        shares=chosen.shrink,
        console=console,
    )
    recipes = json.loads(chosen.recipes.read_text()) if chosen.recipes else []
    arms = catalogue(chosen.full_rates, recipes)
    serves = next(arm for arm in arms if arm.family == report.OURS)
    if chosen.rounds == 2:
        arms.append(Arm(ACTIVE, serves.settings))
    if recipes:
        console.print(f"{len(recipes)} recipes are tried; each stream's is chosen on the others")
    # The base is what all others are compared with.
    asked = [arm for arm in arms if not chosen.arms or arm.family in {report.BASE, *chosen.arms}]
    for cell in cells_of(
        bench,
        chosen.stream,
        chosen.budget or BUDGETS,
        chosen.splits,
        chosen.seeds,
        chosen.rounds,
    ):
        here = [arm for arm in asked if cell.round == 2 or arm.family != ACTIVE]
        bench.measure(cell, here, serves=serves)
    publish(bench, arms, chosen.out)


if __name__ == "__main__":
    main()
