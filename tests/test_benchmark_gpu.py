"""The GPU benchmark, tried out without one: every arm on tiny models, and its arithmetic."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adapters_app.nli.base_model import load_base
from adapters_app.nli.data import collate
from benchmarks import gpu, gpu_arms
from tests.tiny import tiny_base

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = {"qwen": 3_085_938_688, "small": 141_304_320}  # parameters, without the head


@pytest.mark.parametrize("arm", [gpu.MACHINE, *gpu.ARMS])
def test_every_arm_measures(arm: str) -> None:
    measured = gpu_arms.measure(arm, gpu_arms.QUICK, "cpu")
    figures = [value for value in measured.values() if isinstance(value, float)]
    assert all(value >= 0 for value in figures)
    assert json.dumps(measured)
    shown = {key for key, _ in gpu.COLUMNS.get(arm.split()[0], {}).values()}
    added_by_comparison = {"bound_pairs_per_s", "share_of_bound", "max_dp"}
    assert shown - added_by_comparison <= measured.keys()


@pytest.mark.parametrize("shape", PUBLISHED)
def test_the_shapes_have_as_many_parameters_as_the_published_models(shape: str) -> None:
    with torch.device("meta"):
        model = gpu_arms.random_model(gpu_arms.config_of(shape, tiny=False))
    encoder = model.get_decoder() if shape == "qwen" else model.deberta
    assert sum(parameter.numel() for parameter in encoder.parameters()) == PUBLISHED[shape]


def test_the_arithmetic_of_a_pair_is_what_torch_counts(tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "bert"))
    base.model.set_attn_implementation("eager")
    (row,) = base.encoder.encode([("a study found lower risk", "the dose causes rain")])
    with FlopCounterMode(display=False) as counted:
        base.model(**collate([row], pad_id=0, type_ids=True))
    assert gpu_arms.flops_per_pair(base, [len(row)]) == counted.get_total_flops()


def test_compiled_passes_answer_as_predictors_do() -> None:
    base = gpu_arms.base_of("small", gpu_arms.QUICK, "cpu")
    pairs = gpu_arms.Texts("short", seed=2).pairs(9)
    expected = gpu_arms.Predictor(base).logits(pairs)
    found = gpu_arms.Compiled(base, 256, backend="eager").logits(pairs)
    assert found == pytest.approx(expected, abs=1e-5)


def test_shares_ratios_and_distances() -> None:
    def answers(rate: float, p50: float, first: float) -> dict[str, object]:
        return {
            "best_pairs_per_s": rate,
            "p50_ms": p50,
            "flops_per_pair": 1e9,
            "probabilities": [[first, 1 - first, 0.0]],
        }

    results: gpu.Results = {
        gpu.MACHINE: {"tflops": {"fp32": 1.0, "bf16": 2.0}},
        "serve small pipeline fp32": answers(100.0, 6.0, 0.5),
        "serve small ours fp32": answers(200.0, 4.0, 0.5),
        "serve small ours bf16": answers(500.0, 3.0, 0.4),
        "serve small pipeline bf16": {gpu.FAILED: "CUDA out of memory"},
    }
    gpu.compare(results)
    ours = results["serve small ours bf16"]
    assert ours["bound_pairs_per_s"] == 2000
    assert ours["share_of_bound"] == 0.25
    assert ours["max_dp"] == pytest.approx(0.1)
    assert ours["ratios"] == {"pipeline fp32": {"bulk": 5.0, "p50": 2.0}}
    assert "probabilities" not in ours


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_trial_of_the_program_ends_with_a_table_and_a_file(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run("--device=cpu", "--quick", f"--out={out}", "--arms", "serve small ours fp32")
    assert done.returncode == 0, done.stderr
    assert "small ours fp32" in done.stdout
    row = json.loads(out.read_text())["arms"]["serve small ours fp32"]
    assert row["share_of_bound"] > 0
    assert row["max_dp"] == 0


def test_without_the_device_it_says_so() -> None:
    done = run("--device=cuda:99")
    assert done.returncode == 1
    assert "no CUDA device cuda:99 here" in done.stderr
    assert "--device cpu --quick" in done.stderr
