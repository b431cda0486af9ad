"""LoRA against standard fine-tuning, the documents' study (ADR-001) on labelled NLI pairs.

Two tasks: the cross-encoder that judges pairs, and all-MiniLM-L6-v2 as bi-encoder, whose cosines
are to tell compatible (supports) from incompatible (refutes) pairs. Both ways are trained with
identical hyper-parameters, and again each with its best learning rate, which is chosen on a part of
the training groups. Every fit has a process of its own.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import TaskType
from scipy.special import softmax
from transformers import set_seed

from adapters_app.nli import metrics, similarity, splits
from adapters_app.nli.base_model import QUERY_VALUE, Base, load_base
from adapters_app.nli.embedding import SentenceEncoder
from adapters_app.nli.encoding import Pair
from adapters_app.nli.finetuning import (
    train_bi_encoder,
    train_cross_encoder,
    trainable,
    with_adapter,
)
from adapters_app.nli.own_process import forget_peak, in_own_process, peak_mb
from adapters_app.nli.predict import Predictor
from adapters_app.nli.train import TrainingDiverged, multiplies_bf16, use_plain_attention
from corrections.labels import LABELS, Label

NLI, EMBEDDING = TASKS = ("nli", "embedding")
BASELINE, STANDARD, LORA = "baseline", "standard", "lora"
IDENTICAL, BEST = "identical", "best"
# The documents' learning rate, and those among which the best is chosen: as many for either way.
RATES = {STANDARD: (2e-5, 6e-5, 2e-4), LORA: (2e-4, 6e-4, 2e-3)}
# What the best learning rate is chosen by; the first of what is reported of a task.
CHOICE = {NLI: "macro_f1", EMBEDDING: "spearman"}
# A fifth is held out to report on, and a quarter of the rest to choose the learning rate on.
PARTS, INNER_PARTS = 5, 4
SIMILARITY = {Label.SUPPORTS: 1.0, Label.REFUTES: 0.0}
_ASKED_AT_ONCE = 32
_WORD = re.compile(r"\w+")


class TooLittleData(ValueError):
    """Not every label is on both sides of a split."""


Key = tuple[str, str, str, int, int]  # of a fit: task, method, setting, split, seed
Search = dict[float, float | None]  # learning rate → what it was chosen by; None: diverged


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A labelled pair. `weight`: inverse sampling probability; None: not to be measured on."""

    premise: str
    hypothesis: str
    label: Label
    group: str
    category: str
    weight: float | None = 1.0

    @property
    def pair(self) -> Pair:
        return self.premise, self.hypothesis


@dataclass(frozen=True)
class StudyConfig:
    """What the documents fixed, and how often the study is repeated."""

    epochs: int = 4
    batch_size: int = 16
    warmup_steps: int = 100
    splits: int = 5
    seeds: int = 1

    def to_dict(self) -> dict[str, Any]:
        rates = {f"{method}_learning_rates": list(RATES[method]) for method in RATES}
        return asdict(self) | rates | {"fits": self.fits}

    @property
    def fits(self) -> int:
        """How many results `conduct` gives."""
        return len(TASKS) * self.splits * (1 + 2 * 2 * self.seeds)


@dataclass(frozen=True)
class Models:
    """Where the two models come from. `encoder` None: the installed all-MiniLM-L6-v2."""

    base: str
    revision: str = ""
    device: str = "cpu"
    threads: int = 0  # 0: torch's own choice
    encoder: Path | None = None


@dataclass(frozen=True)
class Job:
    """One fit of one way, and the rows that what comes of it answers."""

    models: Models
    config: StudyConfig
    task: str
    method: str
    seed: int
    learning_rate: float | None
    learn: Sequence[StudyRow]
    asked: Sequence[StudyRow]
    setting: str = ""
    split: int = 0

    @property
    def key(self) -> Key:
        return self.task, self.method, self.setting, self.split, self.seed


@dataclass(frozen=True)
class Outcome:
    """What came of a fit. Bytes are those of the trained tensors: what would have to be kept."""

    measures: dict[str, Any]
    trainable_parameters: int
    artifact_bytes: int
    seconds: float  # of training alone
    idle_mb: float | None  # resident memory with the model loaded
    peak_mb: float | None  # the highest during training


@dataclass(frozen=True)
class Result:
    """An outcome, and of what. `known`: it had been done before."""

    job: Job
    outcome: Outcome
    search: Search = field(default_factory=dict)
    known: bool = False


Known = Mapping[Key, tuple[Outcome, Search]]


