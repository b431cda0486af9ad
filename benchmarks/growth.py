"""How does the cost of an answer grow: with length, batch, adapters in it, and clients?

    python benchmarks/growth.py [--quick] [--shape minilm|xsmall|small | --model DIR]
        [--mix short|streams] [--parts length batch adapters clients] [--rounds 5] [--out FILE]

Our engine by itself, from text to logits, one request after another. length: pairs of so many
tokens in all, alone and 32 at a time. batch: so many pairs of the mix at a time. adapters: so many
different ones in turn, 32 pairs at a time. And our server by itself over HTTP: clients, so many
callers of single pairs, who share the processors with it.
The points take turns in every round; all figures are medians over rounds, and growth is that of
ratios within a round. No pair is asked twice; a round before all others, in which kernels are made,
does not count.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

from rich.table import Table

from adapters_app.nli import guard
from adapters_app.nli.encoding import Pair, PairEncoder
from adapters_app.nli.own_process import in_own_process
from benchmarks import load, serving
from benchmarks.adapters import known_base, real_sized
from benchmarks.claims import Report, table_of, tell
from benchmarks.load import SHOWN, Rounds, shown
from benchmarks.servers import make_site, ours
from benchmarks.serving import Texts, closed_loop, in_turn
from benchmarks.traffic import Traffic

RESULTS = Path(__file__).resolve().parent / "results"
LENGTH, BATCH, ADAPTERS, CLIENTS = PARTS = ("length", "batch", "adapters", "clients")
TOKENS = (16, 32, 64, 128, 256)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
MIXED = (1, 2, 4, 8, 16, 32)
CALLERS = (1, 2, 4, 8, 16, 32, 64)
AT_ONCE = 32  # pairs, where something else grows
HYPOTHESIS = 16  # tokens at most, where a pair's length is given
REQUESTS_EACH = 4  # at least, of a caller in a round


@dataclass(frozen=True)
class Point:
    """One point of a series; `tokens`: of each pair, 0 = as the mix has them."""

    series: str
    at: int
    batch: int
    adapters: int = 1
    tokens: int = 0

    @property
    def title(self) -> str:
        """That of its line of points."""
        return {
            LENGTH: f"Tokens in a pair, {self.batch} at a time",
            BATCH: "Pairs at a time",
            ADAPTERS: f"Adapters in turn, {self.batch} pairs at a time",
        }[self.series]


@dataclass(frozen=True)
class Growing:
    """What the engine's process measures. `base`: a directory that `checkpoint.find` knows."""

    base: str
    references: Path
    series: Sequence[str]
    mix: str
    rounds: int
    pairs: int  # in a round of a point, at least


Met = dict[Point, list[dict[str, float]]]  # rounds


# --- the engine, in a process of its own ----------------------------------------------------------


