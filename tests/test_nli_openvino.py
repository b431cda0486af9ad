"""The OpenVINO engine: exact against torch and PEFT, any mix in one pass, and held to its proof."""

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from adapters_app.nli import artifact as artifacts
from adapters_app.nli import base_model, checkpoint, graph, reference
from adapters_app.nli.artifact import Artifact
from adapters_app.nli.encoding import Encoded
from adapters_app.nli.engines import Unsupported
from adapters_app.nli.openvino_engine import OpenVinoEngine, load_base, start
from adapters_app.nli.predict import TorchEngine
from adapters_app.nli.reference import Disagreement, NoReference
from tests.tiny import WORDS, tiny_base

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = WORDS.split()
PAIRS = [
    ("the drug reduces risk", "the drug is effective"),
    ("rain in the city and the law of the people", "the tax is lower"),
    ("patients found no risk " * 4, "the dose is not safe"),
    ("water", "health"),
]


@dataclasses.dataclass
class Both:
    """One tiny base in both engines."""

    path: str
    torch: TorchEngine
    openvino: OpenVinoEngine
    reference: reference.Reference


@functools.cache
def both(path: str) -> Both:
    slow = TorchEngine(base_model.load_base(path))
    files = checkpoint.find(path)
    known, tokenizer = slow.reference(files.digest)
    fast = OpenVinoEngine(load_base(files, known, tokenizer), precision="f32", threads=2)
    return Both(path, slow, fast, known)


@pytest.fixture(scope="module", params=["bert", "deberta-v2"])
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return both(tiny_base(tmp_path_factory.mktemp("base") / "model", request.param))


def adapter(
    engine: TorchEngine,
    *,
    seed: int,
    rank: int,
    targets: tuple[str, ...] = (),
    layers: tuple[int, ...] = (),
) -> Artifact:
    base = engine.base
    plan = Artifact(
        tensors={},
        rank=rank,
        alpha=2.0 * rank,
        target_modules=targets or base.target_modules,
        head=base.head,
        base_fingerprint=base.fingerprint,
        layers=layers,
    )
    random = np.random.default_rng(seed)
    tensors = {
        name: random.normal(scale=0.3, size=shape).astype(np.float32)
        for name, shape in artifacts.expected_shapes(plan, base).items()
    }
    return dataclasses.replace(plan, tensors=tensors)


def of_length(tokens: int) -> tuple[str, str]:
    """A pair that is `tokens` long, with [CLS] and two [SEP]."""
    words = [VOCABULARY[i % len(VOCABULARY)] for i in range(tokens - 4)]
    return " ".join(words), "law"


