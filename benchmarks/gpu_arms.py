"""What `gpu.py` measures, each arm in a process of its own: `python -m benchmarks.gpu_arms ARM`.

The weights of all shapes but the bundled base's are random: what is measured is time and memory.
"""

import argparse
import json
import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch.nn.functional import pad
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    pipeline,
)

import benchmarks.home  # noqa: F401  Django first

# isort: split
from adapters_app import evaluation
from adapters_app.evaluation import Contestant
from adapters_app.fitting import FitStep, fit
from adapters_app.models import Snapshot
from adapters_app.nli import guard
from adapters_app.nli.artifact import layer_number
from adapters_app.nli.base_model import WINDOW, Base, as_base, load_base
from adapters_app.nli.checkpoint import BUNDLED, encoder_directory
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.data import Example
from adapters_app.nli.encoding import Pair
from adapters_app.nli.predict import GPU_TOKENS, Predictor
from adapters_app.nli.train import Step, train, trains_in_bf16
from adapters_app.snapshots import SnapshotRow
from benchmarks.gpu import CHECKPOINTED, DECODER, MACHINE, MINILM, SERVE, TRAIN
from benchmarks.serving import DEBERTA, Texts, ask_pipeline, deberta_config
from corrections.labels import LABELS, Label
from corrections.models import FOLDS

# Qwen2.5-3B, as its published config.json has it.
QWEN_3B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11_008,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
ID2LABEL = {label.column: label.value for label in LABELS}
# A compiled pass has one of these lengths, in tokens; each is compiled once.
BUCKETS = (32, 64, 96, 128, 192, 256, 384, WINDOW)
COMPILED_SHAPES = 64  # torch gives up compiling a function anew after eight
WARM_UP = 3  # steps and products that are not counted: libraries choose their kernels in them


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    tiny: bool  # models of two small layers: a trial of the program
    square: int  # rows and columns of the matrices that are multiplied
    verdicts: int
    steps: int  # of the decoder
    batch: int  # of the decoder, pairs
    pairs: int  # in a round of answers
    singles: int
    rounds: int
    batches: tuple[int, ...]  # of the pipeline, pairs
    tokens: tuple[int, ...]  # in a pass of ours, padding counted


FULL = Sizes(
    tiny=False,
    square=8192,
    verdicts=1000,
    steps=30,
    batch=16,
    pairs=4096,
    singles=200,
    rounds=5,
    batches=(32, 128, 512),
    tokens=(GPU_TOKENS, 4 * GPU_TOKENS, 16 * GPU_TOKENS),
)
QUICK = Sizes(
    tiny=True,
    square=128,
    verdicts=60,
    steps=2,
    batch=2,
    pairs=12,
    singles=2,
    rounds=1,
    batches=(8,),
    tokens=(1024,),
)


# --- shapes ---------------------------------------------------------------------------------------


def base_of(shape: str, sizes: Sizes, device: str) -> Base:
    """The bundled base, or a random one of a shape; made on the device, a decoder in bf16."""
    if shape == MINILM and not sizes.tiny:
        return load_base(BUNDLED, device=device)
    config = config_of(shape, tiny=sizes.tiny)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(encoder_directory(), local_files_only=True)
    tokenizer.model_max_length = WINDOW
    if getattr(config, "type_vocab_size", 0) < 2:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    torch.manual_seed(0)
    with torch.device(device):
        model = random_model(config)
    return as_base(shape, model, tokenizer, f"random {shape}", device)


def config_of(shape: str, *, tiny: bool) -> Any:
    """A transformers configuration with three labels."""
    if shape == DECODER:
        small = TINY | {"num_key_value_heads": 1} if tiny else {}
        return Qwen2Config(**QWEN_3B | small, id2label=ID2LABEL)
    if shape == MINILM:
        return BertConfig(**TINY, id2label=ID2LABEL)
    return deberta_config(DebertaV2Config, TINY if tiny else DEBERTA[shape])


def random_model(config: Any) -> PreTrainedModel:
    """On the default device. A decoder in bf16, as it is multiplied: in fp32 it would be twice as
    large; its head, which is trained, in fp32."""
    if config.model_type != "qwen2":
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
    model.score.float()
    return model