def measure(task: Growing) -> Met:
    """Every point in turn, in rounds."""
    from adapters_app.nli.openvino_engine import OpenVinoEngine  # noqa: PLC0415  this process only

    base = known_base(task.base, task.references)
    engine = OpenVinoEngine(base)
    predictors = [engine.predictor(each) for each in real_sized(base, [serving.RANK] * max(MIXED))]
    sized, texts = Sized(base.encoder, seed=1), Texts(task.mix, seed=1)
    asked = points(task.series, base.reference.max_length)
    met: Met = {point: [] for point in asked}
    for turn in range(-1, task.rounds):
        for point in random.Random(turn).sample(asked, len(asked)):
            count = -(-task.pairs // point.batch) * point.batch
            pairs = sized.pairs(point.tokens, count) if point.tokens else texts.pairs(count)
            logits = in_turn(engine, predictors[: point.adapters])
            found = closed_loop(logits, pairs, point.batch)
            if turn >= 0:  # kernels are made in the one before
                met[point].append(found)
    return met


def points(series: Sequence[str], longest: int) -> list[Point]:
    """Of these series, the first of each first; pairs of up to `longest` tokens."""
    lengths = [tokens for tokens in TOKENS if tokens <= longest]
    every = [
        *(Point(LENGTH, tokens, 1, tokens=tokens) for tokens in lengths),
        *(Point(LENGTH, tokens, AT_ONCE, tokens=tokens) for tokens in lengths),
        *(Point(BATCH, batch, batch) for batch in BATCHES),
        *(Point(ADAPTERS, count, AT_ONCE, adapters=count) for count in MIXED),
    ]
    return [point for point in every if point.series in series]


class Sized:
    """Pairs of an exact length, of the guard set's words that are one token each."""

    def __init__(self, encoder: PairEncoder, seed: int) -> None:
        self._random = random.Random(seed)
        (nothing,) = encoder.encode([("", "")])
        self._special = len(nothing)
        known = sorted({word for pair in guard.load().pairs for word in pair[0].split()})
        encoded = encoder.encode([(word, "") for word in known])
        lengths = [len(each) - self._special for each in encoded]
        self._words = [word for word, tokens in zip(known, lengths, strict=True) if tokens == 1]

    def pairs(self, tokens: int, count: int) -> list[Pair]:
        """`count` pairs of so many tokens in all, the special ones counted."""
        room = tokens - self._special
        hypothesis = min(HYPOTHESIS, room // 3)
        return [(self._text(room - hypothesis), self._text(hypothesis)) for _ in range(count)]

    def _text(self, tokens: int) -> str:
        return " ".join(self._random.choices(self._words, k=tokens))


# --- the server -----------------------------------------------------------------------------------


def over_http(home: Path, options: argparse.Namespace) -> dict[int, list[Mapping[str, Any]]]:
    """Callers → rounds of what they saw; who is refused comes back when told."""
    met: dict[int, list[Mapping[str, Any]]] = {callers: [] for callers in CALLERS}
    with (
        Traffic(options.mix) as traffic,
        ours(make_site(home, str(home / serving.MODEL)), "ours") as server,
    ):
        server.wait_until_it_answers()
        for turn in range(-1, options.rounds):
            for callers in random.Random(turn).sample(CALLERS, len(CALLERS)):
                count = max(options.pairs, REQUESTS_EACH * callers)
                bodies = traffic.bodies(server, count)
                outcome = traffic.closed(server.target, bodies, callers, patient=True)
                if turn >= 0:
                    met[callers].append(load.summary(outcome, 1))
    return met


# --- the report -----------------------------------------------------------------------------------


def growth(first: Rounds, rounds: Rounds) -> float:
    """How many times as long a pair takes as at the first point: the median over rounds."""
    both = zip(first, rounds, strict=True)
    return statistics.median(one["pairs_per_s"] / this["pairs_per_s"] for one, this in both)


def engine_tables(met: Met) -> tuple[list[Table], list[dict[str, Any]]]:
    """A table for each line of points; and all points with their medians and rounds."""
    firsts: dict[str, Point] = {}
    tables: dict[str, Table] = {}
    figures = []
    for point, rounds in met.items():
        first = firsts.setdefault(point.title, point)
        if first == point:
            columns = ("pairs/s", "p50 ms of a request", f"a pair's time by that of {point.at}")
            tables[point.title] = table_of(point.title, (point.series,), columns)
        rate, p50 = (load.median(rounds, figure) for figure in ("pairs_per_s", "p50_ms"))
        grown = growth(met[first], rounds)
        row = f"{rate:.0f}", f"{p50:.1f}", f"{grown:.2f} ×"
        tables[point.title].add_row(str(point.at), *row)
        found = {"pairs_per_s": rate, "p50_ms": p50, "growth": grown, "rounds": rounds}
        figures.append({**asdict(point), **found})
    return list(tables.values()), figures


def client_table(met: Mapping[int, Rounds]) -> Table:
    """A line for each number of callers."""
    table = table_of("Callers of single pairs, our server", (CLIENTS,), SHOWN)
    for callers, rounds in met.items():
        table.add_row(str(callers), *shown(rounds))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few pairs, one round")
    parser.add_argument("--shape", choices=("minilm", *serving.DEBERTA), default="minilm")
    parser.add_argument("--model", type=Path, help="a checkpoint's directory instead of a shape")
    parser.add_argument("--mix", choices=sorted(serving.MIXES), default="short")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=256, help="in a round of a point, at least")
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.json")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.pairs = 1, 32
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the server is, too
    os.environ |= serving.ALLOCATOR
    report = Report(
        figures={"options": {name: str(value) for name, value in vars(options).items()}}
    )
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        serving.prepare(options.shape, home, model=options.model)
        if series := [part for part in options.parts if part != CLIENTS]:
            sizes = options.mix, options.rounds, options.pairs
            task = Growing(str(home / serving.MODEL), home / serving.REFERENCES, series, *sizes)
            report.tables, report.figures["points"] = engine_tables(in_own_process(measure, task))
        if CLIENTS in options.parts:
            report.figures[CLIENTS] = over_http(home, options)
            report.tables.append(client_table(report.figures[CLIENTS]))
    return tell(report, options.out)


if __name__ == "__main__":
    sys.exit(main())
