"""Training one LoRA adapter on a frozen base: `train()` reads top to bottom.

LoRA: Hu et al. 2021, through PEFT. The anchor term, KL(base ‖ adapter) on pairs without labels,
keeps what the base knows (learning without forgetting, Li & Hoiem 2016).
"""

import copy
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

from adapters_app.nli.artifact import Artifact, towards_base
from adapters_app.nli.base_model import Base, put_parameters
from adapters_app.nli.config import AUTO, TrainConfig
from adapters_app.nli.data import Encoded, Example, Pair, collate, shuffled_batches
from adapters_app.nli.predict import Predictor

_GLOBAL_GENERATOR = threading.Lock()
GRADIENT_NORM = 1.0  # clipping; the usual value for transformers (BERT, Devlin et al. 2018)


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


class OutOfMemory(RuntimeError):
    """The device has too little memory for this configuration."""


@dataclass(frozen=True)
class Step:
    """How far one training is."""

    step: int
    total: int
    epoch: int
    loss: float
    pairs_per_second: float


@dataclass(frozen=True)
class EpochResult:
    """The adapter as it was after an epoch. `eval_logits`: (n, 3) in the order of LABELS."""

    epoch: int
    train_loss: float
    eval_logits: np.ndarray | None
    artifact: Artifact


@dataclass(frozen=True)
class TrainResult:
    epochs: list[EpochResult]
    trainable_parameters: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Anchors:
    """Pairs without labels and the base's own answers to them; several fits may share one."""

    pairs: Sequence[Pair]
    log_probabilities: torch.Tensor  # (n, 3), columns as the checkpoint has them

    @classmethod
    def answered_by(
        cls, base: Base, pairs: Sequence[Pair], *, on_batch: Callable[[int], None] | None = None
    ) -> "Anchors":
        """Have the base answer n pairs."""
        logits = torch.from_numpy(Predictor(base).logits(pairs, on_batch=on_batch))
        own = torch.empty_like(logits)
        own[:, list(base.label_columns)] = logits
        return cls(pairs, own.log_softmax(-1))


def train(
    base: Base,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    evaluate: Sequence[Pair] = (),
    anchors: Anchors | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    evaluate_each_epoch: bool = True,
    epochs_to_run: int | None = None,
) -> TrainResult:
    """Train an adapter on `examples`; after each epoch keep it and answer `evaluate` with it.

    `epochs_to_run` stops early without changing the learning-rate schedule, so that the released
    fit follows the path on which its number of epochs was chosen. `on_step` may raise to stop.

    Raises:
        ValueError: no examples.
        TrainingDiverged: the loss became NaN or infinite.
        OutOfMemory: the device's memory does not suffice; the message says what to lower.
    """
    if not examples:
        raise ValueError("examples: nothing to train on")
    started = time.perf_counter()
    order = torch.Generator().manual_seed(config.seed)
    model = adapted_model(base, config)
    rows = _encode(base, [example.pair for example in examples], config)
    labels = torch.tensor([_column(base, example) for example in examples])
    weights = torch.tensor([example.weight for example in examples], dtype=torch.float32)
    held_to = anchors if anchors and anchors.pairs and config.anchor_weight > 0 else None

    passes = _passes(len(rows), config)
    per_epoch = passes * math.ceil(len(rows) / config.batch_size)
    total = per_epoch * config.epochs
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trainable, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: linear_rate(step, total, config.warmup_share)
    )
    anchor_rows = _encode(base, held_to.pairs, config) if held_to else []
    anchor_batches = _anchor_batches(anchor_rows, config, order)
    lengths = [len(row) for row in rows]
    results: list[EpochResult] = []
    step = pairs_done = 0
    last = min(epochs_to_run or config.epochs, config.epochs)
    try:
        for epoch in range(1, last + 1):
            losses: list[float] = []
            for _ in range(passes):
                for chosen in shuffled_batches(lengths, config.batch_size, order):
                    loss = _loss(base, model, rows, labels, weights, chosen, config)
                    if held_to:
                        near = next(anchor_batches)
                        loss = loss + config.anchor_weight * _anchor_loss(
                            base,
                            model,
                            [anchor_rows[i] for i in near],
                            held_to.log_probabilities[near],
                            config,
                        )
                    value = loss.item()
                    if not math.isfinite(value):
                        raise TrainingDiverged(
                            f"The loss became {value} at step {step + 1} of {total}; "
                            f"lower learning_rate (now {config.learning_rate:g})"
                        )
                    loss.backward()
                    nn.utils.clip_grad_norm_(trainable, GRADIENT_NORM)
                    optimiser.step()
                    schedule.step()
                    optimiser.zero_grad(set_to_none=True)
                    step += 1
                    pairs_done += len(chosen)
                    losses.append(value)
                    if on_step is not None:
                        speed = pairs_done / (time.perf_counter() - started)
                        on_step(Step(step, per_epoch * last, epoch, value, speed))
            artifact = _take(base, model, config)
            wanted = evaluate_each_epoch or epoch == last
            logits = Predictor(base, artifact).logits(evaluate) if evaluate and wanted else None
            results.append(EpochResult(epoch, float(np.mean(losses)), logits, artifact))
            if on_epoch is not None:
                on_epoch(results[-1])
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(config) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # what torch's CPU allocator says
            raise _out_of_memory(config) from error
        raise
    count = sum(parameter.numel() for parameter in trainable)
    return TrainResult(results, count, time.perf_counter() - started)


