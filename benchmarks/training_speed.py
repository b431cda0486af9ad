"""Training one adapter: how fast at equal steps, and does speed cost accuracy?

    python benchmarks/training_speed.py [--quick] [--shape minilm|xsmall|small | --model DIR]
        [--rounds 5] [--pairs 256] [--arms ARM …] [--out FILE]
        [--data DIR [--stream NAME …] [--verdicts 300] [--seeds 5] [--splits 1]]

Arms: ours, without anchors, in the precision it would choose and in fp32; Hugging Face's Trainer
with PEFT, where a batch is as long as its longest pair, in fp32 and in bf16; and the Trainer with
all pairs padded to 256 tokens. All with the same rank, alpha, dropout, target modules, learning
rate, schedule, clipping, batches of 8 and steps. Speed is that of synthetic pairs of the streams'
lengths, each fit in a process of its own, rounds of all arms in turn.

With --data (stream/*.jsonl.gz: premise, hypothesis, label, group), also ours against the Trainer on
real verdicts at equal steps: accuracy on groups held out, over seeds, and the paired difference.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student
from transformers import set_seed

import benchmarks.home  # noqa: F401  Django first

# isort: split
from adapters_app.nli.artifact import Artifact
from adapters_app.nli.base_model import Base, load_base
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.data import Example
from adapters_app.nli.encoding import Pair
from adapters_app.nli.finetuning import (
    ALPHA,
    DROPOUT,
    RANK,
    adapter_of,
    train_cross_encoder,
    with_adapter,
)
from adapters_app.nli.own_process import in_own_process
from adapters_app.nli.predict import Predictor
from adapters_app.nli.train import train
from benchmarks import comparing, protocol
from benchmarks.comparing import Interval
from benchmarks.rows import Row, read
from benchmarks.serving import ALLOCATOR, DEBERTA, Texts, base_name
from corrections.labels import LABELS, Label

OURS, OURS_FP32 = "ours", "ours fp32"
TRAINER, TRAINER_BF16, PADDED = "Trainer", "Trainer bf16", "Trainer padded"
WINDOW = 256  # tokens: longer pairs are cut, and to this PADDED pads every pair
BATCH = 8
WARM_UP_BATCHES = 2  # trained on before the clock starts: kernels are made in them


@dataclass(frozen=True)
class Fit:
    """One training, and the pairs that what comes of it answers."""

    base: str
    arm: str
    pairs: Sequence[Pair]
    labels: Sequence[Label]
    learning_rate: float
    epochs: int = 1
    seed: int = 0
    asked: Sequence[Pair] = ()


@dataclass(frozen=True, eq=False)
class Fitted:
    """`answers`: (asked,) columns of LABELS."""

    pairs_per_s: float
    answers: np.ndarray


# --- one fit, in a process of its own -------------------------------------------------------------


def carry_out(fit: Fit) -> Fitted:
    """Train, and answer with it; only the training is timed."""
    loaded = load_base(fit.base)
    base = replace(loaded, encoder=loaded.encoder.limited_to(WINDOW))
    few = WARM_UP_BATCHES * BATCH
    ARMS[fit.arm](base, replace(fit, pairs=fit.pairs[:few], labels=fit.labels[:few], epochs=1))
    began = time.perf_counter()
    learnt = ARMS[fit.arm](base, fit)
    seconds = time.perf_counter() - began
    logits = Predictor(base, learnt).logits(fit.asked)
    return Fitted(fit.epochs * len(fit.pairs) / seconds, logits.argmax(axis=1))


def config_of(fit: Fit) -> TrainConfig:
    """What our kernel and the Trainer have in common; nothing of what is ours alone."""
    return TrainConfig(
        rank=RANK,
        alpha=ALPHA,
        dropout=DROPOUT,
        learning_rate=fit.learning_rate,
        epochs=fit.epochs,
        batch_size=BATCH,
        max_length=WINDOW,
        anchor_weight=0,
        interpolation=1,
        min_steps=0,
        seed=fit.seed,
    )


def _ours(base: Base, fit: Fit, precision: str = "auto") -> Artifact:
    examples = [Example(*pair, label) for pair, label in zip(fit.pairs, fit.labels, strict=True)]
    return train(base, examples, replace(config_of(fit), precision=precision)).epochs[-1].artifact


def _trainer(base: Base, fit: Fit, *, bf16: bool = False, multiple: int = 1) -> Artifact:
    config = config_of(fit)
    set_seed(fit.seed)
    model = with_adapter(base.own_copy(), base.target_modules)
    train_cross_encoder(
        base,
        model,
        fit.pairs,
        fit.labels,
        multiple=multiple,
        seed=fit.seed,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_share,
        bf16=bf16,
    )
    return adapter_of(base, model)


ARMS: dict[str, Callable[[Base, Fit], Artifact]] = {
    OURS: _ours,
    OURS_FP32: lambda base, fit: _ours(base, fit, "fp32"),
    TRAINER: _trainer,
    TRAINER_BF16: lambda base, fit: _trainer(base, fit, bf16=True),
    PADDED: lambda base, fit: _trainer(base, fit, multiple=base.max_length),
}


# --- speed ----------------------------------------------------------------------------------------


def measure_speed(base: str, options: argparse.Namespace) -> dict[str, Any]:
    """Pairs/s of every arm, by round; every round has pairs of its own."""
    rates: dict[str, list[float]] = {arm: [] for arm in options.arms}
    for turn in range(options.rounds):
        pairs = Texts("streams", seed=turn).pairs(options.pairs)
        labels = random.Random(turn).choices(LABELS, k=options.pairs)
        for arm in random.Random(turn).sample(options.arms, len(options.arms)):
            fit = Fit(base, arm, pairs, labels, options.learning_rate, seed=turn)
            rates[arm].append(in_own_process(carry_out, fit).pairs_per_s)
    return {
        "pairs_per_s": {arm: statistics.median(by_round) for arm, by_round in rates.items()},
        "rounds": rates,
        "ratios": ratios(rates),
    }


def ratios(rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How many times as fast as each rival ours is, median over the rounds."""
    return {
        rival: statistics.median(
            ours / theirs for ours, theirs in zip(rates[OURS], by_round, strict=True)
        )
        for rival, by_round in rates.items()
        if rival != OURS and OURS in rates
    }


