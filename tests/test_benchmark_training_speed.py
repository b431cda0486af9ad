"""benchmarks/training_speed.py: equal steps in all arms, its arithmetic, and a trial of it."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

from adapters_app.nli.base_model import load_base
from benchmarks import training_speed
from benchmarks.training_speed import OURS, PADDED, TRAINER, Fit
from corrections.labels import LABELS
from tests.tiny import tiny_base

ROOT = Path(__file__).resolve().parent.parent
PAIRS = [(f"the study {n} found lower risk " * (n % 4 + 1), f"the dose {n}") for n in range(20)]
LABELLED = [LABELS[n % len(LABELS)] for n in range(20)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base") / "bert")


@pytest.mark.parametrize("arm", [OURS, TRAINER, PADDED])
def test_every_arm_takes_as_many_steps_and_changes_as_many_numbers(model: str, arm: str):
    base = load_base(model)
    steps: list[int] = []
    counting = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        learnt = training_speed.ARMS[arm](base, Fit(model, arm, PAIRS, LABELLED, 1e-3, epochs=2))
    finally:
        counting.remove()
    assert len(steps) == 2 * 3  # 20 pairs are three batches of at most 8
    assert (learnt.rank, learnt.alpha, learnt.layers) == (8, 16, ())
    assert {name.rpartition(".")[2] for name in learnt.tensors} == {"weight", "bias"}
    assert len(learnt.tensors) == 2 * 2 * 2 + 2  # A and B of query and value in two layers, a head
    start = dict(base.model.named_parameters())["classifier.weight"].detach().numpy()
    assert np.abs(learnt.tensors["base_model.model.classifier.weight"] - start).max() > 0


def test_a_fit_answers_with_what_it_learnt(model: str):
    """Trained on one label only, every arm gives that."""
    only = Fit(model, OURS, PAIRS, [LABELS[1]] * len(PAIRS), 1e-2, epochs=6, asked=PAIRS[:5])
    for arm in (OURS, TRAINER):
        fitted = training_speed.carry_out(replace(only, arm=arm))
        assert fitted.answers.tolist() == [1] * 5
        assert fitted.pairs_per_s > 0


def test_ratios_are_medians_over_rounds():
    rates = {OURS: [10.0, 20.0, 30.0], TRAINER: [5.0, 5.0, 5.0]}
    assert training_speed.ratios(rates) == {TRAINER: 4}
    assert training_speed.ratios({TRAINER: [5.0]}) == {}


def confusions(*right: int) -> np.ndarray:
    """(seeds, 1 group, 3, 3): of ten answers so many are right, by seed."""
    counts = np.zeros((len(right), 1, 3, 3))
    for seed, hits in enumerate(right):
        counts[seed, 0, 0] = [hits, 10 - hits, 0]
    return counts


def test_accuracy_is_a_mean_over_seeds_and_the_difference_is_paired_by_seed():
    found = training_speed.over_seeds([confusions(6, 8), confusions(8, 8)])
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["sd"] == pytest.approx(np.std([0.7, 0.8], ddof=1))
    # Seeds differ much, but ours is one better with each.
    paired = {"stream": {0: (confusions(2, 5, 8), confusions(3, 6, 9))}}
    gain = training_speed.difference_by_seed(paired)
    assert (gain.estimate, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1))
    apart = {"stream": {0: (confusions(5, 5), confusions(5, 7))}}
    gain = training_speed.difference_by_seed(apart)
    assert gain.low < 0 < gain.estimate == pytest.approx(0.1)


def test_a_trial_of_the_program_prints_speed_and_accuracy(model: str, tmp_path: Path):
    rows = [
        {
            "premise": f"premise {n} {PAIRS[n % 20][0]}",
            "hypothesis": f"hypothesis {n}",
            "label": LABELS[n % len(LABELS)].value,
            "source": "made",
            "group": str(n // 3),
        }
        for n in range(60)
    ]
    (tmp_path / "stream").mkdir()
    with gzip.open(tmp_path / "stream" / "made.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    out = tmp_path / "speed.json"
    options = ["--rounds=1", "--pairs=8", "--verdicts=8", "--epochs=1", "--seeds=1"]
    options += [f"--model={model}", f"--data={tmp_path}", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "benchmarks/training_speed.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Trainer padded" in done.stdout
    found = json.loads(out.read_text())
    assert found["speed"]["ratios"].keys() == training_speed.ARMS.keys() - {OURS}
    accuracy = found["accuracy"]["streams"]["made"]
    assert all(0 <= accuracy[arm]["accuracy"] <= 1 for arm in (TRAINER, OURS))