def conduct(
    rows: Sequence[StudyRow],
    models: Models,
    config: StudyConfig | None = None,
    known: Known | None = None,
) -> Iterator[Result]:
    """The study's fits, each as soon as it is done; `config.fits` of them.

    What is `known`, of a study of the same that was cut short, is not done again.

    Raises:
        TooLittleData: some label is missing on one side of a split; before any fit.
        TrainingDiverged, ChildProcessError: a fit failed.
    """
    config, known = config or StudyConfig(), known or {}
    dealt = [_dealt(rows, PARTS, number) for number in range(config.splits)]
    for number, (learn, asked) in enumerate(dealt):
        _, choosing = _dealt(learn, INNER_PARTS, 0)
        for task in TASKS:
            job = partial(Job, models, config, task, split=number)
            suits = partial(_suiting, task)
            yield _fitted(job(BASELINE, 0, None, [], suits(asked)), known)
            for method in (STANDARD, LORA):
                yield from _one_way(
                    job(method, 0, RATES[method][0], suits(learn), suits(asked)),
                    suits(choosing),
                    known,
                )


def _one_way(job: Job, choosing: Sequence[StudyRow], known: Known) -> Iterator[Result]:
    """A way's fits on one split: at the documents' rate, then at its best, for every seed."""
    identical = []
    for seed in range(job.config.seeds):
        identical.append(_fitted(replace(job, seed=seed, setting=IDENTICAL), known))
        yield identical[-1]
    held = {row.group for row in choosing}
    inner = replace(job, learn=[row for row in job.learn if row.group not in held], asked=choosing)
    first = known.get(replace(job, setting=BEST).key)
    search = first[1] if first else in_own_process(search_rates, inner)
    rate = best_rate(search)
    for result in identical:
        best = replace(result.job, setting=BEST, learning_rate=rate)
        if rate == job.learning_rate and best.key not in known:
            # The documents' rate was the best: it has been fitted.
            yield Result(best, result.outcome, search)
        else:
            yield replace(_fitted(best, known), search=search)


def _fitted(job: Job, known: Known) -> Result:
    if job.key in known:
        return Result(job, *known[job.key], known=True)
    return Result(job, in_own_process(carry_out, job))


def search_rates(job: Job) -> Search:
    """For each learning rate what it is chosen by, on the rows asked."""
    found: Search = {}
    for rate in RATES[job.method]:
        try:
            outcome = carry_out(replace(job, learning_rate=rate))
        except TrainingDiverged:
            found[rate] = None
        else:
            found[rate] = outcome.measures[CHOICE[job.task]]
    return found


def best_rate(search: Mapping[float, float | None]) -> float:
    """The learning rate that showed most.

    Raises:
        TrainingDiverged: all of them did.
    """
    usable = {rate: value for rate, value in search.items() if value is not None}
    if not usable:
        raise TrainingDiverged("At every learning rate tried the loss is no longer a number.")
    return max(usable, key=lambda rate: usable[rate])


def carry_out(job: Job) -> Outcome:
    """Load, train (the baseline is left as it is), and measure. It changes torch's global seed.

    Raises:
        TrainingDiverged: what was trained answers with something that is no number.
    """
    if job.models.threads:
        torch.set_num_threads(job.models.threads)
    trainee = (CrossEncoderTrainee if job.task == NLI else BiEncoderTrainee)(job.models)
    forget_peak()
    idle, started = peak_mb(), time.perf_counter()
    if job.method != BASELINE:
        set_seed(job.seed)
        trainee.prepare(job.method)
        trainee.train(
            job.learn,
            seed=job.seed,
            num_train_epochs=job.config.epochs,
            per_device_train_batch_size=job.config.batch_size,
            learning_rate=job.learning_rate,
            warmup_steps=job.config.warmup_steps,
            bf16=multiplies_bf16(trainee.model.device),
        )
    seconds, peak = time.perf_counter() - started, peak_mb()
    trained = trainable(trainee.model)
    trainee.model.eval()
    return Outcome(
        measures=trainee.measures(job.asked),
        trainable_parameters=sum(parameter.numel() for parameter in trained),
        artifact_bytes=sum(parameter.numel() * parameter.element_size() for parameter in trained),
        seconds=seconds,
        idle_mb=idle,
        peak_mb=peak,
    )