def flops_per_pair(base: Base, lengths: Sequence[int]) -> float:
    """Floating-point operations that an answer cannot do without, mean over pairs of `lengths`.

    A product of matrices (n, k) and (k, m) has 2·n·k·m. Every token goes through the layers' linear
    modules; in attention it meets every other in the scores, in their weighted sum, and in each of
    DeBERTa's position terms (He et al. 2021, eq. 2 to 4). The rest of the model sees one token.
    """
    in_layers = [name for name in base.linear_shapes if layer_number(name) is not None]
    products = {
        name: 2 * outputs * inputs for name, (outputs, inputs) in base.linear_shapes.items()
    }
    per_token = sum(products[name] for name in in_layers)
    once = sum(products.values()) - per_token
    once += sum(2 * int(np.prod(shape)) for shape in base.head_shapes.values() if len(shape) == 2)
    config = base.model.config
    meetings = 2 + len(getattr(config, "pos_att_type", None) or ())
    per_meeting = 2 * meetings * config.hidden_size * base.layers
    tokens = np.asarray(lengths, dtype=float)
    return float((once + per_token * tokens + per_meeting * tokens**2).mean())


# --- arms -----------------------------------------------------------------------------------------


def machine(sizes: Sizes, device: str) -> dict[str, Any]:
    """What computes, and how fast it multiplies square matrices, TFLOP/s by precision."""
    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.machine()
    memory = torch.cuda.get_device_properties(where).total_memory if where.type == "cuda" else 0
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return {
        "device": name,
        "memory_mb": memory / 1e6,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tflops": {key: _tflops(sizes.square, where, dtype) for key, dtype in dtypes.items()},
    }


def _tflops(n: int, device: torch.device, dtype: torch.dtype, products: int = 10) -> float:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    for _ in range(WARM_UP):
        a @ b
    _synchronise(device)
    started = perf_counter()
    for _ in range(products):
        a @ b
    _synchronise(device)
    return 2 * n**3 * products / (perf_counter() - started) / 1e12


def training(shape: str, sizes: Sizes, device: str) -> dict[str, Any]:
    """What a run does with synthetic verdicts between snapshot and storage: the base's answers,
    five siblings and the released fit, calibration, shadow evaluation."""
    base = base_of(shape, sizes, device)
    rows = verdicts(sizes.verdicts)
    config = TrainConfig(epochs=1, min_steps=0) if sizes.tiny else TrainConfig()
    steps: list[FitStep] = []
    _forget_peak(base.device)
    idle, started = _allocated_mb(base.device), perf_counter()
    unadapted = Predictor(base)
    before = _contestant(unadapted, unadapted.logits([row.pair for row in rows]))
    fit_started = perf_counter()
    fitted = fit(base, rows, config, on_step=steps.append, on_wait=lambda: None)
    fit_seconds = perf_counter() - fit_started
    general = Predictor(base, fitted.released).logits(guard.load().pairs)
    calibrator, _ = evaluation.calibrate(fitted.logits, rows, general=general)
    released = Predictor(base, fitted.released, calibrator)
    evaluation.measure(
        snapshot=Snapshot(),
        rows=rows,
        candidate=_contestant(released, fitted.logits),
        incumbent=before,
        base=before,
        served=(None, None),
        guard_set=guard.load(),
        seed=config.seed,
    )
    seconds = perf_counter() - started
    return {
        "bf16": trains_in_bf16(base, config),
        "verdicts": len(rows),
        "steps": steps[-1].done,
        "seconds_per_1000_verdicts": 1000 * seconds / len(rows),
        "fit_seconds_per_1000_verdicts": 1000 * fit_seconds / len(rows),
        "idle_mb": idle,
        "peak_mb": _peak_mb(base.device),
    }


def _contestant(predictor: Predictor, logits: np.ndarray) -> Contestant:
    """`logits` (n, 3) of the verdicts, out of fold where the model learnt from them."""
    return Contestant(
        logits=logits,
        general_logits=predictor.logits(guard.unlabelled().pairs),
        calibrator=predictor.calibrator,
        digest="candidate" if predictor.resident_bytes else "",
    )


