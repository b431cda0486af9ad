"""The protocol of benchmarks/learning.py: what its figures rest on."""

import gzip
import io
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.special import softmax

from adapters_app.nli import metrics
from adapters_app.nli.base_model import load_base
from adapters_app.nli.finetuning import train_cross_encoder
from adapters_app.nli.predict import Predictor
from benchmarks import bench, comparing, learning, protocol, report, trained, trivial
from benchmarks.bench import Arm, Bench, Cell
from benchmarks.cells import Cells
from benchmarks.comparing import Score
from benchmarks.protocol import User
from corrections.labels import LABELS, Label
from corrections.models import Correction
from tests.tiny import tiny_base
from tests.verdicts import HINTS

QUICK = {"epochs": 1, "min_steps": 0, "anchor_weight": 0, "learning_rate": 1e-2}


def rows(count: int, *, pages: int = 20, name: str = "stream", seed: int = 0) -> list[dict]:
    """Labelled pairs whose premises are nothing alike, from uneven pages."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        label = draw.choice(LABELS).value
        made.append(
            {
                "premise": f"{name} study {number} found {draw.random()}",
                "hypothesis": f"the drug {HINTS[label]} in {name} {number}",
                "label": label,
                "source": name,
                "group": f"page {int(pages * draw.random() ** 2)}",
            }
        )
    return made


def answered(some: list[dict], *, right: float) -> np.ndarray:
    """Answers (n, 3) of which a share is right."""
    draw = random.Random(1)
    columns = [
        (Label(row["label"]).column + (draw.random() >= right)) % len(LABELS) for row in some
    ]
    return 0.7 * np.eye(len(LABELS))[columns] + 0.1


# --- The user -------------------------------------------------------------------------------------


def test_the_user_audits_a_tenth_and_reports_errors_more_often_than_hits():
    some = rows(20_000)
    verdicts = User().judge(
        some, answered(some, right=0.5), budget=len(some), draw=random.Random(0)
    )
    audits = [v for v in verdicts if v.sampling == "audit"]
    reports = [v for v in verdicts if v.sampling == "user"]
    assert len(audits) / len(some) == pytest.approx(0.1, abs=0.01)
    assert {v.probability for v in audits} == {0.1}
    assert {v.probability for v in reports} == {None}
    wrong = [v.predicted != v.row["label"] for v in audits]
    assert np.mean(wrong) == pytest.approx(0.5, abs=0.04)
    corrected = sum(v.predicted != v.row["label"] for v in reports)
    assert corrected / len(some) == pytest.approx(0.5 * 0.9 * 0.6, abs=0.01)
    assert (len(reports) - corrected) / len(some) == pytest.approx(0.5 * 0.9 * 0.2, abs=0.01)


def test_a_budget_counts_all_verdicts_and_a_smaller_one_comes_first():
    some = rows(400)
    answers = answered(some, right=0.5)
    many, few = (
        User().judge(some, answers, budget=budget, draw=random.Random(3)) for budget in (90, 30)
    )
    assert len(many) == 90
    assert few == many[:30]


@pytest.mark.django_db
def test_a_training_set_is_what_the_system_would_freeze_and_leaves_nothing_behind():
    some = rows(120)
    some.append(some[0] | {"group": "page 99"})  # the same pair from another page
    user = User(audits=0.5)
    verdicts = user.judge(some, answered(some, right=0.5), budget=120, draw=random.Random(0))
    frozen = protocol.training_set(verdicts)
    assert len({row.pair_digest for row in frozen}) == len(frozen)
    by_pair = {(v.row["premise"], v.row["hypothesis"]): v for v in verdicts}
    for row in frozen:
        said = by_pair[row.pair]
        assert row.sampling_probability == said.probability
        assert row.verdict == ("confirmed" if said.predicted == row.label else "corrected")
    folds = {}
    for row in frozen:
        assert folds.setdefault(row.group_id, row.fold) == row.fold
    assert len(set(folds.values())) == 5
    assert not Correction.objects.exists()


# --- The splits -----------------------------------------------------------------------------------


def test_splits_hold_out_every_page_once_and_share_none():
    some = rows(600, pages=35)
    held_out = []
    for number in range(protocol.PARTS):
        split = protocol.split(some, number)
        judged = {some[i]["group"] for i in split.judged}
        outside = {some[i]["group"] for i in split.held_out}
        assert judged.isdisjoint(outside)
        assert len(split.held_out) / len(some) == pytest.approx(0.2, abs=0.1)
        held_out += split.held_out
    assert sorted(held_out) == list(range(len(some)))
    assert protocol.split(some, 5) != protocol.split(some, 0)


def test_rows_that_share_a_text_with_training_are_not_measured_on():
    some = rows(100)
    split = protocol.split(some, 0)
    purged, kept = split.held_out[:2], split.held_out[2:]
    some[purged[0]]["premise"] = some[split.judged[0]]["premise"]
    some[purged[1]]["hypothesis"] = some[split.judged[1]]["hypothesis"]
    assert protocol.split(some, 0) == protocol.Split(split.judged, kept)


def test_halves_share_no_page():
    some = rows(300)
    first, second = protocol.halves(some, range(300), seed=0)
    assert sorted(first + second) == list(range(300))
    assert {some[i]["group"] for i in first}.isdisjoint(some[i]["group"] for i in second)


# --- The figures ----------------------------------------------------------------------------------


def test_macro_f1_of_confusions_is_that_of_the_rows():
    draw = np.random.default_rng(0)
    answers, labels, groups = draw.integers(3, size=(3, 60))
    counts = comparing.confusions(answers, labels, groups)
    expected = metrics.macro_f1(np.eye(3)[answers], labels)
    assert comparing.macro_f1(counts.sum(0)) == pytest.approx(expected)
    labels[labels == 2] = answers[answers == 2] = 0  # a label that nobody names
    counts = comparing.confusions(answers, labels, groups)
    expected = metrics.macro_f1(np.eye(3)[answers], labels)
    assert comparing.macro_f1(counts.sum(0)) == pytest.approx(expected)


def test_the_oracle_knows_how_sure_an_arm_should_have_been():
    draw = np.random.default_rng(0)
    honest = softmax(draw.normal(0, 1.5, (4000, 3)), axis=1)
    labels = np.array([draw.choice(3, p=each) for each in honest])
    boastful = softmax(3 * np.log(honest), axis=1)
    one, other = (bench.figures_of(each, labels) for each in (honest, boastful))
    assert one["accuracy"] == other["accuracy"]
    assert one["log_loss"] - one["oracle_log_loss"] == pytest.approx(0, abs=1e-3)
    assert other["oracle_log_loss"] == pytest.approx(one["oracle_log_loss"], abs=1e-6)
    assert other["log_loss"] > one["log_loss"] + 0.3
    assert one["ece_debiased"] < one["ece_floor"] * 2 < 0.1 < other["ece_debiased"]


def stream(gain: float, *, seed: int, copies: int = 1) -> dict:
    """Five splits of one seed each; B has a share `gain` more right than A."""
    draw = np.random.default_rng(seed)
    splits = {}
    for split in range(5):
        labels, groups = draw.integers(3, size=200), draw.integers(40, size=200)
        wrong = (labels + 1) % 3
        luck = draw.random((2, 200))
        answers = [np.where(luck[side] < 0.5 + side * gain, labels, wrong) for side in range(2)]
        splits[split] = tuple(
            comparing.confusions(a.repeat(copies), labels.repeat(copies), groups.repeat(copies))[
                None
            ]
            for a in answers
        )
    return splits


def test_the_bounds_cover_no_difference_and_exclude_a_large_one():
    nothing = {"a": stream(0, seed=0), "b": stream(0, seed=1)}
    much = {"a": stream(0.3, seed=0), "b": stream(0.3, seed=1)}
    null = comparing.difference(nothing, comparing.accuracy)
    assert null.low < 0 < null.high
    found = comparing.difference(much, comparing.accuracy)
    assert 0 < found.low < 0.3 < found.high
    assert comparing.difference({"a": much["a"]}, comparing.accuracy).low < found.low


def test_copying_rows_inside_pages_narrows_nothing():
    once, tenfold = (
        comparing.difference({"a": stream(0.1, seed=0, copies=copies)}, comparing.accuracy)
        for copies in (1, 10)
    )
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


def test_healthver_and_scifact_count_as_one_domain():
    shares = comparing.weights(["climate_fever", "healthver", "scifact"])
    assert shares == {"climate_fever": 0.5, "healthver": 0.25, "scifact": 0.25}


def test_the_guard_change_is_bounded_by_splits_and_by_pages():
    draw = np.random.default_rng(0)
    groups = draw.integers(300, size=2000)
    changes = {
        name: {split: draw.choice([-1, 0, 1], p=[0.05, 0.93, 0.02], size=(2, 2000))
               for split in range(5)}
        for name in ("a", "b")
    }  # fmt: skip
    found = comparing.guard_change(changes, groups)
    assert found.low < -0.03 < found.high < 0


def test_a_recipe_is_chosen_on_the_other_streams_only():
    scores = {
        "bold": {"a": Score(0.9, -0.2), "b": Score(0.1, 0.0), "c": Score(0.1, 0.0)},
        "calm": {"a": Score(0.0, 0.0), "b": Score(0.2, 0.0), "c": Score(0.2, 0.0)},
    }
    assert comparing.rotate(scores) == {"a": "calm", "b": "bold", "c": "bold"}
    # On b and c the bold recipe's loss on the guard of a counts against it.
    assert comparing.rotate(scores, tolerated_loss=0.01) == {"a": "calm", "b": "calm", "c": "calm"}
    assert comparing.rotate({"only": {"a": Score(0.1, 0.0)}}) == {}


def test_a_stream_of_the_same_domain_does_not_choose_a_recipe():
    """Scifact would have healthver take the bold one; it is biomedical as well."""
    scores = {
        "bold": {"climate_fever": Score(0.1, 0.0), "scifact": Score(0.9, 0.0)},
        "calm": {"climate_fever": Score(0.2, 0.0), "scifact": Score(0.0, 0.0)},
    }
    scores = {name: some | {"healthver": Score(0.0, 0.0)} for name, some in scores.items()}
    assert comparing.rotate(scores) == {
        "climate_fever": "bold",
        "healthver": "calm",
        "scifact": "calm",
    }


def test_what_calibration_is_worth_is_paired_by_row_and_bounded_over_groups():
    """Half a nat less on every row, though rows differ by ten; another page says the same."""
    draw = np.random.default_rng(0)
    groups = draw.integers(40, size=300)

    def record(stream: str, split: int) -> dict:
        raw = draw.uniform(0, 10, 300)
        key = {"arm": "ours", "stream": stream, "split": split, "seed": 0, "share": 1.0}
        sides = {name: {"log_loss": raw, "brier": raw / 9} for name in ("losses", "uncalibrated")}
        sides["losses"] = {"log_loss": raw - 0.5, "brier": raw / 9}
        return {"key": key, **sides}

    cells = {name: {split: {0: record(name, split)} for split in (0, 1)} for name in ("a", "b")}
    labels = np.zeros(300, dtype=int)
    held_out = {(name, split): (labels, groups) for name in cells for split in (0, 1)}
    truth = report.Truth(held_out, labels, groups)
    found = report.calibrated(report.Line("ours", cells, {}), truth)
    assert found["log_loss"]["estimate"] == pytest.approx(-0.5)
    assert found["log_loss"]["high"] - found["log_loss"]["low"] < 1e-9
    assert found["brier"]["estimate"] == 0
    del cells["b"][1][0]["uncalibrated"]
    assert report.calibrated(report.Line("ours", cells, {}), truth) == {}


# --- The arms -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("learning") / "base")


def task(base_path: str, arm: str, settings: dict, **more) -> trained.Task:
    some = rows(120)
    verdicts = User().judge(some, answered(some, right=0.5), budget=60, draw=random.Random(0))
    return trained.Task(
        base=base_path,
        device="cpu",
        arm=arm,
        settings=settings,
        seed=1,
        rows=protocol.training_set(verdicts),
        asked=bench.pairs_of(rows(9, name="asked")),
        **more,
    )


@pytest.mark.django_db
@pytest.mark.parametrize("arm", ["ours", "ours-released"])
def test_ours_with_a_share_of_nothing_is_the_base_and_with_all_is_not(base_path: str, arm: str):
    asked = task(base_path, arm, QUICK, shares=(0.0, 1.0))
    made = trained.train_and_answer(asked)
    base = Predictor(load_base(base_path)).logits(asked.asked).argmax(1)
    assert (made.probabilities[0.0].argmax(1) == base).all()
    assert np.abs(made.probabilities[1.0] - made.probabilities[0.0]).max() > 1e-3
    assert made.uncalibrated.keys() == ({0.0, 1.0} if arm == "ours" else set())
    assert made.seconds > 0


@pytest.mark.django_db
def test_the_documents_recipe_learns_from_corrections_alone(base_path: str):
    literal = task(base_path, "seeds-corrections", {"corrections_only": True})
    made = trained.train_and_answer(literal)
    corrected = sum(row.verdict == "corrected" for row in literal.rows)
    assert made.facts["trained_on"] == corrected < len(literal.rows)
    everything = trained.train_and_answer(task(base_path, "seeds", {"corrections_only": False}))
    assert everything.facts["trained_on"] == len(literal.rows)
    # rank 8 on query and value of 2 layers of width 32, and the head
    assert made.parameters == 2 * 2 * 8 * (32 + 32) + 3 * 32 + 3


@pytest.mark.django_db
def test_full_fine_tuning_trains_every_weight(base_path: str):
    made = trained.train_and_answer(task(base_path, "full", {"learning_rate": 1e-3}))
    model = load_base(base_path).model
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_what_a_verdict_counts_is_the_same_for_rivals(base_path: str):
    """The same pairs twice, three to one: learnt by heart, that is the odds of their labels."""
    base, pairs = load_base(base_path), bench.pairs_of(rows(8))
    asked, labels = pairs * 2, [Label.SUPPORTS] * 8 + [Label.REFUTES] * 8
    weights = [3.0] * 8 + [1.0] * 8
    model = base.own_copy().requires_grad_(True)
    train_cross_encoder(
        base, model, asked, labels, weights=weights, seed=0, num_train_epochs=60,
        per_device_train_batch_size=16, learning_rate=1e-2,
    )  # fmt: skip
    tuned = replace(base, model=model.eval())
    assert Predictor(tuned).probabilities(pairs).mean(0) == pytest.approx(
        [3 / 4, 1 / 4, 0], abs=0.1
    )

    columns = np.array([label.column for label in labels])
    verdicts = trivial.Verdicts(columns, np.arange(16) % 5, np.array(weights))
    for name in ("majority", "bias", "overlap"):
        arm = trivial.ARMS[name]
        fitted = arm.fit(arm.sees(trivial.View(base, asked)), verdicts)
        said = fitted.predict(arm.sees(trivial.View(base, pairs)))
        assert said.mean(0) == pytest.approx([3 / 4, 1 / 4, 0], abs=0.1), name


def test_the_bias_arm_finds_a_label_mix_and_the_overlap_arm_reads_no_meaning(base_path: str):
    some = rows(150)
    view = trivial.View(load_base(base_path), bench.pairs_of(some))
    labels = np.where(np.arange(150) % 5 == 0, 1, 0)
    alike = trivial.Verdicts(labels, np.arange(150) % 5, np.ones(150))
    fitted = trivial.bias(view.logits, alike)
    assert fitted.parameters == 4
    assert fitted.predict(view.logits).mean(0) == pytest.approx([0.8, 0.2, 0.0], abs=0.01)
    assert trivial.overlap_features(("a b c d", "b x")) == pytest.approx(
        (1 / 2, 1 / 5, np.log(5), np.log(3))
    )
    same = [("one two", "two"), ("six ten", "ten")]
    assert len({trivial.overlap_features(pair) for pair in same}) == 1


# --- Stopping and going on ------------------------------------------------------------------------


def test_a_cell_cut_short_by_a_kill_is_measured_again(tmp_path: Path):
    path = tmp_path / "cells.jsonl"
    Cells(path).add({"cell": 1}, {"figure": 0.5})
    with path.open("a") as file:
        file.write('{"key": {"cell": 2}, "fig')
    cells = Cells(path)
    assert {"cell": 1} in cells
    assert {"cell": 2} not in cells
    cells.add({"cell": 2}, {"figure": 0.7})
    assert [record["figure"] for record in Cells(path)] == [0.5, 0.7]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for kind, name, count in (("stream", "one", 200), ("stream", "two", 180), ("guard", "g", 40)):
        (tmp_path / kind).mkdir(exist_ok=True)
        with gzip.open(tmp_path / kind / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count, name=name, seed=count))
    return tmp_path


@pytest.mark.django_db
def test_a_run_goes_on_where_it_stopped(data: Path, base_path: str):
    out = data / "out.jsonl"
    default, other = Arm("ours", QUICK), Arm("ours", QUICK | {"epochs": 2}, "other")

    def opened() -> Bench:
        return Bench(
            data=data,
            cells=Cells(out),
            base_name=base_path,
            user=User(),
            serves=default,
            console=Console(file=io.StringIO()),
        )

    cells = [Cell(name, 0, 0, 40, 1) for name in ("one", "two")]
    arms = [Arm("base"), Arm("bias"), Arm("overlap"), default]
    opened().measure(cells[0], arms[:2])
    first = out.read_text()
    for cell in cells:
        opened().measure(cell, arms[:3])
    assert out.read_text().startswith(first)
    measured = [record["key"] for record in Cells(out)]
    assert len(measured) == 6  # each once
    going_on = opened()
    going_on.measure(cells[0], [default])  # in a process of its own
    assert going_on.key(cells[0], default) in going_on.cells
    assert going_on.key(cells[0], other) not in going_on.cells

    *_, stored = out.read_text().splitlines()
    older = json.loads(stored)
    del older["figures"]["ece_floor"]  # a cell that an earlier release measured
    out.write_text(out.read_text().replace(stored, json.dumps(older)))
    learning.publish(opened(), arms, out)
    [table] = [
        v for k, v in json.loads(out.with_suffix(".json").read_text()).items() if "round" in k
    ]
    assert table["bias"]["cells"] == 2
    assert table["ours"]["over_base"].keys() == {"one", "average"}
    base = table["base"]["over_base"]["average"]["macro_f1"]
    assert base == {"estimate": 0, "low": 0, "high": 0}


def small_bench(data: Path, base_path: str) -> Bench:
    return Bench(
        data=data,
        cells=Cells(data / "out.jsonl"),
        base_name=base_path,
        user=User(),
        serves=Arm("ours", QUICK),
        console=Console(file=io.StringIO()),
    )


@pytest.mark.django_db
def test_a_budget_that_a_stream_cannot_supply_is_said(data: Path, base_path: str):
    small = small_bench(data, base_path)
    small.measure(Cell("one", 0, 0, 1000, 1), [Arm("base")])
    [record] = small.cells
    assert record["key"]["arm"] == bench.TOO_FEW
    assert 0 < record["verdicts"] < 200


@pytest.mark.django_db
def test_in_a_second_round_the_adapter_of_the_first_is_judged(data: Path, base_path: str):
    small = small_bench(data, base_path)
    small.measure(Cell("one", 0, 0, 20, 2), [Arm("base"), Arm(bench.ACTIVE, QUICK)])
    base, active = small.cells
    assert base["verdicts"]["in_snapshot"] == active["verdicts"]["in_snapshot"] == 40
    assert base["key"]["serves"] == QUICK
    assert len(active["answers"]) == len(base["answers"])
    assert active["figures"] != base["figures"]
