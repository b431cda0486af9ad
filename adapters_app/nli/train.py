"""Training one LoRA adapter on a frozen base: `train()` reads top to bottom.

LoRA: Hu et al. 2021, through PEFT. The anchor term, KL(base ‖ adapter) on pairs without labels,
keeps what the base knows (learning without forgetting, Li & Hoiem 2016).
"""

import copy
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from adapters_app.nli.artifact import Artifact
from adapters_app.nli.base_model import Base, put_parameters
from adapters_app.nli.checkpoint import PREFIX
from adapters_app.nli.config import AUTO, TrainConfig
from adapters_app.nli.data import Example, collate, shuffled_batches
from adapters_app.nli.encoding import Encoded, Pair
from adapters_app.nli.lower import Given, Lower
from adapters_app.nli.predict import Predictor
from corrections.labels import LABELS

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
    lower: Lower | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    evaluate_each_epoch: bool = True,
    passes: float | None = None,
) -> TrainResult:
    """Train an adapter on `examples`; after each epoch keep it and answer `evaluate` with it.

    `lower` is what the layers below the adapted ones make of the pairs; several fits may share it.
    `passes` over the examples are divided into the epochs; where several fits on parts of the same
    data are to be alike, it is that of the whole, default `passes_over(examples)`. `on_step` may
    raise to stop.

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
    trainee = _Trainee(
        base, model, lower.stand_in(model.get_base_model(), base) if lower else None, config
    )
    rows = _inputs(base, [example.pair for example in examples], config, lower)
    labels = torch.tensor([_column(base, example) for example in examples])
    weights = torch.tensor([example.weight for example in examples], dtype=torch.float32)
    offset = config.logit_adjustment * _log_frequencies(labels, weights)
    held_to = anchors if anchors and anchors.pairs and config.anchor_weight > 0 else None

    batches = math.ceil(len(rows) / config.batch_size)
    total = max(config.epochs, round((passes or passes_over(len(rows), config)) * batches))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trainable, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: linear_rate(step, total, config.warmup_share)
    )
    anchor_rows = _inputs(base, held_to.pairs, config, lower) if held_to else []
    batches_of_rows = _endless(rows, config.batch_size, order)
    batches_of_anchors = _endless(anchor_rows, config.anchors_in_step, order)
    results: list[EpochResult] = []
    step = pairs_done = 0
    with _explaining_memory(config):
        for epoch in range(1, config.epochs + 1):
            losses: list[float] = []
            until = round(total * epoch / config.epochs)
            for chosen in itertools.islice(batches_of_rows, until - step):
                value = _add_gradients(_loss(trainee, rows, labels, weights, offset, chosen))
                if held_to:
                    near = next(batches_of_anchors)
                    kept = _anchor_loss(
                        trainee, [anchor_rows[i] for i in near], held_to.log_probabilities[near]
                    )
                    value += _add_gradients(config.anchor_weight * kept)
                if not math.isfinite(value):
                    raise TrainingDiverged(
                        f"The loss became {value} at step {step + 1} of {total}; "
                        f"lower learning_rate (now {config.learning_rate:g})"
                    )
                nn.utils.clip_grad_norm_(trainable, GRADIENT_NORM)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad(set_to_none=True)
                step += 1
                pairs_done += len(chosen)
                losses.append(value)
                if on_step is not None:
                    speed = pairs_done / (time.perf_counter() - started)
                    on_step(Step(step, total, epoch, value, speed))
            artifact = _take(base, model, config)
            wanted = evaluate_each_epoch or epoch == config.epochs
            logits = Predictor(base, artifact).logits(evaluate) if evaluate and wanted else None
            results.append(EpochResult(epoch, float(np.mean(losses)), logits, artifact))
            if on_epoch is not None:
                on_epoch(results[-1])
    count = sum(parameter.numel() for parameter in trainable)
    return TrainResult(results, count, time.perf_counter() - started)


def adapted_model(base: Base, config: TrainConfig) -> PeftModel:
    """The base with a fresh adapter; the base's own tensors are not touched.

    Raises:
        BaseModelError: a target module that the base does not have.
    """
    targets = base.resolve_targets(config.target_modules)
    model = _frozen_model(base, config)
    adapter = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT divides it; any number will do
        lora_dropout=config.dropout,
        target_modules=list(targets),
        layers_to_transform=list(base.upper_layers(config.layer_share)) or None,
        modules_to_save=[base.head],
    )
    # The initial A matrices come from torch's global generator, which other threads share.
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapted = get_peft_model(model, adapter).eval()
    generator = torch.Generator(base.device).manual_seed(config.seed)
    _seed_dropout(adapted, config, generator)
    if config.gradient_checkpointing:
        _keep_no_activations(adapted, generator)
    return adapted


def below_adapter(
    base: Base,
    pairs: Sequence[Pair],
    config: TrainConfig,
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Lower | None:
    """What the layers that `config` does not adapt make of `pairs`; None where it adapts all.

    Raises:
        OutOfMemory: as `train`.
    """
    layers = base.upper_layers(config.layer_share)
    if not layers:
        return None
    with _explaining_memory(config):
        return Lower.of(
            base,
            _frozen_model(base, config),
            pairs,
            first=layers[0],
            encoder=base.encoder.limited_to(config.max_length),
            autocast=lambda: _autocast(base, config),
            on_batch=on_batch,
        )


def _frozen_model(base: Base, config: TrainConfig) -> PreTrainedModel:
    """The base as it is multiplied in training; tensors that are not changed are the base's own."""
    model = base.structure_copy()
    if trains_in_bf16(base, config):
        # Frozen tensors in bf16 once, instead of casts in every step; the adapter stays fp32.
        for name, parameter in list(model.named_parameters()):
            put_parameters(model, {name: parameter.bfloat16()})
        # The head is trained: it starts from the base's exact values.
        setattr(model, base.head, copy.deepcopy(getattr(base.model, base.head)))
    use_plain_attention(model, base.device)
    return model


