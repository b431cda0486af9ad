"""Another adapter: how long until it answers, what it holds, and what mixing many costs.

    python benchmarks/swapping.py [--quick] [--shape minilm|xsmall|small | --model DIR]
        [--mix short|streams] [--swaps 200] [--processes 2] [--parts swap memory mixed agreement]
        [--data DIR] [--out FILE]

swap: processes that answer as a web process does ask one pair again and again while versions are
promoted. Added latency is that of the first answer by the new version, less the median of those
before and after. A version is resident (memory); or the host has its verified copy (disk); or it
is in the artifact store only (storage). The rival is PEFT on the same model, in the same run.
memory: growth of a process that loads many versions, by what their parameters take.
mixed: 32 rows of one adapter, of eight, and of eight of other ranks; each row against its answer
alone; a row that is refused. agreement: distance from PEFT's answers in fp32, on the guard set; and
what calibrators fitted on torch's logits lose where another engine serves. With DIR, of adapters
that are trained on rows of stream/*.jsonl.gz, on rows of guard/*.jsonl.gz.
"""

import argparse
import ctypes
import itertools
import json
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

import numpy as np
from django.conf import settings
from django.core.management import call_command
from rich.console import Console
from rich.table import Table

import benchmarks.home  # noqa: F401  Django first

# isort: split
from adapters_app import storage
from adapters_app.models import AdapterVersion
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.encoding import Pair
from adapters_app.nli.openvino_runtime import Core
from adapters_app.nli.own_process import in_own_process, resident_mb
from benchmarks.serving import ALLOCATOR, DEBERTA, MIXES, Texts, base_name
from benchmarks.versions import drawn, promote, register
from inference import engine

SWAP, MEMORY, MIXED, AGREEMENT = PARTS = ("swap", "memory", "mixed", "agreement")
# Where the new version is when it is promoted; and the rival's two ways.
RESIDENT, DISK, STORAGE = PLACES = ("memory", "disk", "storage")
SET, LOAD = RIVALS = ("set_adapter", "load_adapter + set_adapter")
STEADY = 5  # answers of the same pair before a swap, and after its first
STAYING, GOING = 2, 8  # versions of each crowd: of the latter more than stay resident
SETTLING = 8  # versions loaded before memory is read: what loading itself needs is there then
PER_ROUND = 20  # swaps of an arm, before it is another's turn


@dataclass(frozen=True)
class Swap:
    """Seconds. `steady`: of the same pair in the same process, before and after."""

    first: float
    steady: list[float]
    resident: bool  # before it was promoted
    compiled: int = 0  # graphs, since the process began


@dataclass(frozen=True)
class Awaited:
    """What a server is asked: answer `pair` until version `number` does."""

    pair: Pair
    number: int
    digest: str


@dataclass(frozen=True)
class PeftSwap:
    """What the rival is asked: `how` is one of RIVALS."""

    pair: Pair
    directory: str
    how: str


# --- a server's process ---------------------------------------------------------------------------


def serve(pipe: Connection) -> None:
    """Answer what is awaited until the parent is done; says first what answers."""
    compile_model = Core.compile_model
    with mock.patch.object(
        Core, "compile_model", autospec=True, side_effect=compile_model
    ) as compiling:
        engine.warm()
        pipe.send(engine.loaded().engine)
        while (asked := pipe.recv()) is not None:
            before = [_timed(asked.pair)[0] for _ in range(STEADY)]
            resident = asked.digest in engine.loaded().digests
            pipe.send(None)  # may be promoted now
            first, number = _timed(asked.pair)
            while number != asked.number:
                first, number = _timed(asked.pair)
            after = [_timed(asked.pair)[0] for _ in range(STEADY)]
            # The first answer before it may have paid for a length never seen.
            pipe.send(Swap(first, [*before[1:], *after], resident, compiling.call_count))


def _timed(pair: Pair) -> tuple[float, int | None]:
    """Seconds of an answer by what serves, and the version that gave it."""
    began = time.perf_counter()
    answer = engine.answer(engine.ACTIVE, [pair])
    return time.perf_counter() - began, answer.version