def test_the_base_and_an_adapter_answer_as_torch_does(engines: Both) -> None:
    upper = adapter(engines.torch, seed=1, rank=4, layers=(1,))
    for artifact in (None, adapter(engines.torch, seed=1, rank=4), upper):
        expected = engines.torch.predictor(artifact).logits(PAIRS)
        found = engines.openvino.predictor(artifact).logits(PAIRS)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_adapter_answers_as_peft_does(engines: Both, tmp_path: Path) -> None:
    artifact = adapter(engines.torch, seed=2, rank=3)
    digest = artifacts.write(tmp_path, artifact, {}, "", base_name=engines.path)
    model = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(engines.path), tmp_path / digest
    ).eval()
    tokens = AutoTokenizer.from_pretrained(engines.path)(
        [p for p, _ in PAIRS], [h for _, h in PAIRS], padding=True, return_tensors="pt"
    )
    columns = list(engines.reference.label_columns)
    expected = model(**tokens).logits.detach().numpy()[:, columns]
    read = artifacts.read(tmp_path / digest, base=engines.openvino.base)
    found = engines.openvino.predictor(read).logits(PAIRS)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_every_length_up_to_the_window_and_beyond_it(engines: Both) -> None:
    pairs = [("", "law"), *map(of_length, (5, 7, 8, 9, 15, 16, 17, 31, 40, 65, 90, 127, 128, 300))]
    expected = engines.torch.predictor().logits(pairs)
    found = np.vstack([engines.openvino.predictor().logits([pair]) for pair in pairs])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_each_row_of_a_mixed_pass_is_answered_as_if_alone(engines: Both) -> None:
    """Base and adapters of several ranks and layers, each with its own head, and rows of any
    length, in passes of many tokens and of few."""
    fast = engines.openvino
    pairs = [*PAIRS, *map(of_length, (128, 127, 126, 96, 90, 65, 64, 61, 40, 39, 8, 5))]
    artifacts_ = [
        None,
        *(adapter(engines.torch, seed=n, rank=n) for n in (1, 2, 8, 11, 16)),
        *(adapter(engines.torch, seed=n, rank=4, layers=(n,)) for n in (0, 1)),
    ]
    predictors = [fast.predictor(artifact) for artifact in artifacts_]
    rows = [(predictor, pair) for pair in pairs for predictor in predictors]
    together = fast.logits(rows)
    alone = np.vstack([predictor.logits([pair]) for predictor, pair in rows])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    slow = [engines.torch.predictor(artifact) for artifact in artifacts_]
    expected = engines.torch.logits([(predictor, pair) for pair in pairs for predictor in slow])
    np.testing.assert_allclose(together, expected, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_passes_abreast_answer_as_one_alone(engines: Both, threads: int) -> None:
    """Few rows take a pass on all processors, many go through two at once where there are two."""
    engine = OpenVinoEngine(engines.openvino.base, precision="f32", threads=threads)
    predictors = [engine.predictor(adapter(engines.torch, seed=n, rank=n)) for n in (2, 3)]
    pairs = [of_length(5 + n % 120) for n in range(150)]
    rows = [(predictors[n % 2], pair) for n, pair in enumerate(pairs)]
    heard: list[int] = []
    together = engine.logits(rows, on_batch=heard.append)
    assert heard == sorted(set(heard))
    assert heard[-1] == len(rows)
    alone = np.vstack([predictor.logits([pair]) for predictor, pair in rows])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    # As the server asks where many wait: several at a time, of more than a pass each.
    begun = [engine.begin(rows[i::3], abreast=True) for i in range(3)]
    for i, waiting in enumerate(begun):
        np.testing.assert_allclose(waiting(), alone[i::3], atol=1e-4)


def test_rows_may_be_encoded_beforehand(engines: Both) -> None:
    for engine in (engines.torch, engines.openvino):
        items = [*engine.encode(PAIRS[:2]), *PAIRS[2:]]
        assert [isinstance(item, Encoded) for item in items] == [True, True, False, False]
        expected = engine.predictor().logits(PAIRS)
        np.testing.assert_allclose(engine.predictor().logits(items), expected, atol=1e-6)
        waiting = engine.begin([(engine.predictor(), item) for item in items])
        np.testing.assert_allclose(waiting(), expected, atol=1e-6)


def test_a_swap_compiles_nothing(engines: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(OpenVinoEngine, "_compile", refuse)
    for seed in (5, 6):
        engines.openvino.predictor(adapter(engines.torch, seed=seed, rank=8)).logits(PAIRS)


def test_adapters_of_other_modules_have_a_graph_of_their_own(engines: Both) -> None:
    key = next(name for name in ("key_proj", "key") if _has(engines, name))
    chosen = adapter(engines.torch, seed=3, rank=4, targets=(key, "dense"))
    expected = engines.torch.predictor(chosen).logits(PAIRS)
    fast, usual = engines.openvino, adapter(engines.torch, seed=1, rank=4)
    predictors = fast.predictor(chosen), fast.predictor(usual), fast.predictor()
    mixed = fast.logits([(predictor, pair) for pair in PAIRS for predictor in predictors])
    np.testing.assert_allclose(mixed[0::3], expected, atol=1e-4)
    np.testing.assert_allclose(mixed[2::3], fast.predictor().logits(PAIRS), atol=1e-4)


def _has(engines: Both, target: str) -> bool:
    return any(name.endswith(f".{target}") for name in engines.torch.base.linear_shapes)


def test_the_same_request_gets_the_same_answer(engines: Both) -> None:
    predictor = engines.openvino.predictor()
    np.testing.assert_array_equal(predictor.logits(PAIRS), predictor.logits(PAIRS))


def test_an_adapter_takes_the_memory_of_its_parameters(engines: Both) -> None:
    """Whatever its rank, and however few layers it changes."""
    slow, fast = engines.torch, engines.openvino
    for artifact in (
        adapter(slow, seed=1, rank=8),
        adapter(slow, seed=1, rank=3),
        adapter(slow, seed=1, rank=8, layers=(1,)),
    ):
        own = sum(tensor.nbytes for tensor in artifact.tensors.values())
        assert fast.predictor(artifact).resident_bytes <= 1.2 * own
    assert fast.predictor().resident_bytes == 0


def test_it_hears_how_many_are_done_and_may_stop(engines: Both) -> None:
    heard: list[int] = []
    engines.openvino.predictor().logits(PAIRS * 10, on_batch=heard.append)
    assert heard[-1] == len(PAIRS) * 10
    assert heard == sorted(heard)


def test_who_is_stopped_leaves_the_engine_as_it_was(engines: Both) -> None:
    """The next pass had been started when the first was heard of."""
    predictor = engines.openvino.predictor()
    pairs = [*PAIRS, *map(of_length, range(5, 128))]
    expected = predictor.logits(pairs)

    def stop(_done: int) -> None:
        raise InterruptedError

    for _ in range(20):
        with pytest.raises(InterruptedError):
            predictor.logits(pairs, on_batch=stop)
    np.testing.assert_array_equal(predictor.logits(pairs), expected)


def test_log_buckets_are_transformers_own() -> None:
    """The published DeBERTa-v3's: 256 buckets over 512 positions."""
    distances = np.arange(-511, 512)
    buckets = make_log_bucket_position(torch.tensor(distances), 256, 512).long().numpy()
    config = {"position_buckets": 256, "max_relative_positions": -1, "max_position_embeddings": 512}
    rows = graph._embedding_rows(distances, config)
    np.testing.assert_array_equal(rows, np.clip(buckets + 256, 0, 511))


# --- proof ----------------------------------------------------------------------------------------


def test_an_engine_that_agrees_passes(engines: Both) -> None:
    reference.check(engines.openvino, engines.reference, "f32")


@pytest.mark.parametrize("wrong", [range(9), range(9, 1000)], ids=["few", "many"])
def test_it_is_proven_for_few_rows_and_for_many(
    engines: Both, wrong: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may compute them differently."""
    right = engines.openvino.logits
    shifted = np.array([1.0, 0, 0], dtype=np.float32)
    monkeypatch.setattr(
        engines.openvino, "logits", lambda rows: right(rows) + shifted * (len(rows) in wrong)
    )
    with pytest.raises(Disagreement, match="off by up to"):
        reference.check(engines.openvino, engines.reference, "f32")


@pytest.mark.parametrize("name", ["layer.1.output.dense.weight", "classifier.weight"])
def test_an_engine_that_computes_something_else_is_caught(engines: Both, name: str) -> None:
    base = engines.openvino.base
    weights = base.weights()
    (key,) = (key for key in weights if key.endswith(name))
    altered = weights | {key: weights[key] * np.float32(1.1)}
    changed = dataclasses.replace(base, weights=lambda: altered)
    wrong = OpenVinoEngine(changed, precision="f32", threads=1)
    with pytest.raises(Disagreement, match="off by up to"):
        reference.check(wrong, engines.reference, "f32")


class Bf16:
    """An engine whose answers to the golden pairs are `factor` times as far off as bf16's.

    Computed in fp32 with weights that were rounded to bf16, so that it is the same on every
    machine; that alone is 0.6 times as far off as OpenVINO's bf16.
    """

    def __init__(self, factor: float) -> None:
        files = checkpoint.find(checkpoint.BUNDLED)
        self.reference, tokenizer = reference.stored(files, Path())
        self.base = load_base(files, self.reference, tokenizer)
        rounded = dataclasses.replace(self.base, weights=lambda: _rounded(self.base.weights()))
        self._exact, self._rough = (
            OpenVinoEngine(base, precision="f32", threads=1) for base in (self.base, rounded)
        )
        self._factor = factor / 0.6

    def predictor(self, artifact: Artifact | None = None) -> tuple[object, object]:
        return self._exact.predictor(artifact), self._rough.predictor(artifact)

    def logits(self, rows) -> np.ndarray:
        exact = self._exact.logits([(predictor[0], pair) for predictor, pair in rows])
        rough = self._rough.logits([(predictor[1], pair) for predictor, pair in rows])
        return exact + self._factor * (rough - exact)


def _rounded(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: torch.from_numpy(array).bfloat16().float().numpy() for name, array in weights.items()
    }


@pytest.mark.parametrize(("factor", "passes"), [(1, True), (2, True), (5, False)])
def test_bf16_passes_and_what_is_five_times_as_far_off_does_not(
    factor: float, passes: bool
) -> None:
    engine = Bf16(factor)
    refused = contextlib.nullcontext() if passes else pytest.raises(Disagreement, match="off by")
    with refused:
        reference.check(engine, engine.reference, "bf16")


def test_labels_have_to_agree_where_the_margin_exceeds_a_twentieth() -> None:
    expected = np.array([[0.475, 0.420, 0.105]] * 9)  # a margin of 0.055
    found = expected.copy()
    found[0] = [0.446, 0.449, 0.105]  # another label, within the tolerance
    with pytest.raises(Disagreement, match="other labels"):
        reference._compare(found, expected, "bf16")
    close = np.array([[0.469, 0.426, 0.105]] * 9)  # 0.043
    reference._compare(np.vstack([found[:1], close[1:]]), close, "bf16")


def test_a_reference_is_kept_and_found_again_for_the_same_files_only(
    engines: Both, tmp_path: Path
) -> None:
    files = checkpoint.find(engines.path)
    asked = []

    def ask(wanted: checkpoint.Files) -> tuple[reference.Reference, str]:
        asked.append(wanted)
        return engines.torch.reference(wanted.digest)

    for _ in range(2):
        start(engines.path, revision="", references=tmp_path, ask=ask, threads=1)
    assert asked == [files]
    other = dataclasses.replace(files, digest="0" * 64)
    with pytest.raises(NoReference):
        reference.stored(other, tmp_path)


def test_a_reference_of_other_golden_pairs_is_not_used(
    engines: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = checkpoint.find(engines.path)
    reference.write(*engines.torch.reference(files.digest), tmp_path)
    monkeypatch.setattr(reference, "pairs_sha256", lambda: "0" * 64)
    with pytest.raises(NoReference, match="other golden pairs"):
        reference.stored(files, tmp_path)


@pytest.mark.parametrize("architecture", ["roberta", "qwen2"])
def test_another_architecture_is_refused_before_anything_is_loaded(
    tmp_path: Path, architecture: str
) -> None:
    path = tiny_base(tmp_path / architecture, architecture)

    def ask(_: checkpoint.Files) -> tuple[reference.Reference, str]:
        raise AssertionError("torch was asked")

    with pytest.raises(Unsupported, match=architecture):
        start(path, revision="", references=tmp_path, ask=ask)


def test_openvino_is_loaded_without_its_telemetry() -> None:
    """Importing it would otherwise fork, and tell Google Analytics."""
    program = (
        "import sys; import adapters_app.nli.openvino_engine; "
        "print([name for name, module in sys.modules.items()"
        " if name.partition('.')[0] == 'openvino_telemetry' and module])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- the bundled base -----------------------------------------------------------------------------

WITHOUT_TORCH = """
import json, sys
from pathlib import Path

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft"):
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Forbidden())
from adapters_app.nli.openvino_engine import start
engine = start("minilm-nli", revision="", references=Path(sys.argv[1]), ask=None)
pairs = json.loads(sys.argv[2])
print(json.dumps({"name": engine.name, "fingerprint": engine.base.fingerprint,
                  "logits": engine.predictor().logits(pairs).tolist()}))
"""


def test_the_bundled_base_starts_and_proves_itself_without_torch(tmp_path: Path) -> None:
    pairs = [
        ("Two dogs are running through a field.", "Animals are outdoors."),
        ("The trial found no difference between drug and placebo.", "The drug works."),
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path), json.dumps(pairs)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    slow = TorchEngine(base_model.load_base(checkpoint.BUNDLED))
    assert said["fingerprint"] == slow.base.fingerprint
    np.testing.assert_allclose(said["logits"], slow.predictor().logits(pairs), atol=0.15)
    assert list(tmp_path.iterdir()) == []  # what ships was enough