def verdicts(count: int) -> list[SnapshotRow]:
    """Reviewed pairs of the streams' lengths, two to a page, of a label each."""
    pairs = Texts("streams", seed=1).pairs(count)
    return [
        SnapshotRow(
            correction_id=number,
            pair_digest=str(number),
            premise=premise,
            hypothesis=hypothesis,
            label=LABELS[number % len(LABELS)].value,
            predicted_label=Label.NEUTRAL.value,
            predicted_confidence=0.6,
            verdict="corrected" if number % len(LABELS) else "confirmed",
            fold=number // 2 % FOLDS,
            group_id=number // 2,
            sampling="complete",
            sampling_probability=1.0,
            domain="synthetic",
            annotator="nobody",
            reviewed_at="2026-01-01T00:00:00+00:00",
        )
        for number, (premise, hypothesis) in enumerate(pairs)
    ]


def decoder(mode: str, sizes: Sizes, device: str) -> dict[str, Any]:
    """LoRA on q_proj and v_proj of Qwen2.5-3B's shape: steps per second, peak memory."""
    base = base_of(DECODER, sizes, device)
    config = TrainConfig(
        epochs=1,
        batch_size=sizes.batch,
        min_steps=0,
        anchor_weight=0,
        learning_rate=2e-4,
        precision="bf16",
        gradient_checkpointing=mode == CHECKPOINTED,
    )
    count = sizes.batch * (WARM_UP + sizes.steps)
    pairs = Texts("streams", seed=1).pairs(count)
    examples = [Example(*pair, LABELS[i % len(LABELS)]) for i, pair in enumerate(pairs)]
    times: list[float] = []

    def look(_: Step) -> None:
        times.append(perf_counter())

    _forget_peak(base.device)
    idle = _allocated_mb(base.device)
    result = train(base, examples, config, on_step=look)
    return {
        "parameters": base.model.num_parameters(),
        "trainable_parameters": result.trainable_parameters,
        "target_modules": base.target_modules,
        "batch": sizes.batch,
        "mean_tokens": float(np.mean([len(row) for row in base.encoder.encode(pairs)])),
        "steps_per_s": sizes.steps / (times[-1] - times[WARM_UP - 1]),
        "idle_mb": idle,
        "peak_mb": _peak_mb(base.device),
    }


# --- answering ------------------------------------------------------------------------------------

# Logits (n, 3) of pairs in passes of at most so many tokens, or pairs; 1 = one pair a pass.
Answer = Callable[[Sequence[Pair], int], np.ndarray]


