"""Rows of many adapters in one batch: what it costs, and whether each row is answered exactly.

Imported by swapping.py, which is the program. Every measurement has a process of its own, see
`adapters_app/nli/own_process.py`: two engines' threads would wait for one another in one.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from scipy.special import softmax

from adapters_app.nli import artifact as artifacts
from adapters_app.nli import checkpoint, openvino_engine, reference
from adapters_app.nli.artifact import Artifact
from adapters_app.nli.base_model import load_base
from adapters_app.nli.data import collate
from adapters_app.nli.encoding import Pair, batches_by_length
from adapters_app.nli.engines import Engine, Predictor, Row
from adapters_app.nli.openvino_engine import OpenVinoEngine
from adapters_app.nli.predict import BATCH, TorchEngine
from benchmarks.adapters import known_base, real_sized
from benchmarks.serving import CLEAR_MARGIN, Texts
from inference.batching import Batcher, ForwardFailed

TORCH, OPENVINO, OPENVINO_F32 = ENGINES = ("torch", "openvino", "openvino f32")
ONE, EIGHT, EIGHT_RANKS = MIXTURES = ("one", "eight", "eight of mixed ranks")
RANKS = {ONE: (8,), EIGHT: (8,) * 8, EIGHT_RANKS: (4, 8, 16, 4, 8, 16, 4, 8)}
BAD: Pair = ("half a character: \ud800", "law")  # no tokenizer takes it


@dataclass(frozen=True)
class Mixing:
    """What one process measures. `base`: a name or directory that `checkpoint.find` knows."""

    base: str
    references: Path
    engine: str
    mix: str = "short"
    rounds: int = 5
    batches: int = 4  # in a round, for each mixture


@dataclass(frozen=True)
class Agreeing:
    """How far an engine's answers to n pairs are from PEFT's in fp32, for each adapter."""

    base: str
    references: Path
    pairs: Sequence[Pair]
    adapters: int


def store_reference(of: tuple[str, Path]) -> None:
    """Ask torch what `known_base` needs of a base, its name and where references are kept."""
    name, references = of
    files = checkpoint.find(name)
    try:
        reference.stored(files, references)
    except reference.NoReference:
        reference.write(*TorchEngine(load_base(name)).reference(files.digest), references)


# --- one engine -----------------------------------------------------------------------------------


def measure(task: Mixing) -> dict[str, Any]:
    """Pairs/s of every mixture in batches of 32, rounds in turn; exactness; a bad row."""
    base = known_base(task.base, task.references)
    engine = start(task.engine, base)
    predictors = {
        mixture: [engine.predictor(each) for each in real_sized(base, ranks)]
        for mixture, ranks in RANKS.items()
    }
    texts = Texts(task.mix, seed=1)
    took: dict[str, list[float]] = {mixture: [] for mixture in MIXTURES}
    for turn in range(-1, task.rounds):
        pairs = texts.pairs(task.batches * BATCH)
        for mixture in random.Random(turn).sample(MIXTURES, len(MIXTURES)):
            seconds = _answer_batches(engine, predictors[mixture], pairs)
            if turn >= 0:  # kernels are made in the one before
                took[mixture].append(seconds)
    mixed = [engine.predictor(), *predictors[EIGHT_RANKS]]
    return {
        "engine": engine.name,
        "pairs_per_s": {
            mixture: task.batches * BATCH / statistics.median(seconds)
            for mixture, seconds in took.items()
        },
        "cost": costs(took),
        **alone_and_together(engine, mixed, texts.pairs(BATCH)),
        "bad_row": bad_row(engine, mixed, texts.pairs(BATCH)),
    }


def start(name: str, base: openvino_engine.Base) -> Engine:
    """One of ENGINES."""
    if name == TORCH:
        return TorchEngine(load_base(base.name))
    return OpenVinoEngine(base, precision="f32" if name == OPENVINO_F32 else "")


def _answer_batches(
    engine: Engine, predictors: Sequence[Predictor], pairs: Sequence[Pair]
) -> float:
    """Seconds for all pairs in batches of 32, whose rows want these predictors in turn."""
    began = time.perf_counter()
    for first in range(0, len(pairs), BATCH):
        engine.logits(_rows(predictors, pairs[first : first + BATCH]))
    return time.perf_counter() - began


def _rows(predictors: Sequence[Predictor], pairs: Sequence[Pair]) -> list[Row]:
    return [(predictors[i % len(predictors)], pair) for i, pair in enumerate(pairs)]


def costs(took: dict[str, list[float]]) -> dict[str, float]:
    """Of each mixture: how many times as long as one adapter, median over the rounds."""
    return {
        mixture: statistics.median(mine / one for mine, one in zip(seconds, took[ONE], strict=True))
        for mixture, seconds in took.items()
    }


def alone_and_together(
    engine: Engine, predictors: Sequence[Predictor], pairs: Sequence[Pair]
) -> dict[str, float]:
    """The furthest that a row's answer in a mixed batch is from its answer alone."""
    together = engine.logits(_rows(predictors, pairs))
    alone = np.vstack([engine.logits([row]) for row in _rows(predictors, pairs)])
    away = np.abs(softmax(together, axis=1) - softmax(alone, axis=1))
    return {"max_dlogit": float(np.abs(together - alone).max()), "max_dp": float(away.max())}


