"""The loop on real data: what do N verdicts of a domain teach, and what is forgotten?

    python benchmarks/loop.py --data DIR [--verdicts 300] [--stream NAME …] [--out FILE]

DIR has stream/*.jsonl.gz and guard/*.jsonl.gz (premise, hypothesis, label, group). For each stream
a fresh system in a temporary home: the base predicts, a simulated person judges every pair drawn
from some of the groups, an adapter is trained, promoted if its verdict allows, and base and adapter
answer the groups held out and the guard sets. All of it by the project's own commands.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

from benchmarks.rows import Row, read, texts

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = 0.3  # share of a stream's groups that nobody judges
TABLE_WIDTH = 140  # also where the output goes to a file
PASSING = {"better", "not_worse"}


class System:
    """A Lyra of its own in `home`, driven by its commands."""

    def __init__(self, home: Path) -> None:
        self.home = home
        outside = ("DATABASE_URL", "LYRA_ARTIFACTS", "LYRA_COMMAND_USER")
        self._environment = {k: v for k, v in os.environ.items() if k not in outside}
        self._environment["LYRA_HOME"] = str(home)
        self._manage("migrate", "--verbosity=0")

    def run(self, *command: str) -> dict[str, Any]:
        """Result of `manage.py COMMAND --json`."""
        result: dict[str, Any] = json.loads(self._manage(*command, "--json").splitlines()[-1])
        return result

    def judge(self, rows: Sequence[Row]) -> dict[str, Any]:
        """A person judges all of `rows`; what serves is asked what it thinks of them first."""
        verdicts = [
            {
                "id": f"{row['group']}-{number}",
                "page_id": row["group"],
                "domain": row["source"],
                "premise": row["premise"],
                "hypothesis": row["hypothesis"],
                "correct_label": row["label"],
            }
            for number, row in enumerate(rows)
        ]
        path = self._write("verdicts.jsonl", verdicts)
        return self.run(
            "import_corrections",
            path,
            "--accept",
            "--predict-missing",
            "--sampling=complete",
            "--partial",
        )

    def measure(self, rows: Sequence[Row], adapter: str) -> dict[str, float]:
        """Accuracy, macro-F1, log loss and ECE of `adapter` on `rows`."""
        answer = self.run("predict", self._write("rows.jsonl", rows), "--adapter", adapter)
        return {name: answer[name] for name in ("accuracy", "macro_f1", "log_loss", "ece")}

    def _write(self, name: str, rows: Iterable[object]) -> str:
        path = self.home / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    def _manage(self, *command: str) -> str:
        return subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *command],
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout


def measure_stream(
    rows: Sequence[Row], guard: Sequence[Row], *, verdicts: int, seed: int
) -> dict[str, Any]:
    """One round of the loop on one stream; figures of base and adapter on held-out groups."""
    seen, held_out = split(rows, verdicts=verdicts, seed=seed)
    with tempfile.TemporaryDirectory(prefix="lyra-bench-") as home:
        system = System(Path(home))
        imported = system.judge(seen)
        started = time.monotonic()
        trained = system.run("train_adapter", "--wait", "--reason", "benchmark")
        seconds = time.monotonic() - started
        version, verdict = trained["version"], trained["verdict"]
        if verdict in PASSING and not trained["guard_fails"]:
            system.run("promote_adapter", version, "--reason", "benchmark")
        return {
            "verdicts": imported["accepted"],
            "corrected": imported["corrected"],
            "held_out": len(held_out),
            "version_verdict": verdict,
            "training_seconds": seconds,
            "base": system.measure(held_out, "base"),
            "adapter": system.measure(held_out, version),
            "guard_rows": len(guard),
            "guard_base": system.measure(guard, "base"),
            "guard_adapter": system.measure(guard, version),
        }


def split(rows: Sequence[Row], *, verdicts: int, seed: int) -> tuple[list[Row], list[Row]]:
    """(`verdicts` rows to judge, rows to measure on): no group on both sides, nor any text."""
    draw = random.Random(seed)
    groups = sorted({row["group"] for row in rows})
    draw.shuffle(groups)
    outside = set(groups[: round(HELD_OUT * len(groups))])
    inside = [row for row in rows if row["group"] not in outside]
    draw.shuffle(inside)
    seen = inside[:verdicts]
    known = texts(seen)
    held_out = [row for row in rows if row["group"] in outside and known.isdisjoint(texts([row]))]
    return seen, held_out


def table(results: dict[str, dict[str, Any]]) -> Table:
    """One line per stream."""
    shown = Table(title="accuracy / macro-F1 on groups nobody judged, and on general pairs")
    for column in ("stream", "verdicts", "by its own verdict"):
        shown.add_column(column, no_wrap=True)
    for column in ("n", "base", "adapter", "general n", "base", "adapter", "seconds"):
        shown.add_column(column, justify="right", no_wrap=True)
    for stream, result in results.items():
        shown.add_row(
            stream,
            str(result["verdicts"]),
            result["version_verdict"],
            str(result["held_out"]),
            _both(result["base"]),
            _both(result["adapter"]),
            str(result["guard_rows"]),
            _both(result["guard_base"]),
            _both(result["guard_adapter"]),
            f"{result['training_seconds']:.0f}",
        )
    return shown


def _both(figures: dict[str, float]) -> str:
    return f"{figures['accuracy']:.3f} / {figures['macro_f1']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--verdicts", type=int, default=300)
    parser.add_argument("--stream", action="append", help="only this one; may be given again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guard-rows", type=int, default=2000, help="drawn from guard/")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "loop.json")
    options = parser.parse_args()

    guard = read((options.data / "guard").glob("*.jsonl.gz"))
    guard = random.Random(options.seed).sample(guard, min(options.guard_rows, len(guard)))
    results = {}
    for path in sorted((options.data / "stream").glob("*.jsonl.gz")):
        stream = path.name.removesuffix(".jsonl.gz")
        if not options.stream or stream in options.stream:
            results[stream] = measure_stream(
                read([path]), guard, verdicts=options.verdicts, seed=options.seed
            )
    Console(width=TABLE_WIDTH).print(table(results))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