class Compiled(Predictor):
    """Passes of a few fixed shapes, each compiled once, rows and tokens filled up."""

    def __init__(self, base: Base, tokens: int, **how: Any) -> None:
        super().__init__(base)
        self._tokens = tokens
        self._compiled = torch.compile(self._model, dynamic=False, **how)

    def _passes(
        self, lengths: Sequence[int], batch_size: int | None, tokens: int
    ) -> list[list[int]]:
        in_bucket: defaultdict[int, list[int]] = defaultdict(list)
        for i, length in enumerate(lengths):
            in_bucket[_bucket(length)].append(i)
        return [
            rows[start : start + self._rows(bucket)]
            for bucket, rows in in_bucket.items()
            for start in range(0, len(rows), self._rows(bucket))
        ]

    @torch.inference_mode()
    def _forward(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        rows, length = batch["input_ids"].shape
        bucket = _bucket(length)
        room = (0, bucket - length, 0, self._rows(bucket) - rows)
        fill = {"input_ids": self.base.pad_id}
        filled = {
            key: pad(value, room, value=fill.get(key, 0)).to(self.base.device)
            for key, value in batch.items()
        }
        return self._compiled(**filled).logits[:rows].float().cpu().numpy()

    def _rows(self, bucket: int) -> int:
        return max(1, self._tokens // bucket)


def _bucket(length: int) -> int:
    return next(bucket for bucket in BUCKETS if length <= bucket)


def _ours(base: Base, dtype: torch.dtype) -> Answer:
    predictor = Predictor(_in(base, dtype))
    return lambda pairs, tokens: predictor.logits(pairs, tokens=tokens)


def _compiled(base: Base, mode: str | None) -> Answer:
    """In bf16. Off a GPU the graph is made, and run as it is: a trial."""
    torch._dynamo.config.recompile_limit = COMPILED_SHAPES
    how = {"mode": mode} if base.device.type == "cuda" else {"backend": "eager"}
    halved = _in(base, torch.bfloat16)
    made: dict[int, Compiled] = {}

    def answer(pairs: Sequence[Pair], tokens: int) -> np.ndarray:
        if tokens not in made:
            made[tokens] = Compiled(halved, tokens, **how)
        return made[tokens].logits(pairs)

    return answer


def _pipeline(base: Base, dtype: torch.dtype) -> Answer:
    pipe = pipeline(
        "text-classification",
        model=_in(base, dtype).model,
        tokenizer=base.tokenizer,
        device=base.device,
        top_k=None,
    )
    columns = list(base.label_columns)
    return lambda pairs, batch: ask_pipeline(pipe, pairs, batch)[:, columns]


def _in(base: Base, dtype: torch.dtype) -> Base:
    """Nobody else has this base: it is changed where it is, and no second copy kept."""
    torch.nn.Module.to(base.model, dtype)
    return base


WAYS: Mapping[str, Callable[[Base], Answer]] = {
    "pipeline fp32": lambda base: _pipeline(base, torch.float32),
    "pipeline fp16": lambda base: _pipeline(base, torch.float16),
    "pipeline bf16": lambda base: _pipeline(base, torch.bfloat16),
    "ours fp32": lambda base: _ours(base, torch.float32),
    "ours bf16": lambda base: _ours(base, torch.bfloat16),
    "ours bf16 compiled": lambda base: _compiled(base, None),
    "ours bf16 CUDA graphs": lambda base: _compiled(base, "reduce-overhead"),
}


def serving(shape: str, way: str, sizes: Sizes, device: str) -> dict[str, Any]:
    """Bulk rate by the size of a pass, texts to logits; p50 of single pairs; probabilities."""
    base = base_of(shape, sizes, device)
    pairs = Texts("short", seed=1).pairs(sizes.pairs)
    answer = WAYS[way](base)
    _forget_peak(base.device)
    bulk: dict[int, float] = {}
    for size in sizes.batches if way.startswith("pipeline") else sizes.tokens:
        with suppress(torch.OutOfMemoryError):  # on a small device; smaller passes stand
            answer(pairs, size)  # what has to be compiled or allocated is, before it counts
            rounds = [_seconds(answer, pairs, size) for _ in range(sizes.rounds)]
            bulk[size] = len(pairs) / statistics.median(rounds)
    singles = [pairs[i % len(pairs)] for i in range(sizes.singles)]
    for pair in singles:
        answer([pair], 1)
    took = [_seconds(answer, [pair], 1) for pair in singles]
    started = perf_counter()
    lengths = [len(row) for row in base.encoder.encode(pairs)]
    tokenising = perf_counter() - started
    return {
        "pairs_per_s": bulk,
        "best_pairs_per_s": max(bulk.values()),
        "p50_ms": 1000 * statistics.median(took),
        "tokeniser_pairs_per_s": len(pairs) / tokenising,
        "flops_per_pair": flops_per_pair(base, lengths),
        "peak_mb": _peak_mb(base.device),
        "probabilities": softmax(answer(guard.load().pairs[:64], 1), axis=1).tolist(),
    }


def _seconds(answer: Answer, pairs: Sequence[Pair], size: int) -> float:
    started = perf_counter()
    answer(pairs, size)  # ends with numbers on the CPU: nothing is left to wait for
    return perf_counter() - started


# --- the device -----------------------------------------------------------------------------------


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _allocated_mb(device: torch.device) -> float | None:
    return torch.cuda.memory_allocated(device) / 1e6 if device.type == "cuda" else None


def _peak_mb(device: torch.device) -> float | None:
    """Of tensors; None on a CPU, where the system counts (see `trained`)."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def measure(arm: str, sizes: Sizes, device: str) -> dict[str, Any]:
    """One of `gpu.ARMS`."""
    kind, _, rest = arm.partition(" ")
    if kind == MACHINE:
        return machine(sizes, device)
    if kind == TRAIN:
        return training(rest, sizes, device)
    if kind == DECODER:
        return decoder(rest, sizes, device)
    assert kind == SERVE
    shape, _, way = rest.partition(" ")
    return serving(shape, way, sizes, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm")
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    where = torch.device(options.device)
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise SystemExit(
            f"torch {torch.__version__} finds no CUDA device {options.device} here; "
            "--device cpu --quick tries the program out without one"
        )
    sizes = QUICK if options.quick else FULL
    print(json.dumps(measure(options.arm, sizes, options.device)))


if __name__ == "__main__":
    main()
