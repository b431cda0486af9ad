"""What ships: the bundled base, the guard set and the anchors are what their cards say."""

import dataclasses
import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer

from adapters_app.nli import anchors, checkpoint, guard, reference
from adapters_app.nli.base_model import Base, load_base
from adapters_app.nli.checkpoint import BUNDLED, BUNDLED_DIR, BaseModelError
from adapters_app.nli.predict import Predictor, TorchEngine
from corrections.labels import LABELS


@pytest.fixture(scope="module")
def minilm() -> Base:
    return load_base(BUNDLED)


def test_the_bundled_base_knows_english(minilm: Base) -> None:
    pairs = [
        ("A man is playing a guitar on stage.", "A man is playing an instrument."),
        ("A man is playing a guitar on stage.", "Nobody is on the stage."),
        ("A man is playing a guitar on stage.", "The man wrote the song himself."),
    ]
    answers = [LABELS[k].value for k in Predictor(minilm).logits(pairs).argmax(1)]
    assert answers == ["supports", "refutes", "neutral"]


def test_it_is_small_and_safe_to_load() -> None:
    assert sum(path.stat().st_size for path in BUNDLED_DIR.iterdir()) <= 8_000_000
    for tensor in load_file(BUNDLED_DIR / "adapter_model.safetensors").values():
        assert np.isfinite(tensor.float().numpy()).all()


def test_another_encoder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    directory = checkpoint.encoder_directory()
    for path in directory.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    weights = load_file(directory / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    weights["pooler.dense.bias"] = weights["pooler.dense.bias"] + 1
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(checkpoint, "encoder_directory", lambda: tmp_path)
    with pytest.raises(BaseModelError, match="SHA-256 differs"):
        load_base(BUNDLED)


def test_the_guard_set_is_balanced_and_as_hard_as_its_card_says(minilm: Base) -> None:
    rows = guard.load()
    by_phenomenon = Counter(rows.phenomena)
    assert len(by_phenomenon) == 12
    assert set(by_phenomenon.values()) == {50}
    cells = Counter(zip(rows.phenomena, rows.labels.tolist(), strict=True))
    assert set(cells.values()) == {16, 17}
    right = Predictor(minilm).logits(rows.pairs).argmax(1) == rows.labels
    assert 0.60 <= right.mean() <= 0.85


def test_a_guard_hypothesis_alone_says_nothing() -> None:
    rows = guard.load()
    hypotheses = [hypothesis for _, hypothesis in rows.pairs]
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=3))
    scores = cross_val_score(
        words, hypotheses, rows.labels, groups=hypotheses, cv=GroupKFold(n_splits=5)
    )
    assert scores.mean() <= 0.40


def test_anchors_are_apart_from_the_guard_set() -> None:
    def grams(text: str) -> set[str]:
        return {text.lower()[i : i + 5] for i in range(len(text) - 4)}

    watched = [grams(text) for pair in guard.load().pairs for text in pair]
    assert len(anchors.load()) >= 600
    for pair in anchors.load():
        for text in map(grams, pair):
            assert max(len(text & other) / len(text | other) for other in watched) < 0.5


def test_the_card_names_the_files_it_describes() -> None:
    facts = json.loads((BUNDLED_DIR / "facts.json").read_text())
    assert facts["encoder_sha256"] == checkpoint.ENCODER_SHA256
    weights = (checkpoint.encoder_directory() / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == facts["encoder_sha256"]


def test_the_stored_logits_are_this_bases(minilm: Base) -> None:
    """Made by `manage.py store_reference`; without them the fast engine starts through torch."""
    files = checkpoint.find(BUNDLED)
    stored, tokenizer = reference.stored(files, BUNDLED_DIR / "nothing")
    made, text = TorchEngine(minilm).reference(files.digest)
    assert Tokenizer.from_str(tokenizer).to_str() == text
    np.testing.assert_allclose(stored.bare, made.bare, atol=1e-4)
    np.testing.assert_allclose(stored.probed, made.probed, atol=1e-4)
    assert dataclasses.replace(made, bare=stored.bare, probed=stored.probed) == stored
