"""Which engine answers; versions that share a pass; who is told when it is not the fast one."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters_app.models import AdapterVersion
from inference import engine
from inference.batching import Batcher
from tests.test_batching import queued
from tests.tiny import tiny_base
from tests.versions import PAIR, promote

pytest_plugins = ("tests.serving",)

PAIRS = [(PAIR["premise"], PAIR["hypothesis"]), ("rain in the city", "the tax is lower")]


@pytest.fixture
def fast(settings, on_tiny: Path) -> Path:
    settings.LYRA_ENGINE = "openvino"
    return on_tiny


def probabilities(answer: engine.Answer) -> np.ndarray:
    return np.array([result.probabilities for result in answer.results])


def test_a_promote_is_answered_by_the_fast_engine_as_torch_would(
    fast, make_version: Callable[..., AdapterVersion], cast, settings, monkeypatch
):
    promote(make_version(), cast["rita"])
    found = {name: probabilities(engine.answer(name, PAIRS)) for name in ("active", "base")}
    assert engine.loaded().engine.startswith("openvino")
    settings.LYRA_ENGINE = "torch"
    monkeypatch.setattr(engine, "_models", engine._Models())
    for name, fast_answer in found.items():
        slow_answer = probabilities(engine.answer(name, PAIRS))
        np.testing.assert_allclose(fast_answer, slow_answer, atol=0.06)  # bf16 where it is native
    assert engine.loaded().engine == "torch"


def test_requests_for_different_versions_share_a_pass(fast, make_version, monkeypatch):
    versions = [make_version().name for _ in range(2)]
    alone = {name: probabilities(engine.answer(name, PAIRS)) for name in ["base", *versions]}
    passes: list[int] = []
    batcher = Batcher(max_pairs=64, max_waiting=64, on_pass=passes.append)
    rows = [(engine.serving_predictor(name).predictor, pair) for name in alone for pair in PAIRS]
    logits = batcher.run(engine._models.engine().begin, rows)
    assert passes == [6]
    for number, name in enumerate(alone):
        own = logits[2 * number : 2 * number + 2]
        calibrated = engine.serving_predictor(name).calibrator.predict_proba(own)
        np.testing.assert_allclose(calibrated, alone[name], atol=0.06)


def test_requests_that_wait_leave_side_by_side(fast, db, settings, monkeypatch):
    """The queue is told how many passes this engine computes at once."""
    settings.LYRA_TORCH_THREADS = 2
    answering, loaded = engine.serving_predictor("base"), engine._models.engine()
    monkeypatch.setattr(engine, "serving_predictor", lambda _: answering)
    monkeypatch.setattr(engine, "_batcher", cache(engine._batcher.__wrapped__))
    expected = probabilities(engine.answer("base", PAIRS[:1]))
    real, gate, started, seen = loaded.begin, threading.Event(), threading.Event(), []

    def begin(rows, /, *, abreast=False):
        seen.append(abreast)
        started.set()
        waiting = real(rows, abreast=abreast)
        return lambda: waiting() if gate.wait(60) else None

    monkeypatch.setattr(loaded, "begin", begin)
    with ThreadPoolExecutor(13) as pool:
        asked = [pool.submit(engine.answer, "base", PAIRS[:1])]
        assert started.wait(60)
        asked += [pool.submit(engine.answer, "base", PAIRS[:1]) for _ in range(12)]
        try:
            queued(engine._batcher(loaded.at_once), 12)
        finally:
            gate.set()
        for each in asked:
            np.testing.assert_allclose(probabilities(each.result(60)), expected, atol=0.06)
    assert seen == [False, True, True]


def test_an_engine_that_fails_its_check_is_replaced_and_everybody_is_told(
    fast, as_user, db, caplog, monkeypatch
):
    engine.answer("base", PAIRS)  # stores what torch says
    (path,) = (path for path in fast.glob("references/*.json") if "tokenizer" not in path.name)
    stored = json.loads(path.read_text())
    stored["bare"] = [[-value for value in row] for row in stored["bare"]]
    path.write_text(json.dumps(stored))
    monkeypatch.setattr(engine, "_models", engine._Models())
    assert engine.answer("base", PAIRS).adapter == "base"
    loaded = engine.loaded()
    assert loaded.engine == "torch"
    assert "golden pairs" in loaded.engine_fault
    assert "golden pairs" in caplog.text
    ready = as_user("rita").get("/readyz").json()
    assert ready["status"] == "degraded"
    assert "golden pairs" in ready["checks"]["model"]["engine_fault"]


@pytest.mark.parametrize(("wanted", "is_a_fault"), [("auto", False), ("openvino", True)])
def test_a_base_that_the_fast_engine_does_not_know_is_torchs(
    on_tiny, db, settings, tmp_path, wanted, is_a_fault
):
    settings.LYRA_ENGINE, settings.LYRA_DEVICE = wanted, "cpu"
    settings.LYRA_BASE_MODEL = tiny_base(tmp_path / "roberta", "roberta")
    engine.answer("base", PAIRS)
    assert engine.loaded().engine == "torch"
    assert bool(engine.loaded().engine_fault) is is_a_fault
    if is_a_fault:
        assert "roberta" in engine.loaded().engine_fault


@pytest.fixture
def beside_a_gpu(on_tiny, settings, tmp_path, monkeypatch) -> None:
    """A machine with a GPU, of which torch may or may not know."""
    (tmp_path / "nvidia0").touch()
    settings.LYRA_ENGINE = settings.LYRA_DEVICE = "auto"
    monkeypatch.setattr(engine, "DEVICES", tmp_path)
    # What an earlier test found out about the device is forgotten, and this one's afterwards.
    monkeypatch.setattr(engine, "_torch_side", cache(engine._torch_side.__wrapped__))


def test_a_gpu_that_torch_cannot_use_leaves_the_fast_engine(beside_a_gpu, db, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine.answer("base", PAIRS)
    assert engine.loaded().engine.startswith("openvino")


def test_on_a_gpu_torch_answers(beside_a_gpu, db, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = []
    monkeypatch.setattr(engine, "_load_torch", lambda: chosen.append(engine._torch_side().device))
    engine._load_engine()
    assert chosen == ["cuda"]


def test_without_the_package_torch_answers(fast, db, monkeypatch):
    def missing():
        raise ImportError("No module named 'openvino'")

    monkeypatch.setattr(engine, "_load_openvino", missing)
    assert engine.answer("base", PAIRS).adapter == "base"
    assert "No module named 'openvino'" in engine.loaded().engine_fault
