"""How fast are answers, and how exact? Every arm on the same pairs, in one run.

    python benchmarks/serving.py [--quick] [--shape minilm|xsmall|small] [--mix short|streams]
                                 [--rounds 5] [--isa AVX512_CORE_BF16] [--out FILE]

Arms: Hugging Face's pipeline, sentence-transformers' CrossEncoder, and our engines with one adapter
(openvino also with eight in every batch). Each is a process of its own, all with the same allocator
settings; rounds take turns, so that whatever else the machine does falls on all. Every request has
pairs never seen before: nothing is cached, and new shapes are paid for where they occur.
`--shape xsmall|small` are random models of the shape of DeBERTa-v3-xsmall and -small.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from adapters_app.nli import checkpoint, guard, reference  # noqa: E402
from adapters_app.nli.encoding import Pair  # noqa: E402
from adapters_app.nli.own_process import resident_mb  # noqa: E402
from adapters_app.nli.probabilities import softmax  # noqa: E402
from inference.batching import AtOnce, Batcher  # noqa: E402

ARMS = ("pipeline", "cross-encoder", "torch", "openvino", "openvino-8-mixed")
BATCHES = (1, 8, 32, 128)
# glibc gives large blocks back and faults them in again at every pass; with these it keeps them.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483648"}
# Tokens (premise, hypothesis) of a mix: the issue's, and lengths like those of the real streams.
MIXES: dict[str, Callable[[random.Random], tuple[int, int]]] = {
    "short": lambda r: (r.randint(20, 60), r.randint(8, 25)),
    "streams": lambda r: (min(int(r.lognormvariate(3.85, 0.6)), 400), r.randint(8, 25)),
}
DEBERTA: dict[str, dict[str, int]] = {
    "xsmall": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
    },
    "small": {
        "hidden_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}
CLEAR_MARGIN = 0.05  # between the two most probable labels
OPEN_LOOP_LOAD = 0.8  # of the arm's own rate for single pairs
Logits = Callable[[Sequence[Pair]], np.ndarray]


# --- one arm, in a process of its own -------------------------------------------------------------


def serve(arm: str, home: Path) -> None:
    """Answer requests (one JSON object a line) until standard input ends."""
    started = time.perf_counter()
    logits = MAKE[arm](home)
    logits([("It rains.", "It is dry.")])
    _say({"start_s": time.perf_counter() - started, "rss_mb": resident_mb()})
    for line in sys.stdin:
        asked = json.loads(line)
        pairs = [tuple(pair) for pair in asked["pairs"]]
        if asked["do"] == "closed":
            _say(_closed_loop(logits, pairs, asked["batch"]))
        elif asked["do"] == "open":
            _say(_open_loop(logits, pairs, asked["rate"], batched=arm in OURS))
        else:
            _say({"probabilities": softmax(logits(pairs)).tolist()})


def _closed_loop(logits: Logits, pairs: Sequence[Pair], batch: int) -> dict[str, float]:
    """One client, one request of `batch` pairs after the other."""
    took = []
    for start in range(0, len(pairs), batch):
        before = time.perf_counter()
        logits(pairs[start : start + batch])
        took.append(time.perf_counter() - before)
    return {"pairs_per_s": len(pairs) / sum(took), "p50_ms": 1000 * statistics.median(took)}


def _open_loop(
    logits: Logits, pairs: Sequence[Pair], rate: float, *, batched: bool
) -> dict[str, float]:
    """Single pairs arrive at random (Poisson), whether or not earlier ones are answered."""
    arrivals = np.cumsum(np.random.default_rng(1).exponential(1 / rate, len(pairs)))
    batcher, begin = Batcher(max_pairs=256, max_waiting=len(pairs)), AtOnce(logits)
    turn = threading.Lock()
    began = time.perf_counter()

    def answer(pair: Pair, due: float) -> float:
        if batched:
            batcher.run(begin, [pair])
        else:
            with turn:
                logits([pair])
        return time.perf_counter() - began - due

    with ThreadPoolExecutor(64) as pool:
        waiting = []
        for pair, due in zip(pairs, arrivals.tolist(), strict=True):
            time.sleep(max(0.0, began + due - time.perf_counter()))
            waiting.append(pool.submit(answer, pair, due))
        took = [1000 * future.result() for future in waiting]
    return {"p50_ms": float(np.percentile(took, 50)), "p99_ms": float(np.percentile(took, 99))}


def _pipeline(home: Path) -> Logits:
    from transformers import pipeline  # noqa: PLC0415  each arm loads what it measures

    pipe = pipeline("text-classification", model=str(home / "model"), top_k=None, device="cpu")
    return lambda pairs: ask_pipeline(pipe, pairs, len(pairs))


def ask_pipeline(pipe: Any, pairs: Sequence[Pair], batch: int) -> np.ndarray:
    """Logits (n, 3) of Hugging Face's pipeline, columns in the checkpoint's order."""
    names = {str(name): int(column) for column, name in (pipe.model.config.id2label or {}).items()}
    texts = [{"text": premise, "text_pair": hypothesis} for premise, hypothesis in pairs]
    out = np.empty((len(pairs), len(names)))
    answers = pipe(texts, batch_size=batch, function_to_apply="none")
    for row, answer in zip(out, answers, strict=True):
        for each in answer:
            row[names[each["label"]]] = each["score"]
    return out


def _cross_encoder(home: Path) -> Logits:
    from sentence_transformers import CrossEncoder  # noqa: PLC0415

    model = CrossEncoder(str(home / "model"), device="cpu")

    def logits(pairs: Sequence[Pair]) -> np.ndarray:
        scores: np.ndarray = model.predict(
            list(pairs), batch_size=len(pairs), show_progress_bar=False
        )
        return scores

    return logits


def _torch(home: Path) -> Logits:
    from adapters_app.nli.base_model import load_base  # noqa: PLC0415
    from adapters_app.nli.predict import TorchEngine  # noqa: PLC0415

    engine = TorchEngine(load_base(str(home / "model")))
    adapter = reference.probe(engine.base, engine.base.target_modules)
    return engine.predictor(adapter).logits


def _openvino(home: Path, adapters: int = 1) -> Logits:
    from adapters_app.nli.openvino_engine import start  # noqa: PLC0415

    def ask(files: checkpoint.Files) -> tuple[reference.Reference, str]:
        raise SystemExit(f"no reference was stored for {files.name}")

    engine = start(str(home / "model"), revision="", references=home / "references", ask=ask)
    adapter = reference.probe(engine.base, engine.base.reference.target_modules)
    predictors = [engine.predictor(adapter) for _ in range(adapters)]

    def logits(pairs: Sequence[Pair]) -> np.ndarray:
        return engine.logits([(predictors[i % adapters], p) for i, p in enumerate(pairs)])

    return logits


MAKE: dict[str, Callable[[Path], Logits]] = {
    "pipeline": _pipeline,
    "cross-encoder": _cross_encoder,
    "torch": _torch,
    "openvino": _openvino,
    "openvino-8-mixed": lambda home: _openvino(home, adapters=8),
}
OURS = ("torch", "openvino", "openvino-8-mixed")


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


# --- the run --------------------------------------------------------------------------------------


class Arm:
    """A process that answers; it sleeps while it is not asked."""

    def __init__(self, name: str, home: Path, environment: dict[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, "--home", str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | environment,
            text=True,
        )
        self.facts = self._hear()

    def ask(self, do: str, pairs: Sequence[Pair], **options: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, "pairs": pairs, **options}) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def close(self) -> None:
        self._process.communicate()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):  # what libraries print
            line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}")
        heard: dict[str, Any] = json.loads(line)
        return heard


class Texts:
    """Distinct pairs of wanted lengths, out of the guard set's words."""

    def __init__(self, mix: str, seed: int) -> None:
        self._random = random.Random(seed)
        self._lengths = MIXES[mix]
        self._words = sorted({word for pair in guard.load().pairs for word in pair[0].split()})

    def pairs(self, count: int) -> list[Pair]:
        return [tuple(map(self._text, self._lengths(self._random))) for _ in range(count)]  # type: ignore[misc]

    def _text(self, tokens: int) -> str:
        # An English word is 1.3 tokens of such vocabularies.
        return " ".join(self._random.choices(self._words, k=max(1, round(tokens / 1.3))))


