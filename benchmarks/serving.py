"""How fast are answers, and how exact? Every arm on the same pairs, in one run.

    python benchmarks/serving.py [--quick] [--shape minilm|xsmall|small | --model DIR]
        [--mix short|streams] [--rounds 5] [--isa AVX512_CORE_BF16] [--out FILE]

Arms: Hugging Face's pipeline, sentence-transformers' CrossEncoder, and our engines with one adapter
(openvino also with eight different ones in every batch). All serve the same adapted encoder, the
rivals as merged weights; adapters are as large as trained ones. Each arm is a process of its own,
all with the same allocator settings; rounds take turns, so that whatever else the machine does
falls on all, and ratios are medians over rounds of ratios within a round. Every request has pairs
never seen before: nothing is cached, and new shapes are paid for where they occur. A closed loop of
one client; then single pairs that arrive at random, at 80 % of the arm's own rate in that round.
`--shape xsmall|small` are random models of the shape of DeBERTa-v3-xsmall and -small.
"""

import argparse
import json
import os
import random
import shutil
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

from adapters_app.nli import artifact, checkpoint, guard, reference  # noqa: E402
from adapters_app.nli.artifact import Adaptable, Artifact  # noqa: E402
from adapters_app.nli.encoding import Pair  # noqa: E402
from adapters_app.nli.engines import Engine, Predictor  # noqa: E402
from adapters_app.nli.own_process import resident_mb  # noqa: E402
from adapters_app.nli.probabilities import softmax  # noqa: E402
from inference.batching import AtOnce, Batcher  # noqa: E402

BASELINES = PIPELINE, CROSS_ENCODER = "pipeline", "cross-encoder"
OURS = TORCH, OPENVINO, OPENVINO_MIXED = "torch", "openvino", "openvino-8-mixed"
ARMS = (*BASELINES, *OURS)
TORCH_MIXED = "torch-8-mixed"  # not measured: what the mixed arm is compared with
ADAPTERS, RANK = 8, 8
MODEL, MERGED, REFERENCES, OF_ADAPTERS = "model", "merged", "references", "adapters"  # in a home
BATCHES = (1, 8, 32, 128)
# glibc gives large blocks back and faults them in again at every pass; with these it keeps them.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483648"}
# Tokens (premise, hypothesis) of a mix: the issue's, lengths like those of the real streams, and
# whatever goes into a window.
MIXES: dict[str, Callable[[random.Random], tuple[int, int]]] = {
    "short": lambda r: (r.randint(20, 60), r.randint(8, 25)),
    "streams": lambda r: (min(int(r.lognormvariate(3.85, 0.6)), 400), r.randint(8, 25)),
    "all": lambda r: (r.randint(1, 450), r.randint(1, 60)),
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
COMPARED_AT_ONCE = 32  # pairs
OPEN_LOOP_LOAD = 0.8  # of the arm's own rate for single pairs
Logits = Callable[[Sequence[Pair]], np.ndarray]
Rounds = Sequence[Mapping[str, float]]  # the same figures of each


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
            _say(closed_loop(logits, pairs, asked["batch"]))
        elif asked["do"] == "open":
            batched = arm in OURS
            _say(_open_loop(logits, pairs, asked["rate"], seed=asked["seed"], batched=batched))
        else:
            _say({"probabilities": _answers(logits, pairs).tolist()})


def _answers(logits: Logits, pairs: Sequence[Pair]) -> np.ndarray:
    starts = range(0, len(pairs), COMPARED_AT_ONCE)
    return softmax(np.vstack([logits(pairs[i : i + COMPARED_AT_ONCE]) for i in starts]))


def closed_loop(logits: Logits, pairs: Sequence[Pair], batch: int) -> dict[str, float]:
    """One client, one request of `batch` pairs after the other."""
    took = []
    for start in range(0, len(pairs), batch):
        before = time.perf_counter()
        logits(pairs[start : start + batch])
        took.append(time.perf_counter() - before)
    return {"pairs_per_s": len(pairs) / sum(took), "p50_ms": 1000 * statistics.median(took)}


def _open_loop(
    logits: Logits, pairs: Sequence[Pair], rate: float, *, seed: int, batched: bool
) -> dict[str, float]:
    """Single pairs arrive at random (Poisson), whether or not earlier ones are answered."""
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(pairs)))
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

    pipe = pipeline("text-classification", model=str(home / MERGED), top_k=None, device="cpu")
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

    model = CrossEncoder(str(home / MERGED), device="cpu")

    def logits(pairs: Sequence[Pair]) -> np.ndarray:
        scores: np.ndarray = model.predict(
            list(pairs), batch_size=len(pairs), show_progress_bar=False
        )
        return scores

    return logits