def adapted_model(base: Base, config: TrainConfig) -> PeftModel:
    """The base with a fresh adapter; the base's own tensors are not touched.

    Raises:
        BaseModelError: a target module that the base does not have.
    """
    targets = base.resolve_targets(config.target_modules)
    model = base.structure_copy()
    if trains_in_bf16(base, config):
        # Frozen tensors in bf16 once, instead of casts in every step; the adapter stays fp32.
        for name, parameter in list(model.named_parameters()):
            put_parameters(model, {name: parameter.bfloat16()})
        # The head is trained: it starts from the base's exact values.
        setattr(model, base.head, copy.deepcopy(getattr(base.model, base.head)))
    # SDPA's backward on a CPU takes several times as long as plain attention's.
    if base.device.type == "cpu" and base.model.config.model_type in {"bert", "roberta", "qwen2"}:
        model.config = copy.deepcopy(model.config)
        model.set_attn_implementation("eager")
    adapter = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT divides it; any number will do
        lora_dropout=config.dropout,
        target_modules=list(targets),
        modules_to_save=[base.head],
    )
    # The initial A matrices come from torch's global generator, which other threads share.
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapted = get_peft_model(model, adapter).eval()
    _seed_dropout(adapted, config, base.device)
    return adapted


def trains_in_bf16(base: Base, config: TrainConfig) -> bool:
    """Whether frozen matrices are multiplied in bf16: asked for, or native to the hardware."""
    if config.precision != AUTO:
        return config.precision == "bf16"
    return multiplies_bf16(base.device)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 natively (an emulation is slower than fp32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


class Dropout(nn.Module):
    """Dropout with a random generator of its own: fits that run side by side stay reproducible.

    Sixteen random bits decide about an element: four elements a draw, in half `bernoulli_`'s time.
    The share is rounded to 1/65536.
    """

    def __init__(self, share: float, generator: torch.Generator) -> None:
        super().__init__()
        self.share = share
        self._generator = generator
        self._below = round(share * 2**16) - 2**15  # of the int16 range

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        draws.random_(-(2**63), None, generator=self._generator)
        keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= self._below
        return x * keep.to(x.dtype).mul_(1 / (1 - self.share))


def _seed_dropout(model: PeftModel, config: TrainConfig, device: torch.device) -> None:
    """Only the adapter drops out (the encoder is in evaluation mode: its own dropout costs a
    quarter of the time and gains a frozen encoder nothing)."""
    generator = torch.Generator(device).manual_seed(config.seed)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_dropout:
                if config.dropout > 0:
                    module.lora_dropout[name] = Dropout(config.dropout, generator)


def _encode(base: Base, pairs: Sequence[Pair], config: TrainConfig) -> list[Encoded]:
    return base.encoder.limited_to(config.max_length).encode(pairs)


def _column(base: Base, example: Example) -> int:
    return base.label_columns[example.label.column]


def _passes(rows: int, config: TrainConfig) -> int:
    """How often an epoch goes over the data, so that little data still gets `min_steps`."""
    steps = config.epochs * math.ceil(rows / config.batch_size)
    return max(1, math.ceil(config.min_steps / steps))


def linear_rate(step: int, total: int, warmup_share: float) -> float:
    """Linear warm-up over a share of the steps, then linear decay to zero."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def _forward(
    base: Base, model: nn.Module, rows: Sequence[Encoded], config: TrainConfig
) -> torch.Tensor:
    batch = collate(rows, pad_id=base.pad_id, type_ids=base.uses_type_ids)
    batch = {key: value.to(base.device) for key, value in batch.items()}
    with torch.autocast(
        base.device.type,
        dtype=torch.bfloat16,
        enabled=trains_in_bf16(base, config),
        cache_enabled=False,  # the cache is shared by all threads; every weight is used once anyway
    ):
        return model(**batch).logits.float()


def _loss(
    base: Base,
    model: nn.Module,
    rows: list[Encoded],
    labels: torch.Tensor,
    weights: torch.Tensor,
    chosen: list[int],
    config: TrainConfig,
) -> torch.Tensor:
    logits = _forward(base, model, [rows[i] for i in chosen], config)
    losses = functional.cross_entropy(
        logits,
        labels[chosen].to(base.device),
        reduction="none",
        label_smoothing=config.label_smoothing,
    )
    weight = weights[chosen].to(base.device)
    return (losses * weight).sum() / weight.sum()


def _anchor_batches(
    rows: Sequence[Encoded], config: TrainConfig, order: torch.Generator
) -> Iterator[list[int]]:
    """Batches of anchors without end."""
    size = max(1, round(config.batch_size * config.anchor_share))
    while True:
        yield from shuffled_batches([len(row) for row in rows], size, order)


def _anchor_loss(
    base: Base,
    model: nn.Module,
    rows: Sequence[Encoded],
    log_probabilities: torch.Tensor,
    config: TrainConfig,
) -> torch.Tensor:
    """KL(base ‖ adapter), mean over the batch, nats."""
    logits = _forward(base, model, rows, config)
    target = log_probabilities.to(base.device)
    return functional.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="batchmean")


def _take(base: Base, model: PeftModel, config: TrainConfig) -> Artifact:
    """The adapter now, in fp32 on the CPU, moved towards the base by `interpolation`."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    learnt = Artifact(
        tensors={
            key: value.detach().float().cpu().clone().contiguous() for key, value in state.items()
        },
        rank=config.rank,
        alpha=config.alpha,
        target_modules=base.resolve_targets(config.target_modules),
        head=base.head,
        base_fingerprint=base.fingerprint,
    )
    return towards_base(learnt, base, config.interpolation)


def _out_of_memory(config: TrainConfig) -> OutOfMemory:
    return OutOfMemory(
        f"Not enough memory for batch_size {config.batch_size} at max_length {config.max_length}; "
        "lower one of them, or train on a device with more memory"
    )