def prepare(shape: str, home: Path) -> None:
    """Write the model that all arms load, and what torch says of it."""
    program = "import sys; from benchmarks import serving; serving.write_model(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", program, shape, str(home)], cwd=ROOT, check=True)


def base_name(shape: str, model: Path | None, home: Path) -> str:
    """What a base is loaded by: a checkpoint's directory, where given; or the bundled one for
    minilm; or a random one of the shape, which is written to `home`."""
    if model is not None:
        return str(model)
    if shape not in DEBERTA:
        return checkpoint.BUNDLED
    prepare(shape, home)
    return str(home / "model")


def write_model(shape: str, home: str) -> None:
    """In a process of its own: it needs torch, which the parent has no use for."""
    import torch  # noqa: PLC0415
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification  # noqa: PLC0415

    from adapters_app.nli.base_model import load_base  # noqa: PLC0415
    from adapters_app.nli.predict import TorchEngine  # noqa: PLC0415

    path = Path(home) / "model"
    bundled = load_base(checkpoint.BUNDLED)
    model, tokenizer = bundled.model, bundled.tokenizer
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    if shape != "minilm":
        torch.manual_seed(0)
        model = DebertaV2ForSequenceClassification(deberta_config(DebertaV2Config, DEBERTA[shape]))
        inputs.remove("token_type_ids")
    # What is not among these is not stored, and the baselines would serve another model.
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = inputs
    tokenizer.model_max_length = 512
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    files = checkpoint.find(str(path))
    known, text = TorchEngine(load_base(str(path))).reference(files.digest)
    reference.write(known, text, Path(home) / "references")


