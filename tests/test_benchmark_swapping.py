"""benchmarks/swapping.py: its arithmetic, its adapters, and its arms on a tiny base."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adapters_app.nli.artifact import verify_for
from adapters_app.nli.config import TrainConfig
from benchmarks import mixing, swapping
from benchmarks.adapters import known_base, real_sized
from benchmarks.serving import distance
from benchmarks.swapping import Swap
from corrections.labels import LABELS
from tests.tiny import tiny_base

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base") / "deberta", "deberta-v2")


@pytest.fixture(scope="module")
def references(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("references")
    mixing.store_reference((model, path))
    return path


def test_a_swap_adds_what_its_first_answer_took_longer_than_the_others():
    swaps = [Swap(0.004, [0.003, 0.003, 0.009], False), Swap(0.010, [0.005], False, compiled=1)]
    found = swapping.summary(swaps)
    assert found["added_p50_ms"] == pytest.approx(3)  # of 1 and 5
    assert found["steady_p50_ms"] == pytest.approx(4)
    assert found["noise_p95_ms"] == pytest.approx(0.85 * 6)  # of 0, 0, 0 and 6
    assert found["compiled"] == 1
    assert swapping.rounds(45) == [20, 20, 5]


def test_the_rival_is_compared_with_one_process_and_where_nothing_is_added_with_none():
    added = {
        swapping.called(None, swapping.SET): 5.0,
        swapping.called(None, swapping.LOAD): 30.0,
        swapping.called(1, swapping.RESIDENT): -0.1,
        swapping.called(1, swapping.DISK): 2.0,
        swapping.called(1, swapping.STORAGE): 3.0,
    }
    found = swapping.ratios({name: {"added_p95_ms": value} for name, value in added.items()})
    assert list(found.values()) == [None, 15, 10]


def test_the_cost_of_a_mixture_is_the_median_over_rounds_of_its_time_by_one_adapters():
    assert mixing.costs({mixing.ONE: [1, 2, 4], mixing.EIGHT: [1.5, 2, 8]}) == {
        mixing.ONE: 1,
        mixing.EIGHT: 1.5,
    }


def test_labels_of_close_calls_do_not_count_where_only_clear_ones_do():
    expected = np.array([[0.9, 0.05, 0.05], [0.41, 0.4, 0.19]])
    found = np.array([[0.89, 0.06, 0.05], [0.4, 0.41, 0.19]])
    figures = distance(found, expected)
    assert (figures["same_label"], figures["same_label_where_clear"]) == (0.5, 1)
    assert figures["mean_dp"] == pytest.approx(0.04 / 6)


def test_adapters_fit_their_base_and_no_two_are_alike(model: str, references: Path):
    base = known_base(model, references)
    one, other = made = real_sized(base, [4, 16])
    for each in made:
        verify_for(each, base)
    head = f"base_model.model.{base.head}.weight"
    assert np.abs(one.tensors[head] - other.tensors[head]).max() > 0


@pytest.mark.parametrize("engine", [mixing.TORCH, mixing.OPENVINO_F32])
def test_mixed_rows_are_exact_and_a_bad_one_fails_alone(model: str, references: Path, engine: str):
    task = mixing.Mixing(model, references, engine, rounds=1, batches=1)
    found = mixing.measure(task)
    assert found["cost"].keys() == set(mixing.MIXTURES)
    assert found["max_dlogit"] < 1e-4
    assert found["bad_row"]["fails_alone"]
    assert found["bad_row"]["others_refused"] == 0


def test_ours_in_fp32_agree_with_peft(model: str, references: Path):
    asked = mixing.of_guard(every=100)
    adapters = mixing.drawn(model, references, 2)
    found = mixing.agreement(mixing.Agreeing(model, references, asked, adapters))
    for engine in ("torch", "openvino f32"):
        assert found["engines"][engine]["max_dp"] < 1e-4
    assert found["adapters"].keys() == found["calibration"].keys() == adapters.keys()
    assert max(each["max_dp"] for each in found["adapters"].values()) == pytest.approx(
        found["engines"][found["serving"]]["max_dp"]
    )


def test_calibrators_are_fitted_on_one_half_and_compared_on_the_serving_engines_other():
    """An engine whose logits are twice as large: its own temperature makes up for it, torch's
    leaves its answers too sure."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 600)
    of_torch = draw.normal(0, 1, (600, 3)) + 1.5 * np.eye(3)[labels]
    asked = mixing.Labelled([], labels, np.arange(600) // 2)
    alike = mixing.calibrations(of_torch, of_torch, asked)
    assert alike["max_dp"] == 0
    assert alike["log_loss_torch"] == alike["log_loss_serving"] < alike["log_loss_before"]
    apart = mixing.calibrations(of_torch, 2 * of_torch, asked)
    assert apart["temperature_torch"] == pytest.approx(alike["temperature_torch"])
    assert apart["temperature_serving"] == pytest.approx(2 * alike["temperature_torch"], rel=1e-4)
    assert apart["log_loss_serving"] == pytest.approx(alike["log_loss_serving"], rel=1e-4)
    assert apart["log_loss_torch"] > apart["log_loss_serving"] + 0.01
    assert apart["ece_torch"] > apart["ece_serving"]
    assert apart["max_dp"] > 0.05


def labelled(name: str, count: int) -> list[dict[str, str]]:
    return [
        {
            "premise": f"{name} premise {n} the dose is safe",
            "hypothesis": f"{name} hypothesis {n} the risk is lower",
            "label": LABELS[n % len(LABELS)].value,
            "source": name,
            "group": str(n // 3),
        }
        for n in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two streams and a guard set."""
    for path, count in (("stream/one", 40), ("stream/two", 40), ("guard/general", 60)):
        file = tmp_path / "data" / f"{path}.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(file, "wt") as lines:
            lines.writelines(
                json.dumps(row) + "\n" for row in labelled(file.name.split(".")[0], count)
            )
    return tmp_path / "data"


def test_adapters_are_trained_on_every_stream_in_turn(model: str, data: Path):
    config = TrainConfig(min_steps=0, epochs=1)
    made = mixing.learnt(mixing.Learning(model, data, adapters=3, rows=20, config=config))
    assert list(made) == ["one 1", "two 1", "one 2"]
    heads = [each.tensors["base_model.model.classifier.bias"] for each in made.values()]
    assert len({each.tobytes() for each in heads}) == 3


def test_a_trial_compares_trained_adapters_and_writes_no_sentence(
    model: str, data: Path, tmp_path: Path
):
    out = tmp_path / "swapping.json"
    options = ["--quick", f"--data={data}", "--parts", "agreement", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "benchmarks/swapping.py", f"--model={model}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "one 1" in done.stdout
    assert "temperature" in done.stdout
    found = json.loads(out.read_text())["agreement"]
    assert list(found["adapters"]) == list(found["calibration"]) == ["one 1", "two 1"]
    for said in (done.stdout, done.stderr, out.read_text()):
        assert "premise" not in said
        assert "hypothesis" not in said


def test_a_trial_of_the_program_swaps_in_a_server_and_compiles_nothing(model: str, tmp_path: Path):
    out = tmp_path / "swapping.json"
    options = ["--swaps=1", "--processes=1", "--adapters=1", "--parts", "swap", "memory"]
    done = subprocess.run(
        [sys.executable, "benchmarks/swapping.py", f"--model={model}", f"--out={out}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "PEFT load_adapter" in done.stdout
    found = json.loads(out.read_text())
    arms = found["swap"]["arms"]
    assert {row["swaps"] for row in arms.values()} == {1}
    assert {row["compiled"] for row in arms.values()} == {0}
    assert found["memory"][0]["reported_by_parameters"] <= 1.2
