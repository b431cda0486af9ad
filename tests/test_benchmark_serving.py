"""benchmarks/serving.py: all arms serve one adapted encoder, its arithmetic, and trials of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters_app.nli.base_model import load_base
from adapters_app.nli.predict import Predictor
from benchmarks import serving
from benchmarks.serving import (
    CROSS_ENCODER,
    OPENVINO,
    OPENVINO_MIXED,
    PIPELINE,
    TORCH,
    TORCH_MIXED,
    Arm,
)
from tests.tiny import tiny_base

ROOT = Path(__file__).resolve().parent.parent
# Short ones: no arm cuts them.
PAIRS = [(f"the dose of {n} is safe", f"the risk is lower in {n % 3}") for n in range(20)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base") / "deberta", "deberta-v2")


@pytest.fixture(scope="module")
def home(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home")
    serving.prepare("minilm", path, model=Path(model), merged=True)
    return path


def test_every_arm_serves_the_same_adapted_encoder_and_not_the_base(home: Path):
    arms = [Arm(name, home, {}) for name in (PIPELINE, CROSS_ENCODER, TORCH, OPENVINO)]
    found = serving.compare(arms, PAIRS, home, {})
    answers = np.array(arms[2].ask("answer", PAIRS)["probabilities"])
    for arm in arms:
        arm.close()
    assert max(found[name]["max_dp"] for name in (PIPELINE, CROSS_ENCODER)) < 1e-4
    assert found[OPENVINO]["max_dp"] < 0.06  # bf16, where the processor has it
    bare = Predictor(load_base(str(home / serving.MODEL))).probabilities(PAIRS)
    assert np.abs(answers - bare).max() > 0.005


def test_eight_different_adapters_of_real_size_are_mixed_and_compared_row_by_row(home: Path):
    base = load_base(str(home / serving.MODEL))
    adapters = [serving.stored_adapter(home, i, base) for i in range(serving.ADAPTERS)]
    assert len({each.digest for each in adapters}) == 8
    assert {(each.rank, each.target_modules) for each in adapters} == {(8, base.target_modules)}
    arms = [Arm(name, home, {}) for name in (TORCH, TORCH_MIXED)]
    arms[1].name = OPENVINO_MIXED  # in its place, and exact
    found = serving.compare(arms, PAIRS, home, {})
    answers = np.array(arms[1].ask("answer", PAIRS)["probabilities"])
    for arm in arms:
        arm.close()
    assert found[OPENVINO_MIXED]["max_dp"] < 1e-6
    for number, adapter in enumerate(adapters):
        away = np.abs(answers - Predictor(base, adapter).probabilities(PAIRS))
        assert away[number :: serving.ADAPTERS].max() < 1e-5
        assert away.max() > 1e-3


def measured(*rates: float, latencies: tuple[float, ...]) -> dict[str, Any]:
    closed = {
        batch: [{"pairs_per_s": r, "p50_ms": p} for r, p in zip(rates, latencies, strict=True)]
        for batch in ("1", "32")
    }
    at_random = [{"rate": 8.0, "p50_ms": 2 * p, "p99_ms": 3 * p} for p in latencies]
    return {"start_s": 1.0, "rss_mb": 1.0, **serving.summary(closed, at_random)}


def test_a_ratio_is_the_median_of_the_rounds_own():
    """The third round was slow for both: it does not make either the faster one."""
    results = {
        PIPELINE: measured(200, 200, 60, latencies=(4, 5, 15)),
        OPENVINO: measured(300, 360, 90, latencies=(2, 2, 5)),
        OPENVINO_MIXED: measured(270, 360, 45, latencies=(2, 2, 5)),
    }
    found = serving.ratios(results)
    assert found[OPENVINO]["bulk vs pipeline"] == {"median": 1.5, "low": 1.5, "high": 1.8}
    assert found[OPENVINO]["p50 vs pipeline"] == {"median": 2.5, "low": 2, "high": 3}
    assert found[OPENVINO_MIXED]["b32 vs openvino"] == {"median": 0.9, "low": 0.5, "high": 1}
    assert PIPELINE not in found


def run(model: str, out: Path, *options: str) -> tuple[str, dict[str, Any]]:
    program = [sys.executable, "benchmarks/serving.py", f"--model={model}", f"--out={out}"]
    done = subprocess.run(
        [*program, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "150"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


def test_a_trial_prints_both_loads_and_what_ratios_vary_between(model: str, tmp_path: Path):
    arms = [PIPELINE, TORCH, OPENVINO]
    said, found = run(model, tmp_path / "out.json", "--rounds=2", "--pairs=4", "--arms", *arms)
    for column in ("b128", "at 80% load, p99 ms", "max Δp", "median", "lowest", "highest"):
        assert column in " ".join(said.split())
    assert list(found["arms"]) == arms
    for row in found["arms"].values():
        assert row["open"]["p99_ms"] >= row["open"]["p50_ms"] > 0
        assert {len(rounds) for rounds in row["rounds"]["closed"].values()} == {2}
        assert len(row["rounds"]["open"]) == 2
        assert "max_dp" in row
    for ratios in found["ratios"].values():
        assert all(each["low"] <= each["median"] <= each["high"] for each in ratios.values())


def test_a_quick_one_prints_one_line_of_ratios(model: str, tmp_path: Path):
    said, found = run(model, tmp_path / "out.json", "--quick", "--arms", PIPELINE, OPENVINO)
    assert len(said.splitlines()) == 1
    assert said.startswith("openvino: bulk vs pipeline ")
    assert found["ratios"].keys() == {OPENVINO}