def deberta_config(config: Any, sizes: Mapping[str, int]) -> Any:
    """As the published DeBERTa-v3 cross-encoders are made, but for their sizes."""
    labels = ("contradiction", "entailment", "neutral")
    return config(
        **sizes,
        vocab_size=128_100,
        max_position_embeddings=512,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        pooler_hidden_size=sizes["hidden_size"],
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )


def measure(arms: Sequence[Arm], options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of every arm and batch size in turn; then single pairs arriving at random."""
    closed: dict[str, dict[int, list[dict[str, float]]]] = {
        arm.name: {batch: [] for batch in BATCHES} for arm in arms
    }
    for turn in range(options.rounds):
        for batch in BATCHES:
            pairs = Texts(options.mix, seed=100 * turn + batch).pairs(options.pairs)
            for arm in random.Random(turn).sample(list(arms), len(arms)):
                closed[arm.name][batch].append(arm.ask("closed", pairs, batch=batch))
    results = {arm.name: arm.facts | _summary(closed[arm.name]) for arm in arms}
    if not options.quick:
        for arm in arms:
            rate = OPEN_LOOP_LOAD * results[arm.name]["closed"]["1"]["pairs_per_s"]
            pairs = Texts(options.mix, seed=9_000).pairs(4 * options.pairs)
            results[arm.name]["open"] = {"rate": rate, **arm.ask("open", pairs, rate=rate)}
    _compare(arms, results, guard.load().pairs[:: 6 if options.quick else 1])
    return results


def _summary(rounds: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    closed = {
        str(batch): {key: statistics.median(each[key] for each in measured) for key in measured[0]}
        for batch, measured in rounds.items()
    }
    best = max(figures["pairs_per_s"] for figures in closed.values())
    return {"closed": closed, "best_pairs_per_s": best}


def _compare(arms: Sequence[Arm], results: dict[str, Any], pairs: Sequence[Pair]) -> None:
    """How far each of ours is from the torch engine, in fp32, on the guard set's pairs."""
    ours = {arm.name: arm for arm in arms if arm.name in OURS}
    if "torch" not in ours:
        return
    expected = np.array(ours["torch"].ask("answer", pairs)["probabilities"])
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > CLEAR_MARGIN
    for name, arm in ours.items():
        found = np.array(arm.ask("answer", pairs)["probabilities"])
        away = np.abs(found - expected)
        same = found.argmax(axis=1) == expected.argmax(axis=1)
        results[name] |= {
            "max_dp": float(away.max()),
            "p999_dp": float(np.quantile(away, 0.999)),
            "mean_dp": float(away.mean()),
            "same_label": float(same.mean()),
            "same_label_where_clear": float(same[clear].mean()),
        }


def ratios(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of each arm to each baseline: best batch against best batch, and single pairs' latency."""
    return {
        name: {
            f"{what} vs {base}": ratio
            for base in ("pipeline", "cross-encoder")
            if base in results and base != name
            for what, ratio in (
                ("bulk", mine["best_pairs_per_s"] / results[base]["best_pairs_per_s"]),
                ("p50", results[base]["closed"]["1"]["p50_ms"] / mine["closed"]["1"]["p50_ms"]),
            )
        }
        for name, mine in results.items()
        if name in OURS
    }


def show(results: dict[str, Any]) -> None:
    table = Table("arm", *(f"b{batch}" for batch in BATCHES), "p50 ms", "start s", "MB", "max Δp")
    for name, row in results.items():
        closed = row["closed"]
        table.add_row(
            name,
            *(f"{closed[str(batch)]['pairs_per_s']:.0f}" for batch in BATCHES),
            f"{closed['1']['p50_ms']:.1f}",
            f"{row['start_s']:.1f}",
            f"{row['rss_mb']:.0f}",
            f"{row['max_dp']:.4f}" if "max_dp" in row else "–",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one line of ratios within a minute")
    parser.add_argument("--shape", choices=("minilm", *DEBERTA), default="minilm")
    parser.add_argument("--mix", choices=sorted(MIXES), default="short")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=256, help="in a round, per batch size")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=ARMS)
    parser.add_argument("--isa", help="ONEDNN_MAX_CPU_ISA, e.g. AVX512_CORE_BF16: without AMX")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.home)
        return
    if options.quick:
        options.rounds, options.pairs = 3, 64
    environment = ALLOCATOR | ({"ONEDNN_MAX_CPU_ISA": options.isa} if options.isa else {})
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        prepare(options.shape, home)
        arms = [Arm(name, home, environment) for name in options.arms]
        results = measure(arms, options)
        for arm in arms:
            arm.close()
    found = ratios(results)
    if options.quick:
        print(
            "; ".join(
                f"{n}: " + ", ".join(f"{k} {v:.2f}×" for k, v in r.items())
                for n, r in found.items()
            )
        )
    else:
        show(results)
    if options.out:
        asked = {key: value for key, value in vars(options).items() if key not in ("serve", "home")}
        report = {"options": asked, "arms": results, "ratios": found}
        options.out.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