def _torch(home: Path, adapters: int = 1) -> Logits:
    from adapters_app.nli.base_model import load_base  # noqa: PLC0415
    from adapters_app.nli.predict import TorchEngine  # noqa: PLC0415

    return _stored(TorchEngine(load_base(str(home / MODEL))), home, adapters)


def _openvino(home: Path, adapters: int = 1) -> Logits:
    from adapters_app.nli.openvino_engine import start  # noqa: PLC0415

    def ask(files: checkpoint.Files) -> tuple[reference.Reference, str]:
        raise SystemExit(f"no reference was stored for {files.name}")

    engine = start(str(home / MODEL), revision="", references=home / REFERENCES, ask=ask)
    return _stored(engine, home, adapters)


def _stored(engine: Engine, home: Path, adapters: int) -> Logits:
    """What answers with so many of the adapters in `home`."""
    stored = (stored_adapter(home, number, engine.base) for number in range(adapters))
    return in_turn(engine, [engine.predictor(each) for each in stored])


def in_turn(engine: Engine, predictors: Sequence[Predictor]) -> Logits:
    """Rows are the predictors' in turn, all of a request in one call."""

    def logits(pairs: Sequence[Pair]) -> np.ndarray:
        return engine.logits([(predictors[i % len(predictors)], p) for i, p in enumerate(pairs)])

    return logits


MAKE: dict[str, Callable[[Path], Logits]] = {
    PIPELINE: _pipeline,
    CROSS_ENCODER: _cross_encoder,
    TORCH: _torch,
    OPENVINO: _openvino,
    OPENVINO_MIXED: lambda home: _openvino(home, ADAPTERS),
    TORCH_MIXED: lambda home: _torch(home, ADAPTERS),
}


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


def prepare(shape: str, home: Path, *, model: Path | None = None, merged: bool = False) -> None:
    """Write the model that all arms load, what torch says of it, and its adapters; `model`: a
    checkpoint instead of a shape; `merged`: the first adapter merged into it, too."""
    program = "import sys; from benchmarks import serving; serving.write_model(*sys.argv[1:4])"
    if merged:
        program += "; serving.write_merged(sys.argv[2])"
    of = [shape, str(home), str(model or "")]
    subprocess.run([sys.executable, "-c", program, *of], cwd=ROOT, check=True)


def base_name(shape: str, model: Path | None, home: Path) -> str:
    """What a base is loaded by: a checkpoint's directory, where given; or the bundled one for
    minilm; or a random one of the shape, which is written to `home`."""
    if model is not None:
        return str(model)
    if shape not in DEBERTA:
        return checkpoint.BUNDLED
    prepare(shape, home)
    return str(home / MODEL)


def write_model(shape: str, home: str, checkpoint_directory: str = "") -> None:
    """In a process of its own: it needs torch, which the parent has no use for."""
    import torch  # noqa: PLC0415
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification  # noqa: PLC0415

    from adapters_app.nli.base_model import load_base  # noqa: PLC0415
    from adapters_app.nli.predict import TorchEngine  # noqa: PLC0415

    path, references = Path(home) / MODEL, Path(home) / REFERENCES
    base = load_base(checkpoint_directory or checkpoint.BUNDLED)
    model, tokenizer = base.model, base.tokenizer
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    if shape in DEBERTA and not checkpoint_directory:
        torch.manual_seed(0)
        model = DebertaV2ForSequenceClassification(deberta_config(DebertaV2Config, DEBERTA[shape]))
    if not model.config.type_vocab_size:
        inputs.remove("token_type_ids")
    # What is not among these is not stored, and the baselines would serve another model.
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = inputs
    tokenizer.model_max_length = base.max_length
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    files = checkpoint.find(str(path))
    reference.write(*TorchEngine(load_base(str(path))).reference(files.digest), references)
    write_adapters(Path(home), str(path))


