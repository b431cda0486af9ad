"""What a GPU makes of it: training, a decoder's training, answers, against what it can multiply.

    python benchmarks/gpu.py [--device cuda] [--arms ARM …] [--out FILE]
    python benchmarks/gpu.py --device cpu --quick       # a trial of the program, on tiny models

Arms: 1,000 synthetic verdicts trained, all folds, and shadow-evaluated, on the bundled base and on
DeBERTa-v3-small's shape; LoRA on Qwen2.5-3B's shape, with and without gradient checkpointing; and
answers in bulk and one by one, ours and Hugging Face's pipeline's, beside the bound that a product
of large matrices, measured in the same run, sets. All through the project's own functions. Each arm
is a process of its own: its peak memory is its own, and where it fails the others go on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent

MACHINE, TRAIN, DECODER, SERVE = "machine", "train", "qwen", "serve"
MINILM, SMALL = "minilm", "small"
PLAIN, CHECKPOINTED = "plain", "checkpointed"
REFERENCE = "ours fp32"  # what the other answers are held to
PIPELINES = ("pipeline fp32", "pipeline fp16", "pipeline bf16")
OURS = (REFERENCE, "ours bf16", "ours bf16 compiled", "ours bf16 CUDA graphs")
SHAPES = (MINILM, SMALL)
ARMS = (
    *(f"{TRAIN} {shape}" for shape in SHAPES),
    *(f"{DECODER} {mode}" for mode in (PLAIN, CHECKPOINTED)),
    *(f"{SERVE} {shape} {way}" for shape in SHAPES for way in (*PIPELINES, *OURS)),
)
FAILED = "failed"
Results = dict[str, dict[str, Any]]


def ask(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """What an arm measured, in a process of its own; or why it did not."""
    command = [sys.executable, "-m", "benchmarks.gpu_arms", arm, "--device", options.device]
    done = subprocess.run(
        command + ["--quick"] * options.quick, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        return {FAILED: said[-1] if said else f"ended with {done.returncode}"}
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def compare(results: Results) -> None:
    """Beside every arm that answers: its share of the bound, its distance, its ratios."""
    tflops = results[MACHINE]["tflops"]
    for name, row in results.items():
        kind, _, rest = name.partition(" ")
        if kind != SERVE or FAILED in row:
            continue
        shape, _, way = rest.partition(" ")
        precision = next(each for each in tflops if each in way)
        row["bound_pairs_per_s"] = tflops[precision] * 1e12 / row["flops_per_pair"]
        row["share_of_bound"] = row["best_pairs_per_s"] / row["bound_pairs_per_s"]
        row["max_dp"] = _distance(row, results.get(f"{SERVE} {shape} {REFERENCE}", {}))
        row["ratios"] = _ratios(
            row, {p: results.get(f"{SERVE} {shape} {p}", {}) for p in PIPELINES}
        )
    for row in results.values():
        row.pop("probabilities", None)


def _distance(row: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    if "probabilities" not in reference:
        return None
    away = np.abs(np.array(row["probabilities"]) - np.array(reference["probabilities"]))
    return float(away.max())


def _ratios(
    row: Mapping[str, Any], pipelines: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Bulk: best pass against best pass. p50: how many times shorter."""
    return {
        name: {
            "bulk": row["best_pairs_per_s"] / theirs["best_pairs_per_s"],
            "p50": theirs["p50_ms"] / row["p50_ms"],
        }
        for name, theirs in pipelines.items()
        if "best_pairs_per_s" in theirs
    }


# Column → key of an arm's figures, and how it is written.
COLUMNS: dict[str, dict[str, tuple[str, str]]] = {
    TRAIN: {
        "s per 1,000 verdicts": ("seconds_per_1000_verdicts", ".1f"),
        "of it fits": ("fit_seconds_per_1000_verdicts", ".1f"),
        "bf16": ("bf16", ""),
        "base MB": ("idle_mb", ".0f"),
        "peak MB": ("peak_mb", ".0f"),
    },
    DECODER: {
        "parameters": ("parameters", ",d"),
        "trained": ("trainable_parameters", ",d"),
        "batch": ("batch", "d"),
        "mean tokens": ("mean_tokens", ".0f"),
        "steps/s": ("steps_per_s", ".2f"),
        "base MB": ("idle_mb", ".0f"),
        "peak MB": ("peak_mb", ".0f"),
    },
    SERVE: {
        "pairs/s": ("best_pairs_per_s", ",.0f"),
        "bound": ("bound_pairs_per_s", ",.0f"),
        "share": ("share_of_bound", ".1%"),
        "tokeniser alone": ("tokeniser_pairs_per_s", ",.0f"),
        "p50 ms": ("p50_ms", ".2f"),
        "peak MB": ("peak_mb", ".0f"),
        "max Δp": ("max_dp", ".4f"),
    },
}


def tables(results: Results) -> list[Table]:
    """One for each kind of arm."""
    made = []
    for kind, columns in COLUMNS.items():
        rows = {name: row for name, row in results.items() if name.split()[0] == kind}
        table = Table("arm", *columns)
        for name, row in rows.items():
            shown = [_written(row.get(key), form) for key, form in columns.values()]
            table.add_row(
                name.removeprefix(f"{kind} "), *([row[FAILED]] if FAILED in row else shown)
            )
        if rows:
            made.append(table)
    return made


def _written(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 …; cpu only with --quick")
    parser.add_argument("--quick", action="store_true", help="tiny models: a trial of the program")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=ARMS, metavar="ARM")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    options = parser.parse_args()
    if not options.quick and options.device == "cpu":
        parser.error("a CPU is no GPU: with --device cpu give --quick (benchmarks/serving.py)")
    results = {MACHINE: ask(MACHINE, options)}
    if FAILED in results[MACHINE]:
        raise SystemExit(results[MACHINE][FAILED])
    console = Console()
    for arm in options.arms:
        results[arm] = ask(arm, options)
        console.print(f"{arm}: {results[arm].get(FAILED, 'measured')}", highlight=False)
    compare(results)
    found = results[MACHINE]
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in found["tflops"].items())
    console.print(f"{found['device']}, torch {found['torch']}; TFLOP/s: {rates}", highlight=False)
    for table in tables(results):
        console.print(table)
    asked = {"device": options.device, "quick": options.quick}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"options": asked, "arms": results}, indent=2) + "\n")
    return any(FAILED in row for row in results.values())


if __name__ == "__main__":
    sys.exit(main())