class CrossEncoderTrainee:
    """The NLI model that the settings name."""

    def __init__(self, models: Models) -> None:
        self.base: Base = load_base(models.base, revision=models.revision, device=models.device)
        self.model: Any = self.base.model  # or PEFT's wrapper, which stands in for it

    def prepare(self, method: str) -> None:
        use_plain_attention(self.model, self.base.device)
        if method == LORA:
            self.model = with_adapter(self.model, self.base.target_modules)
        else:
            self.model.requires_grad_(True)

    def train(self, rows: Sequence[StudyRow], **arguments: Any) -> None:
        pairs, labels = [row.pair for row in rows], [row.label for row in rows]
        train_cross_encoder(self.base, self.model, pairs, labels, **arguments)

    def measures(self, rows: Sequence[StudyRow]) -> dict[str, Any]:
        answering = Predictor(replace(self.base, model=self.model))
        logits = _finite(answering.logits([row.pair for row in rows]))
        labels = np.array([row.label.column for row in rows])
        return metrics.summary(softmax(logits, axis=1), labels, _weights(rows))


class BiEncoderTrainee:
    """all-MiniLM-L6-v2, or another sentence encoder of the same layout."""

    def __init__(self, models: Models) -> None:
        self.encoder = SentenceEncoder(device=models.device, directory=models.encoder)
        self.model: Any = self.encoder.model  # or PEFT's wrapper, which stands in for it

    def prepare(self, method: str) -> None:
        use_plain_attention(self.model, self.encoder.device)
        if method == LORA:
            targets = QUERY_VALUE[self.model.config.model_type]
            self.model = with_adapter(self.model, targets, TaskType.FEATURE_EXTRACTION)
        else:
            self.model.requires_grad_(True)

    def train(self, rows: Sequence[StudyRow], **arguments: Any) -> None:
        pairs = [row.pair for row in rows]
        wanted = [SIMILARITY[row.label] for row in rows]
        train_bi_encoder(self.encoder, self.model, pairs, wanted, **arguments)

    def measures(self, rows: Sequence[StudyRow]) -> dict[str, Any]:
        embed = partial(self.encoder.with_model(self.model).embed, batch_size=_ASKED_AT_ONCE)
        first = _finite(embed([row.premise for row in rows]))
        second = _finite(embed([row.hypothesis for row in rows]))
        compatible = np.array([row.label == Label.SUPPORTS for row in rows])
        return similarity.measures(first, second, compatible, _weights(rows), _categories(rows))


def _dealt(
    rows: Sequence[StudyRow], parts: int, number: int
) -> tuple[list[StudyRow], list[StudyRow]]:
    """Rows to learn from, and rows of known probability from other groups to measure on."""
    labels, groups = [row.label for row in rows], [row.group for row in rows]
    if min(labels.count(label) for label in LABELS) < parts or len(set(groups)) < parts:
        raise TooLittleData(
            f"To hold out one part in {parts}, as many groups and as many rows of each label are "
            "needed."
        )
    inside, outside = splits.deal(labels, groups, parts=parts, number=number)
    outside = splits.unseen([row.pair for row in rows], inside, outside)
    learn = [rows[i] for i in inside]
    asked = [rows[i] for i in outside if rows[i].weight is not None]
    for side in (learn, asked):
        missing = set(LABELS) - {row.label for row in side}
        if missing:
            raise TooLittleData(
                f"Split {number}: no row with {', '.join(sorted(missing))} to learn from or to "
                "measure on; there are too few groups, or they share too many texts."
            )
    return learn, asked


def _suiting(task: str, rows: Sequence[StudyRow]) -> list[StudyRow]:
    """The rows that the task is about: a cosine tells compatible from incompatible ones only."""
    return [row for row in rows if task == NLI or row.label in SIMILARITY]


def _categories(rows: Sequence[StudyRow]) -> dict[str, np.ndarray]:
    """Rows by where they come from, and by how many words their two texts share (in thirds)."""
    origin = [row.category for row in rows]
    shared = np.array([_shared_words(row) for row in rows])
    low, high = np.quantile(shared, [1 / 3, 2 / 3])
    return {name: np.array(origin) == name for name in sorted(set(origin))} | {
        "few words shared": shared <= low,
        "some words shared": (shared > low) & (shared <= high),
        "many words shared": shared > high,
    }


def _shared_words(row: StudyRow) -> float:
    """Jaccard similarity of the two texts' words."""
    one, other = (set(_WORD.findall(text.lower())) for text in row.pair)
    return len(one & other) / max(len(one | other), 1)


def _weights(rows: Sequence[StudyRow]) -> np.ndarray:
    return np.array([1.0 if row.weight is None else row.weight for row in rows])


def _finite(answers: np.ndarray) -> np.ndarray:
    if not np.isfinite(answers).all():
        raise TrainingDiverged("What was trained answers with something that is no number.")
    return answers