# --- accuracy -------------------------------------------------------------------------------------


def measure_accuracy(base: str, options: argparse.Namespace) -> dict[str, Any]:
    """Ours and the Trainer's on held-out groups: per stream over the seeds, and the difference."""
    streams: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    found: dict[str, Any] = {}
    for path in sorted((options.data / "stream").glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        if not options.stream or name in options.stream:
            rows = read([path])
            streams[name] = {
                number: on_split(base, rows, number, options) for number in range(options.splits)
            }
            found[name] = {
                arm: over_seeds([pair[side] for pair in streams[name].values()])
                for side, arm in enumerate((TRAINER, OURS))
            }
    return {
        "streams": found,
        "ours - Trainer": {
            "other pages": asdict(comparing.difference(streams, comparing.accuracy)),
            "other seeds": asdict(difference_by_seed(streams)),
        },
    }


def on_split(
    base: str, rows: Sequence[Row], number: int, options: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Confusions (seeds, groups, 3, 3) on the groups held out: the Trainer's, and ours."""
    split = protocol.split(rows, number)
    draw = random.Random(number)
    learnt = [rows[i] for i in draw.sample(split.judged, min(options.verdicts, len(split.judged)))]
    asked = [rows[i] for i in split.held_out]
    fit = Fit(
        base,
        "",
        [_pair(row) for row in learnt],
        [Label(row["label"]) for row in learnt],
        options.learning_rate,
        options.epochs,
        asked=[_pair(row) for row in asked],
    )
    truth = np.array([Label(row["label"]).column for row in asked])
    groups = np.array([row["group"] for row in asked])
    found: dict[str, list[np.ndarray]] = {TRAINER: [], OURS: []}
    for seed in range(options.seeds):
        for arm, counts in found.items():
            fitted = in_own_process(carry_out, replace(fit, arm=arm, seed=seed))
            counts.append(comparing.confusions(fitted.answers, truth, groups))
    return np.stack(found[TRAINER]), np.stack(found[OURS])


def difference_by_seed(streams: Mapping[str, comparing.Paired]) -> Interval:
    """Mean difference with Student's 95 % bounds over seeds: pages and splits as they are.

    `comparing.difference` averages seeds; a fit's luck is what its bounds leave out.
    """
    shares = comparing.weights(streams)
    by_seed = sum(
        shares[name]
        * np.mean([_accuracies(ours) - _accuracies(theirs) for theirs, ours in paired.values()], 0)
        for name, paired in streams.items()
    )
    differences = np.asarray(by_seed)
    estimate, freedom = float(differences.mean()), len(differences) - 1
    if freedom < 1:
        return Interval(estimate, float("-inf"), float("inf"))
    bound = float(student.ppf(0.975, freedom) * differences.std(ddof=1) / np.sqrt(freedom + 1))
    return Interval(estimate, estimate - bound, estimate + bound)


def over_seeds(splits: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean accuracy, and its standard deviation over seeds, of confusions (seeds, groups, 3, 3)."""
    by_seed = np.mean([_accuracies(counts) for counts in splits], axis=0)
    return {
        "accuracy": float(by_seed.mean()),
        "sd": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0,
    }


def _accuracies(counts: np.ndarray) -> np.ndarray:
    """(seeds,), of confusions (seeds, groups, 3, 3)"""
    return comparing.accuracy(counts.sum(axis=1))


def _pair(row: Row) -> Pair:
    return row["premise"], row["hypothesis"]


# --- the run --------------------------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Speed, and accuracy where it was measured."""
    speed = found["speed"]
    table = Table("arm", "pairs/s", "ours is faster")
    for arm, rate in speed["pairs_per_s"].items():
        ratio = speed["ratios"].get(arm)
        table.add_row(arm, f"{rate:.1f}", f"{ratio:.2f} ×" if ratio else "")
    made = [table]
    if "accuracy" in found:
        table = Table("stream", TRAINER, OURS)
        for name, arms in found["accuracy"]["streams"].items():
            shown = (
                f"{arms[arm]['accuracy']:.4f} ± {arms[arm]['sd']:.4f}" for arm in (TRAINER, OURS)
            )
            table.add_row(name, *shown)
        made.append(table)
        table = Table("ours - Trainer, bounds for", "accuracy", "95 % from", "to")
        for over, gain in found["accuracy"]["ours - Trainer"].items():
            table.add_row(over, *(f"{gain[key]:+.4f}" for key in ("estimate", "low", "high")))
        made.append(table)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two short rounds, within a minute")
    parser.add_argument("--shape", choices=("minilm", *DEBERTA), default="minilm")
    parser.add_argument("--model", type=Path, help="a checkpoint's directory instead of a shape")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=256, help="in a fit, one epoch")
    parser.add_argument("--learning-rate", type=float, default=TrainConfig().learning_rate)
    parser.add_argument("--data", type=Path, help="has stream/*.jsonl.gz: measure accuracy too")
    parser.add_argument("--stream", nargs="+", help="only these")
    parser.add_argument("--verdicts", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=TrainConfig().epochs, help="on real verdicts")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.pairs = 2, 32
    os.environ |= ALLOCATOR  # of all processes started from here
    with tempfile.TemporaryDirectory() as directory:
        base = base_name(options.shape, options.model, Path(directory))
        found = {"speed": measure_speed(base, options)}
        if options.data:
            found["accuracy"] = measure_accuracy(base, options)
    console = Console()
    for table in tables(found):
        console.print(table)
    if options.out:
        report = {"options": vars(options), **found}
        options.out.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
