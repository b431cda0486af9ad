"""The bundled base is trained by one command, from teachers to a student that fits in 8 MB."""

import gzip
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from django.core.management import CommandError, call_command
from safetensors.torch import load_file

from adapters_app.nli import train_base
from adapters_app.nli.artifact import TENSORS
from adapters_app.nli.base_model import (
    Base,
    fold_into,
    load_base,
    load_encoder_with_fresh_head,
)
from adapters_app.nli.predict import Predictor
from adapters_app.nli.train_base import Recipe, fine_tune, low_rank_change
from corrections.labels import LABELS, Label
from tests.tiny import tiny_base

WORDS = ("water", "drug", "tax", "law", "patient", "study", "risk", "rain", "dose", "policy")
PAIRS = [(f"the {a} is safe", f"the {b} is not higher") for a in WORDS for b in WORDS[:3]]


def _write(path: Path, source: str, premises: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt") as file:
        for number in range(premises):
            for label in Label:
                row = {
                    "premise": f"The {WORDS[number % len(WORDS)]} of case {number} was measured.",
                    "hypothesis": f"Case {number} is {label.value} in the {source} file.",
                    "label": label.value,
                    "source": source,
                    "group": f"{source}-{number}",
                }
                file.write(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    _write(directory / "base" / "first.jsonl.gz", "first", 12)
    _write(directory / "base" / "second.jsonl.gz", "second", 8)
    _write(directory / "guard" / "general.dev.jsonl.gz", "general", 5)
    return directory


@pytest.fixture
def tiny(tmp_path: Path) -> Base:
    return load_base(tiny_base(tmp_path / "tiny", "bert"))


def test_a_stopped_run_goes_on_behind_its_teachers_to_the_same_weights(
    data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    train_base.train_base(data, tmp_path / "first", limit=24, work=work)
    teachers = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    train_base.train_base(data, tmp_path / "second", limit=24, work=work)

    assert len(teachers) == len(train_base.TEACHERS)
    assert {path: path.stat().st_mtime_ns for path in work.iterdir()} == teachers
    first, second = ((tmp_path / name / TENSORS).read_bytes() for name in ("first", "second"))
    assert first == second
    assert len(first) < 8_000_000


def test_what_is_written_answers_as_what_was_measured(data: Path, tmp_path: Path) -> None:
    facts = train_base.train_base(data, tmp_path / "out", limit=12)
    base = load_encoder_with_fresh_head(seed=0)
    model = base.own_copy()
    fold_into(model, load_file(tmp_path / "out" / TENSORS), scaling=1.0)
    guard = train_base.read_rows(data / "guard" / "general.dev.jsonl.gz")
    logits = Predictor(replace(base, model=model)).logits([row.example.pair for row in guard])
    labels = torch.tensor([row.example.label.column for row in guard])
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), labels).item()
    assert loss == pytest.approx(facts["measured"]["general.dev"]["log_loss"], abs=1e-3)


def test_the_card_names_the_data_and_what_was_measured(data: Path, tmp_path: Path) -> None:
    said = StringIO()
    call_command("train_base", data=data, out=tmp_path / "out", limit=12, stdout=said)
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()

    assert facts["measured"]["general.dev"]["n"] == 15
    assert facts["measured"]["held out of the base data"]["n"] == 6  # a group of three per source
    assert set(facts["rows"]) == {"first", "second"}
    assert f"| general.dev | 15 | {facts['measured']['general.dev']['accuracy']:.3f} |" in card
    assert "general.dev: accuracy" in said.getvalue()


def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    good = {"premise": "a", "hypothesis": "b", "label": "supports"}
    bad = good | {"label": "maybe"}
    path = tmp_path / "base" / "rows.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(CommandError, match=r"rows\.jsonl line 2: .*maybe"):
        call_command("train_base", data=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_group_is_on_both_sides_and_big_sources_are_capped(data: Path) -> None:
    rows = [row for path in sorted((data / "base").iterdir()) for row in train_base.read_rows(path)]
    kept, held = train_base.split(rows, seed=1)
    assert {row.group for row in kept}.isdisjoint(row.group for row in held)
    assert len(kept) + len(held) == len(rows)
    capped = train_base.capped(kept, {"first": 5})
    assert sum(row.source == "first" for row in capped) == 5
    assert sum(row.source == "second" for row in capped) == sum(
        row.source == "second" for row in kept
    )


def test_related_pairs_come_from_labelled_ones_with_what_their_labels_exclude(data: Path) -> None:
    rows = [row for path in sorted((data / "base").iterdir()) for row in train_base.read_rows(path)]
    label_of = {row.example.pair: row.example.label for row in rows}
    premise_of = {row.example.hypothesis: row.example.premise for row in rows}
    related = train_base.related_pairs(rows, 400, seed=1)
    assert len(related) == 400
    turned = [each for each in related if each.pair[::-1] in label_of]
    siblings = [each for each in related if each.pair[::-1] not in label_of]
    assert 50 < len(turned) < 150
    for each in turned:
        refuted = label_of[each.pair[::-1]] == Label.REFUTES
        assert (Label.REFUTES in each.excluded) is not refuted  # it goes both ways
    for each in siblings:
        first, second = each.pair
        premise = premise_of[first]
        assert first != second
        assert premise == premise_of[second]
        if label_of[premise, first] == Label.SUPPORTS:
            # Then the premise would be to the second what the first is.
            assert each.excluded.isdisjoint({label_of[premise, second]})
            if label_of[premise, second] == Label.NEUTRAL:
                assert each.excluded == {Label.SUPPORTS, Label.REFUTES}
    assert {label for each in siblings for label in each.excluded} == {
        Label.SUPPORTS,
        Label.REFUTES,
    }


def test_where_no_premise_has_two_hypotheses_all_pairs_are_turned_round(data: Path) -> None:
    alone = train_base.read_rows(data / "base" / "first.jsonl.gz")[::3]
    pairs = {row.example.pair for row in alone}
    related = train_base.related_pairs(alone, 20, seed=1)
    assert all(each.pair[::-1] in pairs for each in related)


def test_the_teachers_answers_are_the_mean_of_their_probabilities(
    tiny: Base, tmp_path: Path
) -> None:
    other = load_base(tiny_base(tmp_path / "other", "bert", seed=5))
    mean = train_base.mean_probabilities(tiny, [tiny.model, other.model], PAIRS)
    apart = [Predictor(base).probabilities(PAIRS) for base in (tiny, other)]
    # bf16 has three digits
    assert mean[:, list(tiny.label_columns)].numpy() == pytest.approx(
        np.mean(apart, axis=0), abs=0.02
    )
    assert np.abs(apart[0] - apart[1]).max() > 0.05


def test_what_the_student_changes_keeps_its_rank(tiny: Base) -> None:
    targets = torch.softmax(torch.randn(len(PAIRS), len(LABELS)), -1)
    recipe = Recipe(learning_rate=1e-2, epochs=2, batch_size=4, dropout=0.0)
    before = {name: value.clone() for name, value in tiny.model.named_parameters()}
    tuned = fine_tune(tiny, PAIRS, targets, recipe, rank=2)
    cut = Predictor(tiny, low_rank_change(tiny, tuned, 2)).logits(PAIRS)
    whole = fine_tune(tiny, PAIRS, targets, recipe)

    change = {name: value - before[name] for name, value in tuned.named_parameters()}
    ranks = {
        name: torch.linalg.matrix_rank(value, rtol=1e-3).item()
        for name, value in change.items()
        if value.dim() == 2 and "embeddings" not in name and not name.startswith(tiny.head)
    }
    assert set(ranks.values()) == {2}
    assert any(
        torch.linalg.matrix_rank(value - before[name], rtol=1e-3).item() > 2
        for name, value in whole.named_parameters()
        if name in ranks
    )
    assert cut == pytest.approx(_logits(tiny, tuned), abs=1e-2)
    assert all(not value.any() for name, value in change.items() if "embeddings" in name)


def _logits(base: Base, model: torch.nn.Module) -> np.ndarray:
    return Predictor(replace(base, model=model)).logits(PAIRS)