def write_adapters(home: Path, base_name: str) -> None:
    """Different adapters of a base, by name, of which torch's answers may be in home/references."""
    from benchmarks.adapters import known_base, real_sized  # noqa: PLC0415  not all arms need it

    base = known_base(base_name, home / REFERENCES)
    for number, each in enumerate(real_sized(base, [RANK] * ADAPTERS)):
        directory = home / OF_ADAPTERS / str(number)
        artifact.write(directory, each, {}, "", base_name=base_name)


def write_merged(home: str) -> None:
    """The first adapter as one who has nothing but checkpoints serves it."""
    import torch  # noqa: PLC0415

    from adapters_app.nli.base_model import fold_into, load_base  # noqa: PLC0415

    path = Path(home) / MERGED
    base = load_base(str(Path(home) / MODEL))
    adapter, model = stored_adapter(Path(home), 0, base), base.own_copy()
    tensors = {name: torch.tensor(array) for name, array in adapter.tensors.items()}
    fold_into(model, tensors, adapter.scaling)
    shutil.copytree(Path(home) / MODEL, path)
    model.save_pretrained(path)


def stored_adapter(home: Path, number: int, base: Adaptable) -> Artifact:
    """One of those that were written to `home`, verified."""
    (directory,) = (home / OF_ADAPTERS / str(number)).iterdir()
    return artifact.read(directory, base=base)


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
    """Rounds of every arm in turn, at each batch size and with pairs that arrive at random."""
    closed: dict[str, dict[str, list[dict[str, float]]]] = {
        arm.name: {str(batch): [] for batch in BATCHES} for arm in arms
    }
    at_random: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in arms}
    for turn in range(options.rounds):
        order = random.Random(turn)
        for batch in BATCHES:
            pairs = Texts(options.mix, seed=100 * turn + batch).pairs(options.pairs)
            for arm in order.sample(list(arms), len(arms)):
                closed[arm.name][str(batch)].append(arm.ask("closed", pairs, batch=batch))
        if options.quick:
            continue
        pairs = Texts(options.mix, seed=9_000 + turn).pairs(options.pairs)
        for arm in order.sample(list(arms), len(arms)):
            rate = OPEN_LOOP_LOAD * closed[arm.name]["1"][turn]["pairs_per_s"]
            found = arm.ask("open", pairs, rate=rate, seed=turn)
            at_random[arm.name].append({"rate": rate, **found})
    return {arm.name: arm.facts | summary(closed[arm.name], at_random[arm.name]) for arm in arms}


def summary(closed: Mapping[str, Rounds], at_random: Rounds) -> dict[str, Any]:
    """Medians over the rounds of each batch size and of the open loop; and the rounds."""
    medians = {batch: _medians(rounds) for batch, rounds in closed.items()}
    best = max(medians, key=lambda batch: medians[batch]["pairs_per_s"])
    return {
        "closed": medians,
        "best_batch": best,
        "best_pairs_per_s": medians[best]["pairs_per_s"],
        **({"open": _medians(at_random)} if at_random else {}),
        "rounds": {"closed": closed, "open": at_random},
    }


def _medians(rounds: Rounds) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


def compare(
    arms: Sequence[Arm], pairs: Sequence[Pair], home: Path, environment: dict[str, str]
) -> dict[str, dict[str, float]]:
    """How far each arm is from the torch engine, in fp32, which has the same adapter for each row;
    of nothing where that is no arm."""
    by_name = {arm.name: arm for arm in arms}
    if TORCH not in by_name:
        return {}
    expected = _told(by_name[TORCH].ask("answer", pairs))
    of_mixed = expected
    if OPENVINO_MIXED in by_name:
        mixed = Arm(TORCH_MIXED, home, environment)
        of_mixed = _told(mixed.ask("answer", pairs))
        mixed.close()
    files = checkpoint.find(str(home / MODEL))
    ours = list(reference.stored(files, home / REFERENCES)[0].label_columns)
    found = {name: _told(arm.ask("answer", pairs)) for name, arm in by_name.items()}
    return {
        name: distance(
            answers if name in OURS else answers[:, ours],
            of_mixed if name == OPENVINO_MIXED else expected,
        )
        for name, answers in found.items()
    }


def _told(answer: Mapping[str, Any]) -> np.ndarray:
    return np.array(answer["probabilities"])


