"""Rows of many adapters in one batch: what it costs, and whether each row is answered exactly; what
PEFT answers, and whether calibrators care who gave the logits they are fitted on.

Imported by swapping.py, which is the program. Every measurement has a process of its own, see
`adapters_app/nli/own_process.py`: two engines' threads would wait for one another in one.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from scipy.special import softmax

from adapters_app.nli import anchors, checkpoint, guard, metrics, openvino_engine, reference, splits
from adapters_app.nli import artifact as artifacts
from adapters_app.nli.artifact import Artifact
from adapters_app.nli.base_model import load_base
from adapters_app.nli.calibration import TemperatureScaling
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.data import Example, collate
from adapters_app.nli.encoding import Pair, batches_by_length
from adapters_app.nli.engines import Engine, Predictor, Row
from adapters_app.nli.openvino_engine import OpenVinoEngine
from adapters_app.nli.predict import BATCH, TorchEngine
from adapters_app.nli.train import Anchors, train
from benchmarks.adapters import known_base, real_sized
from benchmarks.rows import Row as LabelledRow
from benchmarks.rows import read
from benchmarks.serving import Texts, distance
from corrections.labels import Label
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
class Learning:
    """Adapters that are trained as the project does it, on rows of DATA/stream."""

    base: str
    data: Path
    adapters: int
    rows: int  # that each learns from
    config: TrainConfig


@dataclass(frozen=True, eq=False)
class Labelled:
    """n pairs; `labels`: columns (n,); `groups` (n,): those that share texts."""

    pairs: Sequence[Pair]
    labels: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True, eq=False)
class Agreeing:
    """How far an engine's answers to n pairs are from PEFT's in fp32, for each adapter."""

    base: str
    references: Path
    asked: Labelled
    adapters: Mapping[str, Artifact]


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


def drawn(name: str, references: Path, count: int) -> dict[str, Artifact]:
    """Adapters that nobody trained, of mixed ranks."""
    ranks = [RANKS[EIGHT_RANKS][i % 8] for i in range(count)]
    made = real_sized(known_base(name, references), ranks)
    return {f"{number}, rank {each.rank}": each for number, each in enumerate(made, start=1)}


def learnt(task: Learning) -> dict[str, Artifact]:
    """Trained adapters: of every stream one, then of every stream another, from other rows."""
    base = load_base(task.base)
    held_to = Anchors.answered_by(base, anchors.load())
    streams = sorted((task.data / "stream").glob("*.jsonl.gz"))
    made = {}
    for number in range(task.adapters):
        turn, at = divmod(number, len(streams))
        rows = read([streams[at]])
        own = random.Random(0).sample(rows, len(rows))[turn * task.rows :][: task.rows]
        examples = [Example(*_pair(row), Label(row["label"])) for row in own]
        fitted = train(base, examples, task.config, anchors=held_to, evaluate_each_epoch=False)
        name = streams[at].name.removesuffix(".jsonl.gz")
        made[f"{name} {turn + 1}"] = fitted.epochs[-1].artifact
    return made


def of_guard(every: int) -> Labelled:
    """One in `every` of the guard set that ships with the bases."""
    guard_set = guard.load()
    return Labelled(guard_set.pairs[::every], guard_set.labels[::every], guard_set.groups[::every])


def of_data(data: Path, count: int) -> Labelled:
    """So many rows of DATA/guard, drawn at random."""
    rows = read((data / "guard").glob("*.jsonl.gz"))
    some = random.Random(0).sample(rows, min(count, len(rows)))
    return Labelled(
        [_pair(row) for row in some],
        np.array([Label(row["label"]).column for row in some]),
        np.array([f"{row['source']} {row['group']}" for row in some]),
    )


def _pair(row: LabelledRow) -> Pair:
    return row["premise"], row["hypothesis"]


def agreement(task: Agreeing) -> dict[str, Any]:
    """How the engines' answers compare with fp32 PEFT's, over all adapters and pairs; those of the
    one that serves by adapter; and calibrators fitted on its logits and on torch's."""
    base, adapters = known_base(task.base, task.references), list(task.adapters.values())
    expected = _of_peft(task.base, adapters, task.asked.pairs)
    logits, named = {}, {}
    for name in (OPENVINO, OPENVINO_F32, TORCH):
        engine = start(name, base)
        rows = [
            (each, pair) for each in map(engine.predictor, adapters) for pair in task.asked.pairs
        ]
        logits[name] = engine.logits(rows).reshape(expected.shape)
        named[name] = engine.name
    return {
        "serving": named[OPENVINO],
        "engines": {
            named[name]: distance(_flat(found), _flat(expected)) for name, found in logits.items()
        },
        "adapters": {
            name: distance(_flat(logits[OPENVINO][i]), _flat(expected[i]))
            for i, name in enumerate(task.adapters)
        },
        "calibration": {
            name: calibrations(logits[TORCH][i], logits[OPENVINO][i], task.asked)
            for i, name in enumerate(task.adapters)
        },
    }


def _flat(logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, 3) of logits (…, 3)."""
    probabilities: np.ndarray = softmax(logits.reshape(-1, logits.shape[-1]), axis=1)
    return probabilities


def calibrations(of_torch: np.ndarray, served: np.ndarray, asked: Labelled) -> dict[str, float]:
    """Temperatures fitted on half of the groups' logits (n, 3), torch's and those of the engine
    that serves; the engine's answers to the other half under both."""
    labels = asked.labels
    fitted_on, left = splits.deal(
        [str(label) for label in labels], [str(group) for group in asked.groups], parts=2, number=0
    )
    calibrators = {
        name: TemperatureScaling().fit(logits[fitted_on], labels[fitted_on])
        for name, logits in (("torch", of_torch), ("serving", served))
    }
    answers = {name: each.predict_proba(served[left]) for name, each in calibrators.items()}
    return {
        **{f"temperature_{name}": each.temperature_ for name, each in calibrators.items()},
        "log_loss_before": metrics.log_loss(softmax(served[left], axis=1), labels[left]),
        **{f"log_loss_{name}": metrics.log_loss(p, labels[left]) for name, p in answers.items()},
        **{f"ece_{name}": metrics.ece(p, labels[left])[0] for name, p in answers.items()},
        "max_dp": float(np.abs(answers["torch"] - answers["serving"]).max()),
    }


@torch.inference_mode()
def _of_peft(name: str, adapters: Sequence[Artifact], pairs: Sequence[Pair]) -> np.ndarray:
    """(adapters, pairs, 3) logits in the order of LABELS, by PEFT itself, not folded."""
    base = load_base(name)
    encoded = base.encoder.encode(pairs)
    out = np.empty((len(adapters), len(pairs), len(base.label_columns)))
    for number, each in enumerate(adapters):
        with tempfile.TemporaryDirectory() as directory:
            digest = artifacts.write(Path(directory), each, {}, "", base_name=name)
            model = PeftModel.from_pretrained(base.own_copy(), Path(directory) / digest).eval()
        for rows in batches_by_length([len(row) for row in encoded], BATCH):
            batch = collate(
                [encoded[i] for i in rows], pad_id=base.pad_id, type_ids=base.uses_type_ids
            )
            out[number, rows] = model(**batch).logits.numpy()[:, list(base.label_columns)]
    return out