def use_plain_attention(model: PreTrainedModel, device: torch.device) -> None:
    """On a CPU: SDPA's backward takes several times as long there as plain attention's."""
    if device.type == "cpu" and model.config.model_type in {"bert", "roberta", "qwen2"}:
        model.config = copy.deepcopy(model.config)
        model.set_attn_implementation("eager")


def trains_in_bf16(base: Base, config: TrainConfig) -> bool:
    """Whether frozen matrices are multiplied in bf16: asked for, or native to the hardware."""
    if config.precision != AUTO:
        return config.precision == "bf16"
    return multiplies_bf16(base.device)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 natively (an emulation is slower than fp32)."""
    if device.type == "cuda":
        # Since Ampere, 8.0. `torch.cuda.is_bf16_supported` also counts an emulation, and asks the
        # current device, whichever that is.
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
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


def _seed_dropout(model: PeftModel, config: TrainConfig, generator: torch.Generator) -> None:
    """Only the adapter drops out (the encoder is in evaluation mode: its own dropout costs a
    quarter of the time and gains a frozen encoder nothing)."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_dropout:
                if config.dropout > 0:
                    module.lora_dropout[name] = Dropout(config.dropout, generator)


def _keep_no_activations(model: PeftModel, generator: torch.Generator) -> None:
    """Each layer keeps its input only; the rest is computed again (Chen et al. 2016)."""
    frozen = cast(PreTrainedModel, model.get_base_model())
    frozen.gradient_checkpointing_enable(
        {"use_reentrant": False, "context_fn": lambda: _same_draws(generator)}
    )
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # Only one in training mode is computed again; what is inside stays as it is.
            module.training = True


