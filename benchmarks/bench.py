"""The learning benchmark's cells: what there is to learn in each, and what each arm makes of it."""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from scipy.special import softmax

import benchmarks.home  # noqa: F401  Django first

# isort: split
from adapters_app.nli import metrics
from adapters_app.nli.base_model import BUNDLED, Base, load_base
from adapters_app.nli.calibration import TemperatureScaling
from adapters_app.nli.encoding import Pair
from adapters_app.nli.probabilities import LEAST, log_losses
from adapters_app.reporting import training_weights
from adapters_app.snapshots import SnapshotRow
from benchmarks import protocol, report, trained, trivial
from benchmarks.cells import Cells, Record
from benchmarks.protocol import User, Verdict
from benchmarks.rows import Row, read
from benchmarks.trained import Task
from corrections.folds import pair_digest
from corrections.labels import Label

ACTIVE = "active"  # what served in the second round
TOO_FEW = "too few verdicts"  # stands in the place of an arm where a budget cannot be met
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
    uncalibrated: np.ndarray | None = None  # where `probabilities` are calibrated
    idle_mb: float | None = None
    peak_mb: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def without(self, first: int) -> "Result":
        """The same, but for the answers to the `first` pairs."""
        raw = None if self.uncalibrated is None else self.uncalibrated[first:]
        return replace(self, probabilities=self.probabilities[first:], uncalibrated=raw)


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
        serves: Arm,
        console: Console,
    ) -> None:
        self.base = load_base(base_name, device=device)
        self.device = device
        self.user = user
        self.shares = shares
        self.serves = serves  # promoted after a first round
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
        self.guard_digest = hashlib.sha256(json.dumps(guard).encode()).hexdigest()[:12]
        self.guard_view = trivial.View(self.base, pairs_of(guard))
        self.guard_labels = columns_of(guard)
        self.guard_groups = np.array([row["group"] for row in guard])

    def measure(self, cell: Cell, arms: Sequence[Arm]) -> None:
        """Measure what of the cell is not there yet."""
        pending = [(arm, self._pending(cell, arm)) for arm in arms]
        if not any(shares for _, shares in pending) or self.key(cell, Arm(TOO_FEW)) in self.cells:
            return
        lesson = self._lesson(cell)
        if len(lesson.verdicts) < cell.budget * cell.round:
            self.console.print(f"{cell}: only {len(lesson.verdicts)} verdicts")
            self.cells.add(self.key(cell, Arm(TOO_FEW)), {"verdicts": len(lesson.verdicts)})
            return
        for arm, shares in pending:
            for share, result in self._results(cell, arm, lesson, shares).items():
                figures = self._figures(cell, lesson, result)
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
            "serves": dict(self.serves.settings) if cell.round > 1 else None,
            "arm": arm.family,
            "settings": dict(arm.settings),
            "share": share,
        }

    def belongs(self, record: Record) -> bool:
        """Whether a cell was measured in this setting."""
        key = record["key"]
        stream = self.streams.get(key["stream"])
        served = key["round"] == 1 or key["serves"] == dict(self.serves.settings)
        same_rows = stream is not None and stream.digest == key["rows"]
        return served and same_rows and self.setting.items() <= key.items()

    @property
    def setting(self) -> dict[str, Any]:
        """What all cells of one table have in common."""
        return {
            "base": self.base.fingerprint,
            "user": self.user.to_dict(),
            "guard": self.guard_digest,
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

    def _pending(self, cell: Cell, arm: Arm) -> list[float]:
        """Shares of what the arm learns that are not measured yet."""
        wanted = self.shares if arm.family in {report.OURS, report.RELEASED} else (1.0,)
        return [share for share in wanted if self.key(cell, arm, share) not in self.cells]

    # What there is to learn from

    def _lesson(self, cell: Cell) -> Lesson:
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
        active = self._train(cell, self.serves, rows, (1.0,), first_asked=asked)[1.0]
        verdicts += self._judge(cell, second, active.probabilities[: len(second)], draw)
        active = active.without(len(second))
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
        if not shares:
            return {}
        if arm.family == ACTIVE and lesson.active is not None:
            return {1.0: lesson.active}
        if arm.family in trivial.ARMS:
            return {1.0: self._fit_trivial(cell, arm, lesson.rows)}
        return self._train(cell, arm, lesson.rows, shares)

    def _fit_trivial(self, cell: Cell, arm: Arm, rows: Sequence[SnapshotRow]) -> Result:
        """What the base makes of the pairs is at hand: only the fit is timed."""
        stream, shortcut = self.streams[cell.stream], trivial.ARMS[arm.family]
        seen = shortcut.sees(stream.view.at([stream.index[row.pair_digest] for row in rows]))
        verdicts = trivial.Verdicts(
            labels=np.array([Label(row.label).column for row in rows]),
            folds=np.array([row.fold for row in rows]),
            weights=training_weights(rows),
        )
        started = perf_counter()
        fitted = shortcut.fit(seen, verdicts)
        seconds = perf_counter() - started
        held_out = stream.view.at(stream.split(cell.split).held_out)
        answers = [fitted.predict(shortcut.sees(view)) for view in (held_out, self.guard_view)]
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
        made = trained.fitted(task)
        return {
            share: Result(
                probabilities,
                made.parameters,
                made.artifact_bytes,
                made.seconds,
                made.uncalibrated.get(share),
                made.idle_mb,
                made.peak_mb,
                made.facts,
            )
            for share, probabilities in made.probabilities.items()
        }

    # What is kept of it

    def _figures(self, cell: Cell, lesson: Lesson, result: Result) -> dict[str, Any]:
        stream = self.streams[cell.stream]
        labels = stream.labels[stream.split(cell.split).held_out]
        held_out, guard = np.split(result.probabilities, [len(labels)])
        return {
            "figures": figures_of(held_out, labels),
            "guard": self._guard_figures(guard.argmax(1)),
            "losses": losses_of(held_out, labels),
            "uncalibrated": {}
            if result.uncalibrated is None
            else losses_of(result.uncalibrated[: len(labels)], labels),
            "answers": digits(held_out.argmax(1)),
            "guard_answers": digits(guard.argmax(1)),
            "parameters": result.parameters,
            "artifact_bytes": result.artifact_bytes,
            "seconds": result.seconds,
            "idle_mb": result.idle_mb,
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
            soft_wrap=True,
        )


def figures_of(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """How good (n, 3) probabilities are, and how honest.

    The oracle is a temperature fitted on these very rows: what calibration could still gain.
    """
    summary = metrics.summary(probabilities, labels)
    scores = np.log(np.maximum(probabilities, LEAST))
    best = TemperatureScaling().fit(scores, labels).predict_proba(scores)
    return {name: summary[name] for name in FIGURES} | {
        "oracle_log_loss": metrics.log_loss(best, labels),
        "ece_debiased": metrics.debiased_ece(metrics.ece(probabilities, labels)[1]),
        "ece_floor": metrics.ece_floor(probabilities),
        "brier_skill": metrics.brier_skill(probabilities, labels),
    }


def losses_of(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """Log loss and Brier score of each row of (n, 3) probabilities, to four places."""
    rows = {
        "log_loss": log_losses(probabilities, labels),
        "brier": metrics.brier_rows(probabilities, labels),
    }
    return {name: values.round(4).tolist() for name, values in rows.items()}


def pairs_of(rows: Sequence[Row]) -> list[Pair]:
    return [(row["premise"], row["hypothesis"]) for row in rows]


def columns_of(rows: Sequence[Row]) -> np.ndarray:
    """(n,) column of each row's label."""
    return np.array([Label(row["label"]).column for row in rows])


def digits(answers: np.ndarray) -> str:
    """Label columns (n,) as one digit each."""
    return "".join(map(str, answers.tolist()))