def distance(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
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


def ratios(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Of each of ours to each baseline: best batch against best batch, and single pairs' latency;
    and what mixing adapters costs. Medians, lowest and highest of the rounds' own ratios."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, mine in results.items():
        if name not in OURS:
            continue
        found[name] = {}
        for base in (base for base in BASELINES if base in results):
            theirs = results[base]
            bulk = _rates(mine, mine["best_batch"]), _rates(theirs, theirs["best_batch"])
            found[name][f"bulk vs {base}"] = _spread(*bulk)
            found[name][f"p50 vs {base}"] = _spread(_latencies(theirs), _latencies(mine))
        if name == OPENVINO_MIXED and OPENVINO in results:
            one = results[OPENVINO]
            found[name][f"b32 vs {OPENVINO}"] = _spread(_rates(mine, "32"), _rates(one, "32"))
    return found


def _rates(result: Mapping[str, Any], batch: str) -> list[float]:
    return [each["pairs_per_s"] for each in result["rounds"]["closed"][batch]]


def _latencies(result: Mapping[str, Any]) -> list[float]:
    return [each["p50_ms"] for each in result["rounds"]["closed"]["1"]]


def _spread(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    each = [one / other for one, other in zip(over, under, strict=True)]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def rate_table(results: Mapping[str, Any]) -> Table:
    """One line per arm."""
    load = f"at {OPEN_LOOP_LOAD:.0%} load"
    table = Table(
        "arm",
        *(f"b{batch}" for batch in BATCHES),
        "p50 ms",
        *(f"{load}, {which} ms" for which in ("p50", "p99")),
        "start s",
        "MB",
        "max Δp",
        title="Pairs a second; milliseconds of single pairs, one after the other and at random",
    )
    for name, row in results.items():
        closed, at_random = row["closed"], row.get("open", {})
        table.add_row(
            name,
            *(f"{closed[str(batch)]['pairs_per_s']:.0f}" for batch in BATCHES),
            f"{closed['1']['p50_ms']:.1f}",
            *(f"{at_random[f'{which}_ms']:.1f}" if at_random else "–" for which in ("p50", "p99")),
            f"{row['start_s']:.1f}",
            f"{row['rss_mb']:.0f}",
            f"{row['max_dp']:.4f}" if "max_dp" in row else "–",
        )
    return table


def ratio_table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Medians over the rounds, and between what the rounds are."""
    table = Table("arm", "ratio", "median", "lowest", "highest", title="Within a round")
    for name, each in found.items():
        for what, spread in each.items():
            table.add_row(name, what, *(f"{value:.2f} ×" for value in spread.values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one line of ratios within a minute")
    parser.add_argument("--shape", choices=("minilm", *DEBERTA), default="minilm")
    parser.add_argument("--model", type=Path, help="a checkpoint's directory instead of a shape")
    parser.add_argument("--mix", choices=sorted(MIXES), default="short")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=256, help="in a round, per batch size")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=ARMS)
    parser.add_argument("--isa", help="ONEDNN_MAX_CPU_ISA, e.g. AVX512_CORE_BF16: without AMX")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=sorted(MAKE), help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.home)
        return
    if options.quick:
        options.rounds, options.pairs = 3, 48
    environment = ALLOCATOR | ({"ONEDNN_MAX_CPU_ISA": options.isa} if options.isa else {})
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        merged = bool(set(BASELINES) & set(options.arms))
        prepare(options.shape, home, model=options.model, merged=merged)
        arms = [Arm(name, home, environment) for name in options.arms]
        results = measure(arms, options)
        compared = guard.load().pairs[:: 12 if options.quick else 1]
        for name, far in compare(arms, compared, home, environment).items():
            results[name] |= far
        for arm in arms:
            arm.close()
    found = ratios(results)
    if options.quick:
        print(
            "; ".join(
                f"{n}: " + ", ".join(f"{k} {v['median']:.2f}×" for k, v in r.items())
                for n, r in found.items()
            )
        )
    else:
        console = Console(width=150)
        console.print(rate_table(results))
        console.print(ratio_table(found))
    if options.out:
        asked = {key: value for key, value in vars(options).items() if key not in ("serve", "home")}
        report = {"options": asked, "arms": results, "ratios": found}
        options.out.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
