"""Bases of every architecture go the whole way: load, train, write, verify, fold, answer."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, processors

from adapters_app.nli import artifact as artifacts
from adapters_app.nli import lower
from adapters_app.nli.base_model import Base, BaseModelError, load_base
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.data import Example, collate
from adapters_app.nli.encoding import (
    MOST_PADDING,
    Encoded,
    Pair,
    PairEncoder,
    batches_by_length,
    batches_of_tokens,
)
from adapters_app.nli.predict import Predictor
from adapters_app.nli.train import (
    Anchors,
    Dropout,
    TrainingDiverged,
    TrainResult,
    below_adapter,
    passes_over,
    train,
)
from corrections.labels import LABELS, Label
from tests.conftest import ROOT
from tests.tiny import tiny_base

ARCHITECTURES = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "deberta-v2": ("query_proj", "value_proj"),
    "qwen2": ("q_proj", "v_proj"),
}
PAIRS = [
    ("the drug is safe for most patients", "patients are not safe"),
    ("a study found lower risk", "the dose causes rain"),
    ("tax", "law and policy " * 10),
    ("the water is never higher " * 8, "water is lower"),
]
EXAMPLES = [
    Example(premise, hypothesis, LABELS[i % 3]) for i, (premise, hypothesis) in enumerate(PAIRS * 6)
]
CONFIG = TrainConfig(
    epochs=2, batch_size=4, learning_rate=1e-2, min_steps=0, precision="fp32", seed=3
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    directory = tmp_path_factory.mktemp(request.param.replace("-", ""))
    return load_base(tiny_base(directory / "base", request.param))


@pytest.fixture(scope="module")
def result(base: Base) -> TrainResult:
    return train(base, EXAMPLES, CONFIG, evaluate=PAIRS, anchors=Anchors.answered_by(base, PAIRS))


@pytest.fixture
def bert(tmp_path: Path) -> Base:
    return load_base(tiny_base(tmp_path / "bert", "bert"))


def test_adapts_query_and_value_and_trains_the_head(base: Base, result: TrainResult) -> None:
    assert base.target_modules == ARCHITECTURES[base.model.config.model_type]
    adapted = {
        name.split(".")[-3] for name in result.epochs[-1].artifact.tensors if "lora_" in name
    }
    assert adapted == set(base.target_modules)
    assert any(f".{base.head}." in name for name in result.epochs[-1].artifact.tensors)


def test_training_does_not_touch_the_base(base: Base, result: TrainResult) -> None:
    again = load_base(base.name)
    assert again.fingerprint == base.fingerprint
    for (name, ours), theirs in zip(
        base.model.named_parameters(), again.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_learns_its_rows(base: Base, precision: str) -> None:
    config = TrainConfig(
        epochs=40, batch_size=4, learning_rate=2e-2, precision=precision, dropout=0.0
    )
    fitted = train(base, EXAMPLES[:4], config).epochs[-1].artifact
    predicted = Predictor(base, fitted).logits(PAIRS).argmax(1)
    assert [LABELS[i] for i in predicted] == [example.label for example in EXAMPLES[:4]]


def test_folded_logits_equal_pefts_own(base: Base, result: TrainResult, tmp_path: Path) -> None:
    last = result.epochs[-1].artifact
    digest = artifacts.write(tmp_path, last, {}, "card", base_name=base.name)
    ours = Predictor(base, artifacts.read(tmp_path / digest, base=base)).logits(PAIRS)
    np.testing.assert_array_equal(ours, result.epochs[-1].eval_logits)

    theirs = PeftModel.from_pretrained(load_base(base.name).model, tmp_path / digest).eval()
    encoded = base.encoder.encode(PAIRS)
    for row, expected in zip(encoded, ours, strict=True):
        batch = collate([row], pad_id=base.pad_id, type_ids=base.uses_type_ids)
        with torch.inference_mode():
            logits = theirs(**batch).logits[0, list(base.label_columns)].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_an_adapter_of_the_upper_layers_trains_as_if_the_lower_ones_were_asked_each_time(
    base: Base, tmp_path: Path
) -> None:
    """… though they are asked once; and it is written, verified and folded like any other."""
    config = replace(CONFIG, layer_share=0.5, dropout=0.0)
    anchors = Anchors.answered_by(base, PAIRS)
    states = below_adapter(base, PAIRS, config)
    assert states is not None
    fitted, slow = (
        train(base, EXAMPLES, config, evaluate=PAIRS, anchors=anchors, lower=known).epochs[-1]
        for known in (states, None)
    )
    assert {artifacts.layer_number(name) for name in fitted.artifact.tensors} == {1, None}
    for name, tensor in slow.artifact.tensors.items():
        np.testing.assert_allclose(fitted.artifact.tensors[name], tensor, atol=1e-3, err_msg=name)
    digest = artifacts.write(tmp_path, fitted.artifact, {}, "", base_name=base.name)
    read = artifacts.read(tmp_path / digest, base=base)
    np.testing.assert_array_equal(Predictor(base, read).logits(PAIRS), fitted.eval_logits)
    theirs = PeftModel.from_pretrained(load_base(base.name).model, tmp_path / digest).eval()
    encoded = base.encoder.encode(PAIRS[:1])
    batch = collate(encoded, pad_id=base.pad_id, type_ids=base.uses_type_ids)
    with torch.inference_mode():
        logits = theirs(**batch).logits[0, list(base.label_columns)].numpy()
    np.testing.assert_allclose(logits, fitted.eval_logits[0], atol=1e-5)


def test_what_is_known_of_the_lower_layers_is_what_the_upper_ones_get(
    bert: Base, tmp_path: Path
) -> None:
    config = replace(CONFIG, layer_share=0.5, dropout=0.0)
    other = load_base(tiny_base(tmp_path / "other", "bert", seed=1))
    own, foreign = (
        train(bert, EXAMPLES, config, lower=below_adapter(base, PAIRS, config))
        for base in (bert, other)
    )
    assert own.epochs[0].train_loss != pytest.approx(foreign.epochs[0].train_loss, rel=1e-3)


def test_what_would_take_too_much_memory_is_not_kept(
    bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower, "MOST_BYTES", 100)
    assert below_adapter(bert, PAIRS, replace(CONFIG, layer_share=0.5)) is None


def test_nothing_is_looked_up_where_every_layer_is_adapted(bert: Base) -> None:
    assert below_adapter(bert, PAIRS, replace(CONFIG, layer_share=1.0)) is None


def test_same_seed_same_digest(base: Base, result: TrainResult, tmp_path: Path) -> None:
    again = train(base, EXAMPLES, CONFIG, anchors=Anchors.answered_by(base, PAIRS))
    first, second = (
        artifacts.write(
            tmp_path / str(i), run.epochs[-1].artifact, {"made": i}, "", base_name=base.name
        )
        for i, run in enumerate((result, again))
    )
    assert first == second


def test_an_adapter_owns_only_what_it_changes(base: Base, result: TrainResult) -> None:
    predictor = Predictor(base, result.epochs[-1].artifact)
    whole = sum(p.numel() * p.element_size() for p in base.model.parameters())
    assert 0 < predictor.resident_bytes < whole
    before = Predictor(base).logits(PAIRS)
    assert not np.allclose(predictor.logits(PAIRS), before)
    np.testing.assert_array_equal(Predictor(base).logits(PAIRS), before)


def test_labels_follow_the_checkpoints_names(base: Base) -> None:
    names = base.model.config.id2label
    order = [str(names[column]) for column in base.label_columns]
    assert order == ["entailment", "contradiction", "neutral"]


def test_an_absent_target_is_refused_by_name(bert: Base) -> None:
    with pytest.raises(BaseModelError, match=r"no linear module 'query_proj'.*query"):
        train(bert, EXAMPLES, TrainConfig(target_modules=("query_proj",)))


def test_interpolation_moves_answers_towards_the_base(bert: Base) -> None:
    def answers(share: float) -> np.ndarray:
        config = TrainConfig(
            **{**CONFIG.to_dict(), "interpolation": share}  # type: ignore[arg-type]
        )
        return Predictor(bert, train(bert, EXAMPLES, config).epochs[-1].artifact).logits(PAIRS)

    base = Predictor(bert).logits(PAIRS)
    assert np.abs(answers(0.01) - base).max() < 0.1 * np.abs(answers(1.0) - base).max()


def test_anchors_keep_the_bases_answers(bert: Base) -> None:
    def drift(weight: float) -> float:
        config = TrainConfig(
            epochs=10, batch_size=4, learning_rate=1e-2, anchor_weight=weight, precision="fp32"
        )
        rows = [Example(*pair, Label.NEUTRAL) for pair in PAIRS]
        anchors = [(h, p) for p, h in PAIRS]
        held_to = Anchors.answered_by(bert, anchors)
        fitted = train(bert, rows, config, anchors=held_to).epochs[-1].artifact
        change = Predictor(bert, fitted).logits(anchors) - Predictor(bert).logits(anchors)
        return float(np.abs(change).mean())

    assert drift(10.0) < 0.7 * drift(0.0)


def test_a_labels_frequency_is_not_learnt(bert: Base) -> None:
    """Five of six pairs are neutral, whatever they say: adjusted, that teaches next to nothing."""
    rows = [
        Example(*pair, label)
        for pair in PAIRS
        for label in [Label.NEUTRAL] * 10 + [Label.SUPPORTS, Label.REFUTES]
    ]

    def neutral(adjustment: float) -> float:
        config = replace(CONFIG, epochs=8, logit_adjustment=adjustment, dropout=0)
        fitted = train(bert, rows, config).epochs[-1].artifact
        return float(Predictor(bert, fitted).probabilities(PAIRS)[:, Label.NEUTRAL.column].mean())

    assert neutral(0) == pytest.approx(10 / 12, abs=0.1)
    assert neutral(1) == pytest.approx(1 / 3, abs=0.1)


def test_a_pairs_weight_is_how_often_it_counts(bert: Base) -> None:
    def learnt(rows: list[Example]) -> float:
        config = replace(CONFIG, epochs=20, dropout=0, batch_size=len(rows))
        fitted = train(bert, rows, config).epochs[-1].artifact
        return float(Predictor(bert, fitted).probabilities(PAIRS[:1])[0, Label.SUPPORTS.column])

    weighted = [Example(*PAIRS[0], Label.SUPPORTS, 3.0), Example(*PAIRS[0], Label.REFUTES)]
    assert learnt(weighted) == pytest.approx(3 / 4, abs=0.1)


def test_a_diverging_training_says_what_to_lower(bert: Base) -> None:
    with torch.no_grad():
        bert.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        train(bert, EXAMPLES, CONFIG)


def test_on_step_can_stop_a_training(bert: Base) -> None:
    class Stop(Exception):
        pass

    seen = []

    def stop(step) -> None:  # type: ignore[no-untyped-def]
        seen.append(step)
        if step.step == 2:
            raise Stop

    with pytest.raises(Stop):
        train(bert, EXAMPLES, CONFIG, on_step=stop)
    assert [step.step for step in seen] == [1, 2]
    assert seen[0].total == 2 * 6


@pytest.mark.parametrize(
    ("min_steps", "steps"),
    [(0, 12), (12, 12), (13, 13), (20, 20)],  # 2 epochs of 6 batches, or as many as are asked for
)
def test_little_data_is_gone_over_more_often(bert: Base, min_steps: int, steps: int) -> None:
    seen = []
    train(bert, EXAMPLES, replace(CONFIG, min_steps=min_steps), on_step=seen.append)
    assert [(step.step, step.total) for step in seen] == [(n, steps) for n in range(1, steps + 1)]
    assert [step.epoch for step in seen] == sorted([1] * (steps // 2) + [2] * (steps - steps // 2))


def test_part_of_the_data_is_gone_over_as_often_as_the_whole(bert: Base) -> None:
    config = replace(CONFIG, min_steps=24)  # 4 passes over all of them
    whole = passes_over(len(EXAMPLES), config)
    seen = []
    train(bert, EXAMPLES[: len(EXAMPLES) // 2], config, on_step=seen.append, passes=whole)
    assert len(seen) == 12


def test_activations_that_are_computed_again_teach_the_same(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """… the second time with the elements dropped that were dropped the first time."""
    masks: list[torch.Size] = []
    forward = Dropout.forward

    def counted(self: Dropout, x: torch.Tensor) -> torch.Tensor:
        masks.append(x.shape)
        return forward(self, x)

    monkeypatch.setattr(Dropout, "forward", counted)
    kept = train(base, EXAMPLES, CONFIG).epochs[-1].artifact
    in_plain = len(masks)
    config = replace(CONFIG, gradient_checkpointing=True)
    again = train(base, EXAMPLES, config).epochs[-1].artifact
    assert len(masks) == 3 * in_plain
    for name, tensor in kept.tensors.items():
        np.testing.assert_allclose(again.tensors[name], tensor, atol=1e-6, err_msg=name)


# --- encoding -------------------------------------------------------------------------------------


def test_only_the_premise_is_cut(base: Base) -> None:
    hypothesis = "the law is safe"
    long, short = base.encoder.encode([("rain " * 900, hypothesis), ("rain", hypothesis)])
    assert len(long) == base.max_length
    tail = base.encoder.encode([("", hypothesis)])[0].ids[1:]
    assert long.ids[-len(tail) :] == short.ids[-len(tail) :] == tail


def test_a_very_long_hypothesis_leaves_room_for_the_premise(base: Base) -> None:
    (row,) = base.encoder.encode([("rain " * 50, "law " * 900)])
    assert len(row) <= base.max_length


def joined_by_the_tokenizer(
    tokenizer: Tokenizer, separator: int | None, window: int, pair: Pair
) -> Encoded:
    """A pair cut and put together by the tokenizer itself, which is slow where much is cut."""
    premise, hypothesis = tokenizer.encode_batch_fast(list(pair), add_special_tokens=False)
    special = tokenizer.num_special_tokens_to_add(True)
    room = window - (special or 2)
    if len(hypothesis) > room - 16:
        hypothesis.truncate(max(room - min(len(premise), 16), 1))
    premise.truncate(room - len(hypothesis))
    if not special:
        ids = [*premise.ids, separator, *hypothesis.ids, separator]
        return Encoded(ids, [0] * len(ids))
    joined = tokenizer.post_process(premise, hypothesis, True)
    return Encoded(joined.ids, joined.type_ids)


def pairs_around(window: int) -> list[Pair]:
    """Of texts of every length that could make a difference to where they are cut."""
    lengths = [0, 1, 2, 15, 16, 17, *range(window - 20, window + 2, 3), 3 * window]
    return [(" ".join(["rain"] * a), " ".join(["law"] * b)) for a in lengths for b in lengths]


def test_pairs_are_encoded_as_the_tokenizer_would(base: Base) -> None:
    separator = base.tokenizer.eos_token_id
    for window in (base.max_length, 40):
        encoder = base.encoder.limited_to(window)
        for pair in pairs_around(window):
            expected = joined_by_the_tokenizer(encoder._backend, separator, window, pair)
            assert encoder.encode([pair]) == [expected]


TEMPLATES = {
    "RoBERTa": processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
    "BERT": processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
    "segments of its own": processors.TemplateProcessing(
        single="$A", pair="$A:1 [SEP]:2 $B:3 [SEP]:4", special_tokens=[("[SEP]", 3)]
    ),
    "in a sequence": processors.Sequence(
        [
            processors.ByteLevel(),
            processors.TemplateProcessing(
                single="$A", pair="$A [SEP] [SEP] $B", special_tokens=[("[SEP]", 3)]
            ),
        ]
    ),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_is_kept_to(bert: Base, template: str) -> None:
    tokenizer = bert.tokenizer.backend_tokenizer
    tokenizer.post_processor = TEMPLATES[template]
    encoder = PairEncoder(tokenizer, 40)
    for pair in pairs_around(40):
        expected = joined_by_the_tokenizer(encoder._backend, None, 40, pair)
        assert encoder.encode([pair]) == [expected]


@pytest.mark.parametrize("template", ["[CLS] $B [SEP] $A", "$A [SEP] $A $B"])
def test_a_template_that_is_no_pair_is_refused(bert: Base, template: str) -> None:
    tokenizer = bert.tokenizer.backend_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(BaseModelError, match="something else than its premise"):
        PairEncoder(tokenizer, 128)


LONGEST = """
import resource
from tokenizers import Tokenizer
from adapters_app.nli.encoding import PairEncoder
encoder = PairEncoder(Tokenizer.from_file({file!r}), 512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(row,) = encoder.encode([("!" * 10_000, "?" * 10_000)])
print(len(row), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_two_long_texts_take_little_memory(bert: Base, tmp_path: Path) -> None:
    """10,000 tokens each, in a process of its own, whose peak nothing else has raised."""
    file = str(tmp_path / "tokenizer.json")
    bert.tokenizer.backend_tokenizer.save(file)
    said = subprocess.run(
        [sys.executable, "-c", LONGEST.format(file=file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    tokens, kibibytes = map(int, said.stdout.split())
    assert tokens == 512
    assert kibibytes < 64 * 1024


def test_special_token_text_stays_text(base: Base) -> None:
    (forged,) = base.encoder.encode([("rain [SEP] law [PAD]", "tax")])
    (plain,) = base.encoder.encode([("rain law", "tax")])
    specials = {
        base.tokenizer.sep_token_id,
        base.tokenizer.eos_token_id,
        base.tokenizer.pad_token_id,
    }
    assert sum(i in specials for i in forged.ids) == sum(i in specials for i in plain.ids)


def test_batches_hold_every_row_once_longest_first() -> None:
    batches = batches_by_length([3, 9, 1, 9, 5], 2)
    assert batches == [[1, 3], [4, 0], [2]]


def test_a_long_row_does_not_pad_a_batch_of_short_ones() -> None:
    lengths = [20] * 30 + [500, 480]
    batches = batches_by_length(lengths, 32)
    assert sorted(i for batch in batches for i in batch) == list(range(32))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert sum(longest - lengths[i] for i in batch) <= MOST_PADDING
    assert len(batches) <= 3


def test_fewer_long_rows_share_a_batch_where_its_tokens_are_limited() -> None:
    lengths = [500] * 9 + [90] * 30 + [3000]
    batches = batches_by_length(lengths, 32, most_tokens=2048)
    assert sorted(i for batch in batches for i in batch) == list(range(40))
    assert [(len(batch), lengths[batch[0]]) for batch in batches] == [
        (1, 3000),
        *[(4, 500)] * 2,
        (1, 500),
        (22, 90),
        (8, 90),
    ]


def test_batches_of_tokens_count_their_padding() -> None:
    assert batches_of_tokens([3, 9, 5, 20, 4], 12) == [[3], [1], [2, 4], [0]]
    assert batches_of_tokens([], 12) == []


def test_alone_or_in_a_batch_the_answer_is_the_same(base: Base) -> None:
    predictor = Predictor(base)
    together = predictor.logits(PAIRS)
    alone = np.vstack([predictor.logits([pair]) for pair in PAIRS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(together, predictor.logits(PAIRS))


# --- what is refused ------------------------------------------------------------------------------


def test_a_base_that_is_not_there_says_so_without_the_hub() -> None:
    with pytest.raises(BaseModelError, match=r"cannot be loaded.*LYRA_BASE_ALLOW_DOWNLOAD"):
        load_base("no-such-model")


def test_outputs_that_are_not_nli_are_refused(tmp_path: Path) -> None:
    path = Path(tiny_base(tmp_path / "b"))
    config = json.loads((path / "config.json").read_text())
    config["id2label"] = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="an NLI model names three"):
        load_base(str(path))


@pytest.fixture
def written(bert: Base, tmp_path: Path) -> Path:
    fitted = train(bert, EXAMPLES, CONFIG).epochs[-1].artifact
    return tmp_path / artifacts.write(tmp_path, fitted, {}, "card", base_name="bert")


def test_an_altered_tensor_file_is_refused(written: Path, bert: Base) -> None:
    path = written / artifacts.TENSORS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(artifacts.ArtifactCorrupt, match="SHA-256"):
        artifacts.read(written, base=bert)


def test_an_adapter_for_another_base_is_refused(written: Path, tmp_path: Path) -> None:
    other = load_base(tiny_base(tmp_path / "other", "bert", seed=7))
    with pytest.raises(artifacts.ArtifactCorrupt, match="made for the base"):
        artifacts.read(written, base=other)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype", "nan"])
def test_tensors_that_do_not_fit_are_refused(bert: Base, tmp_path: Path, change: str) -> None:
    fitted = train(bert, EXAMPLES, CONFIG).epochs[-1].artifact
    name = next(iter(fitted.tensors))
    if change == "missing":
        del fitted.tensors[name]
    elif change == "extra":
        fitted.tensors["base_model.model.extra.weight"] = np.zeros(1, dtype=np.float32)
    elif change == "shape":
        fitted.tensors[name] = np.zeros((1, 1), dtype=np.float32)
    elif change == "dtype":
        fitted.tensors[name] = fitted.tensors[name].astype(np.float16)
    else:
        fitted.tensors[name] = np.full_like(fitted.tensors[name], np.nan)
    digest = artifacts.write(tmp_path, fitted, {}, "", base_name="bert")
    with pytest.raises(artifacts.ArtifactCorrupt):
        artifacts.read(tmp_path / digest, base=bert)


def test_a_half_written_artifact_is_refused(written: Path) -> None:
    (written / artifacts.MANIFEST).unlink()
    with pytest.raises(artifacts.ArtifactCorrupt, match="manifest"):
        artifacts.read(written)


def test_writing_twice_leaves_one_artifact(bert: Base, tmp_path: Path) -> None:
    fitted = train(bert, EXAMPLES, CONFIG).epochs[-1].artifact
    first = artifacts.write(tmp_path, fitted, {}, "a", base_name="bert")
    second = artifacts.write(tmp_path, fitted, {}, "b", base_name="bert")
    assert first == second
    assert [path.name for path in tmp_path.iterdir() if path.name != "bert"] == [first]
    shutil.rmtree(tmp_path / first)