class Server:
    """A process that answers; it sleeps while it is not asked."""

    def __init__(self, target: Any, *arguments: Any) -> None:
        fresh = multiprocessing.get_context("spawn")
        self._pipe, theirs = fresh.Pipe()
        self._process = fresh.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.engine: str = self.hear()

    def say(self, asked: Any) -> None:
        self._pipe.send(asked)

    def ask(self, asked: Any) -> Any:
        self.say(asked)
        return self.hear()

    def hear(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError as error:
            self._process.join()
            raise SystemExit(f"a server ended with {self._process.exitcode}") from error

    def close(self) -> None:
        self.say(None)
        self._process.join()


# --- swaps ----------------------------------------------------------------------------------------


class Crowd:
    """Processes that all see every promotion, and the versions that are promoted in turn."""

    def __init__(self, count: int, versions: Sequence[AdapterVersion], pair: Pair) -> None:
        """`versions`: STAYING + GOING of them, no other crowd's."""
        self.members = [Server(serve) for _ in range(count)]
        self._staying = itertools.cycle(versions[:STAYING])
        self._going = itertools.cycle(versions[STAYING:])
        for _ in versions[STAYING:]:  # this host has copies of all of them then
            self._swap(next(self._going), pair)

    def round(self, place: str, pairs: Sequence[Pair]) -> list[Swap]:
        """A swap for each pair, as every process met it."""
        if place == RESIDENT:
            for _ in range(STAYING):
                self._swap(next(self._staying), pairs[0])
        return [met for pair in pairs for met in self._placed(place, pair)]

    def close(self) -> None:
        for server in self.members:
            server.close()

    def _placed(self, place: str, pair: Pair) -> list[Swap]:
        version = next(self._staying if place == RESIDENT else self._going)
        if place == STORAGE:
            shutil.rmtree(local_copies() / version.artifact_digest)
        met = self._swap(version, pair)
        assert all(each.resident == (place == RESIDENT) for each in met)
        return met

    def _swap(self, version: AdapterVersion, pair: Pair) -> list[Swap]:
        for server in self.members:
            server.say(Awaited(pair, version.number, version.artifact_digest))
        for server in self.members:
            server.hear()
        promote(version)
        return [server.hear() for server in self.members]


def local_copies() -> Path:
    """Where the servers keep verified copies. This process is another host: it has its own."""
    return Path(settings.LYRA_HOME) / "artifact-cache"


def measure_swaps(
    versions: Sequence[AdapterVersion], options: argparse.Namespace
) -> dict[str, Any]:
    """`options.swaps` swaps of every arm, in rounds that take turns."""
    from benchmarks.peft_swaps import serve_peft  # noqa: PLC0415  a server needs no torch

    texts = Texts(options.mix, seed=2)
    (first,) = texts.pairs(1)
    crowds = {
        count: Crowd(count, versions[number * (STAYING + GOING) :][: STAYING + GOING], first)
        for number, count in enumerate(sorted({1, options.processes}))
    }
    directories = [str(storage.fetch(version.artifact_digest)) for version in versions]
    resident = settings.LYRA_RESIDENT_ADAPTERS + 1
    rival = Server(serve_peft, settings.LYRA_BASE_MODEL, directories[0], resident)
    of_rival = {
        SET: itertools.cycle(directories[:STAYING]),
        LOAD: itertools.cycle(directories[STAYING:][:GOING]),
    }
    arms = [*itertools.product(crowds, PLACES), *itertools.product([None], RIVALS)]
    met: dict[str, list[Swap]] = {called(*arm): [] for arm in arms}
    for turn, count in enumerate(rounds(options.swaps)):
        for crowd, how in random.Random(turn).sample(arms, len(arms)):
            pairs = texts.pairs(count)
            if crowd is None:
                swaps = [rival.ask(PeftSwap(pair, next(of_rival[how]), how)) for pair in pairs]
            else:
                swaps = crowds[crowd].round(how, pairs)
            met[called(crowd, how)] += swaps
    answering = crowds[1].members[0].engine
    rival.close()
    for each in crowds.values():
        each.close()
    found = {name: summary(swaps) for name, swaps in met.items()}
    return {"engine": answering, "arms": found, "ratios": ratios(found)}


def rounds(swaps: int) -> list[int]:
    """Swaps of an arm in each round; they sum to all."""
    return [min(PER_ROUND, swaps - done) for done in range(0, swaps, PER_ROUND)]


def called(processes: int | None, how: str) -> str:
    """Name of an arm: how the version was found, by how many processes at once; or the rival's."""
    return f"{how} ({processes} at once)" if processes else f"PEFT {how}"


def summary(swaps: Sequence[Swap]) -> dict[str, float]:
    """Milliseconds. `noise_p95_ms`: how far above its median a steady answer is."""
    added = [1000 * (swap.first - statistics.median(swap.steady)) for swap in swaps]
    noise = [
        1000 * (each - statistics.median(swap.steady)) for swap in swaps for each in swap.steady
    ]
    return {
        "swaps": len(swaps),
        "steady_p50_ms": 1000 * statistics.median(x for swap in swaps for x in swap.steady),
        "noise_p95_ms": float(np.percentile(noise, 95)),
        "added_p50_ms": float(np.percentile(added, 50)),
        "added_p95_ms": float(np.percentile(added, 95)),
        "compiled": max(swap.compiled for swap in swaps) - min(swap.compiled for swap in swaps),
    }


def ratios(arms: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """How many times the rival's added latency is ours, p95; None where ours adds nothing."""
    return {
        f"{rival} vs {place}": arms[called(None, rival)]["added_p95_ms"] / ours
        if ours > 0
        else None
        for rival, place in ((SET, RESIDENT), (LOAD, DISK), (LOAD, STORAGE))
        for ours in [arms[called(1, place)]["added_p95_ms"]]
    }


# --- memory ---------------------------------------------------------------------------------------


def measure_memory(of: tuple[str, int]) -> dict[str, Any]:
    """Bytes per version that the server holds beside others: grown by, and as it reports.

    `of`: the engine, as LYRA_ENGINE names it, and how many versions are registered.
    """
    wanted, count = of
    settings.LYRA_ENGINE, settings.LYRA_RESIDENT_ADAPTERS = wanted, count
    names = [f"v{number}" for number in range(1, count + 1)]
    for name in names[:SETTLING]:
        engine.serving_predictor(name)
    ctypes.CDLL(None).malloc_trim(0)  # or versions would go where loading the base left room
    before = resident_mb()
    held = [engine.serving_predictor(name).predictor for name in names[SETTLING:]]
    after = resident_mb()
    if before is None or after is None:
        raise SystemExit("memory is read from /proc, which is not here")
    version = AdapterVersion.objects.earliest("number")
    parameters = version.trainable_parameters * np.dtype(np.float32).itemsize
    reported = statistics.mean(predictor.resident_bytes for predictor in held)
    return {
        "engine": engine.loaded().engine,
        "adapters": len(held),
        "parameters_bytes": parameters,
        "grown_by_parameters": 1e6 * (after - before) / len(held) / parameters,
        "reported_by_parameters": reported / parameters,
    }


# --- the run --------------------------------------------------------------------------------------


def configure(options: argparse.Namespace) -> str:
    """Have this process and those it starts answer with the wanted base; returns its name."""
    home = Path(settings.LYRA_HOME)
    name = base_name(options.shape, options.model, home)
    settings.LYRA_BASE_MODEL = os.environ["LYRA_BASE_MODEL"] = name
    settings.LYRA_ARTIFACT_CACHE = home / "artifact-cache-of-the-releaser"
    os.environ |= ALLOCATOR | {"LYRA_LOG_LEVEL": "WARNING"}
    return name


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every part that was asked for."""
    from benchmarks import mixing  # noqa: PLC0415  a server's process needs no torch

    name = configure(options)
    references = settings.LYRA_REFERENCES
    in_own_process(mixing.store_reference, (name, references))
    found: dict[str, Any] = {}
    if {SWAP, MEMORY} & set(options.parts):
        call_command("migrate", verbosity=0)
        versions = register(
            name, drawn(name, max(2 * (STAYING + GOING), SETTLING + options.adapters))
        )
    if SWAP in options.parts:
        found[SWAP] = measure_swaps(versions, options)
    if MEMORY in options.parts:
        of_torch = min(len(versions), 3 * SETTLING)  # folded matrices: tens of times as large
        found[MEMORY] = [
            in_own_process(measure_memory, of)
            for of in ((engine.AUTO, len(versions)), (engine.TORCH, of_torch))
        ]
    if MIXED in options.parts:
        found[MIXED] = [
            in_own_process(
                mixing.measure,
                mixing.Mixing(name, references, each, options.mix, options.rounds),
            )
            for each in mixing.ENGINES
        ]
    if AGREEMENT in options.parts:
        if options.data:
            of = mixing.Learning(name, options.data, options.agreeing, options.rows, options.config)
            adapters = in_own_process(mixing.learnt, of)
            asked = mixing.of_data(options.data, options.asked)
        else:
            adapters = mixing.drawn(name, references, options.agreeing)
            asked = mixing.of_guard(options.every)
        task = mixing.Agreeing(name, references, asked, adapters)
        found[AGREEMENT] = in_own_process(mixing.agreement, task)
    return found


def tables(found: Mapping[str, Any]) -> list[Table]:
    """One for each part."""
    made = []
    if SWAP in found:
        columns = ("steady_p50_ms", "noise_p95_ms", "added_p50_ms", "added_p95_ms")
        heads = (column.replace("_", " ") for column in columns)
        table = Table("swap", *heads, "compiled", title=found[SWAP]["engine"])
        for name, row in found[SWAP]["arms"].items():
            table.add_row(name, *(f"{row[each]:.2f}" for each in columns), str(row["compiled"]))
        made.append(table)
    if MEMORY in found:
        table = Table("memory", "adapters", "kB of parameters", "grown by", "reported")
        for row in found[MEMORY]:
            shares = (f"{row[f'{how}_by_parameters']:.2f} ×" for how in ("grown", "reported"))
            kilobytes = f"{row['parameters_bytes'] / 1000:.0f}"
            table.add_row(row["engine"], str(row["adapters"]), kilobytes, *shares)
        made.append(table)
    if MIXED in found:
        mixtures = list(found[MIXED][0]["cost"])
        table = Table("mixed", "pairs/s", *mixtures[1:], "max Δlogit", "max Δp", "bad row")
        for row in found[MIXED]:
            table.add_row(
                row["engine"],
                f"{row['pairs_per_s'][mixtures[0]]:.0f}",
                *(f"{row['cost'][mixture]:.2f} ×" for mixture in mixtures[1:]),
                f"{row['max_dlogit']:.1e}",
                f"{row['max_dp']:.1e}",
                "fails alone" if row["bad_row"]["fails_alone"] else "does not fail alone",
            )
        made.append(table)
    if AGREEMENT in found:
        told = found[AGREEMENT]
        made.append(figure_table("agreement with fp32 PEFT", told["engines"]))
        made.append(figure_table(f"{told['serving']}, by adapter", told["adapters"]))
        calibrated = figure_table("temperature of half the pairs", told["calibration"])
        calibrated.title = f"Fitted on logits of torch or of {told['serving']}, which answers"
        made.append(calibrated)
    return made


def figure_table(what: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """A line for each row, which all have the same figures."""
    columns = tuple(next(iter(rows.values())))
    table = Table(what, *(column.replace("_", " ") for column in columns))
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:.5f}" for column in columns))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--shape", choices=("minilm", *DEBERTA), default="minilm")
    parser.add_argument("--model", type=Path, help="a checkpoint's directory instead of a shape")
    parser.add_argument("--mix", choices=sorted(MIXES), default="short")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--swaps", type=int, default=200, help="of every arm")
    parser.add_argument("--processes", type=int, default=2, help="that meet a swap at once")
    parser.add_argument("--adapters", type=int, default=64, help="to measure memory with")
    parser.add_argument("--rounds", type=int, default=10, help="of mixed batches")
    parser.add_argument("--agreeing", type=int, default=6, help="adapters compared with PEFT")
    parser.add_argument("--data", type=Path, help="with stream/ and guard/, *.jsonl.gz each")
    parser.add_argument("--rows", type=int, default=300, help="of a stream, to train an adapter on")
    parser.add_argument("--asked", type=int, default=3000, help="rows of guard/")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.every, options.config = 1, TrainConfig()  # of the guard set's pairs; of a training
    if options.quick:
        options.swaps, options.adapters, options.rounds = 20, 16, 3
        options.agreeing, options.every = 2, 10
        options.rows, options.asked = options.rows // 10, options.asked // 10
        options.config = replace(options.config, min_steps=options.config.min_steps // 10)
    found = measure(options)
    console = Console(width=150)
    for table in tables(found):
        console.print(table)
    for name, ratio in found.get(SWAP, {}).get("ratios", {}).items():
        console.print(f"{name}: {ratio:.1f} ×" if ratio else f"{name}: –", highlight=False)
    if options.out:
        report = {"options": vars(options), **found}
        options.out.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