def bad_row(
    engine: Engine, predictors: Sequence[Predictor], pairs: Sequence[Pair]
) -> dict[str, Any]:
    """Single-pair requests at once, one of which the engine refuses: are all others answered?

    `largest_pass`: rows that shared one.
    """
    passes: list[int] = []
    batcher = Batcher(max_pairs=len(pairs) + 1, max_waiting=2 * len(pairs), on_pass=passes.append)
    good = _rows(predictors, pairs)
    with ThreadPoolExecutor(len(good) + 1) as pool:
        waiting = [pool.submit(batcher.run, engine.begin, [row]) for row in good]
        bad = pool.submit(batcher.run, engine.begin, [(predictors[-1], BAD)])
    refused = sum(each.exception() is not None for each in waiting)
    return {
        "fails_alone": isinstance(bad.exception(), ForwardFailed) and not refused,
        "others_refused": refused,
        "others": len(waiting),
        "largest_pass": max(passes),
    }


# --- agreement with PEFT --------------------------------------------------------------------------


def agreement(task: Agreeing) -> dict[str, dict[str, float]]:
    """Engine → how its answers compare with fp32 PEFT's, over all adapters and pairs."""
    base = known_base(task.base, task.references)
    drawn = real_sized(base, [RANKS[EIGHT_RANKS][i % 8] for i in range(task.adapters)])
    expected = _of_peft(task.base, drawn, task.pairs)
    found = {}
    for name in (OPENVINO, OPENVINO_F32, TORCH):
        engine = start(name, base)
        predictors = map(engine.predictor, drawn)
        rows = [(predictor, pair) for predictor in predictors for pair in task.pairs]
        found[name] = compared(softmax(engine.logits(rows), axis=1), expected)
    return found


@torch.inference_mode()
def _of_peft(name: str, drawn: Sequence[Artifact], pairs: Sequence[Pair]) -> np.ndarray:
    """(adapters · pairs, 3) probabilities in the order of LABELS, by PEFT itself, not folded."""
    base = load_base(name)
    encoded = base.encoder.encode(pairs)
    out = np.empty((len(drawn), len(pairs), len(base.label_columns)))
    for number, each in enumerate(drawn):
        with tempfile.TemporaryDirectory() as directory:
            digest = artifacts.write(Path(directory), each, {}, "", base_name=name)
            model = PeftModel.from_pretrained(base.own_copy(), Path(directory) / digest).eval()
        for rows in batches_by_length([len(row) for row in encoded], BATCH):
            batch = collate(
                [encoded[i] for i in rows], pad_id=base.pad_id, type_ids=base.uses_type_ids
            )
            out[number, rows] = model(**batch).logits.numpy()[:, list(base.label_columns)]
    return softmax(out.reshape(-1, out.shape[-1]), axis=1)


def compared(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Of probabilities (n, 3): how many labels are the same, and how far the numbers are."""
    away = np.abs(found - expected)
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > CLEAR_MARGIN
    same = found.argmax(axis=1) == expected.argmax(axis=1)
    return {
        "same_label": float(same.mean()),
        "same_label_where_clear": float(same[clear].mean()),
        "p999_dp": float(np.quantile(away, 0.999)),
        "mean_dp": float(away.mean()),
        "max_dp": float(away.max()),
    }