def _same_draws(
    generator: torch.Generator,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around a layer's first computation and its second, which drops out the same elements.

    torch itself restores its global generators only.
    """
    drawn_from: list[torch.Tensor] = []

    @contextmanager
    def first() -> Iterator[None]:
        drawn_from.append(generator.get_state())
        yield

    @contextmanager
    def again() -> Iterator[None]:
        now = generator.get_state()
        generator.set_state(drawn_from[0])
        try:
            yield
        finally:  # torch leaves by an exception as soon as it has what it needs
            generator.set_state(now)

    return first(), again()


@dataclass(frozen=True, slots=True)
class _Input:
    """A row as it is given to the model; `state` is what its lower layers would make of it."""

    encoded: Encoded
    state: torch.Tensor | None  # (tokens, hidden)

    def __len__(self) -> int:
        return len(self.encoded)


def _inputs(
    base: Base, pairs: Sequence[Pair], config: TrainConfig, lower: Lower | None
) -> list[_Input]:
    encoded = base.encoder.limited_to(config.max_length).encode(pairs)
    states = [lower.state(pair) if lower else None for pair in pairs]
    return [_Input(*row) for row in zip(encoded, states, strict=True)]


def _column(base: Base, example: Example) -> int:
    return base.label_columns[example.label.column]


def passes_over(rows: int, config: TrainConfig) -> float:
    """How often a training goes over n rows, n ≥ 1: `epochs`, and more for `min_steps`."""
    return max(config.epochs, config.min_steps / math.ceil(rows / config.batch_size))


def linear_rate(step: int, total: int, warmup_share: float) -> float:
    """Linear warm-up over a share of the steps, then linear decay to zero."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


@dataclass(frozen=True, eq=False)
class _Trainee:
    """The model in training; `given` stands in for its lower layers, where they are known."""

    base: Base
    model: PeftModel
    given: Given | None
    config: TrainConfig

    def logits(self, rows: Sequence[_Input]) -> torch.Tensor:
        """(n, 3), columns as the checkpoint has them"""
        base = self.base
        if self.given is not None:
            self.given.set([row.state for row in rows if row.state is not None])
        batch = collate(
            [row.encoded for row in rows], pad_id=base.pad_id, type_ids=base.uses_type_ids
        )
        batch = {key: value.to(base.device) for key, value in batch.items()}
        with _autocast(base, self.config):
            logits: torch.Tensor = self.model(**batch).logits.float()
        return logits


def _autocast(base: Base, config: TrainConfig) -> torch.autocast:
    return torch.autocast(
        base.device.type,
        dtype=torch.bfloat16,
        enabled=trains_in_bf16(base, config),
        cache_enabled=False,  # the cache is shared by all threads; every weight is used once anyway
    )


def _loss(
    trainee: _Trainee,
    rows: list[_Input],
    labels: torch.Tensor,
    weights: torch.Tensor,
    offset: torch.Tensor,
    chosen: list[int],
) -> torch.Tensor:
    logits = trainee.logits([rows[i] for i in chosen])
    logits = logits + offset.to(logits.device)
    losses = functional.cross_entropy(
        logits,
        labels[chosen].to(logits.device),
        reduction="none",
        label_smoothing=trainee.config.label_smoothing,
    )
    weight = weights[chosen].to(logits.device)
    return (losses * weight).sum() / weight.sum()


def _add_gradients(loss: torch.Tensor) -> float:
    """Adds those of one term of the loss, whose activations go before the next term is computed."""
    loss.backward()
    return loss.item()


def _log_frequencies(labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(3,) log share of each label, one row of each added: a label may be missing."""
    sums = torch.bincount(labels, weights=weights, minlength=len(LABELS)) + 1
    return (sums / sums.sum()).log()


def _endless(
    rows: Sequence[_Input], batch_size: int, order: torch.Generator
) -> Iterator[list[int]]:
    """Batches of n ≥ 1 rows without end, pass after pass."""
    lengths = [len(row) for row in rows]
    while True:
        yield from shuffled_batches(lengths, batch_size, order)


def _anchor_loss(
    trainee: _Trainee, rows: Sequence[_Input], log_probabilities: torch.Tensor
) -> torch.Tensor:
    """KL(base ‖ adapter), mean over the batch, nats."""
    logits = trainee.logits(rows)
    target = log_probabilities.to(logits.device)
    return functional.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="batchmean")


def _take(base: Base, model: PeftModel, config: TrainConfig) -> Artifact:
    """The adapter now, in fp32 on the CPU, moved towards the base by `interpolation`."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    learnt = Artifact(
        tensors={
            key: value.detach().float().cpu().clone().contiguous().numpy()
            for key, value in state.items()
        },
        rank=config.rank,
        alpha=config.alpha,
        target_modules=base.resolve_targets(config.target_modules),
        head=base.head,
        base_fingerprint=base.fingerprint,
        layers=base.upper_layers(config.layer_share),
    )
    return towards_base(learnt, base, config.interpolation)


def towards_base(artifact: Artifact, base: Base, share: float) -> Artifact:
    """The adapter with only a share of what it learnt: 1 = all of it, 0 = the base's answers.

    Scaling B by λ and mixing the head λ : 1 - λ with the base's is the weight-space ensemble of
    WiSE-FT (Wortsman et al. 2022), exactly, since the update is linear in B.
    """
    start = dict(base.model.named_parameters())
    tensors = dict(artifact.tensors)
    for key, tensor in artifact.tensors.items():
        if ".lora_B." in key:
            tensors[key] = tensor * np.float32(share)
        elif ".lora_A." not in key and share < 1:
            origin = start[key.removeprefix(PREFIX)].float().cpu().numpy()
            tensors[key] = origin + np.float32(share) * (tensor - origin)
    return replace(artifact, tensors=tensors, manifest={}, digest="")


@contextmanager
def _explaining_memory(config: TrainConfig) -> Iterator[None]:
    """In this block the device's lack of memory is an OutOfMemory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(config) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # what torch's CPU allocator says
            raise _out_of_memory(config) from error
        raise


def _out_of_memory(config: TrainConfig) -> OutOfMemory:
    return OutOfMemory(
        f"Not enough memory for batch_size {config.batch_size} at max_length {config.max_length}; "
        "lower one of them, set gradient_checkpointing, or train on a device with more memory"
    )
