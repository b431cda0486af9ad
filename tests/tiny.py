"""Tiny random base models, built from configs in a second: real code paths, no language ability."""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

# Published cross-encoders use this order; ours is supports, refutes, neutral.
ID2LABEL = {0: "contradiction", 1: "entailment", 2: "neutral"}
WORDS = (
    "the a is are was not no never all some most drug trial patients dose risk rain policy tax law "
    "health water city higher lower more less than before after causes reduces safe effective "
    "people study found shows may and or if in of to"
)


def tiny_base(path: str | Path, architecture: str = "bert", *, seed: int = 0) -> str:
    """Write a random sequence-classification checkpoint with its tokenizer to `path`; return it.

    `architecture` is bert, roberta, deberta-v2 or qwen2. The Qwen2 one has no pad token and no
    model_max_length, as published ones may.
    """
    tokenizer = _tokenizer(architecture)
    tokenizer.save_pretrained(path)
    torch.manual_seed(seed)
    _model(architecture, vocabulary=len(tokenizer)).save_pretrained(path)
    return str(path)


def _model(architecture: str, *, vocabulary: int) -> PreTrainedModel:
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
        # Ten times the usual spread, so that random models do not answer 1/3 to everything.
        "initializer_range": 0.2,
        "num_labels": 3,
        "id2label": ID2LABEL,
        "label2id": {label: index for index, label in ID2LABEL.items()},
    }
    if architecture == "bert":
        return BertForSequenceClassification(BertConfig(**shape, pad_token_id=0))
    if architecture == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(**shape, pad_token_id=0))
    if architecture == "deberta-v2":
        config = DebertaV2Config(
            **shape,
            pad_token_id=0,
            relative_attention=True,
            position_buckets=16,
            pos_att_type=["p2c", "c2p"],
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            position_biased_input=False,
            type_vocab_size=0,
            pooler_hidden_size=shape["hidden_size"],
        )
        return DebertaV2ForSequenceClassification(config)
    if architecture == "qwen2":
        return Qwen2ForSequenceClassification(Qwen2Config(**shape, num_key_value_heads=2))
    raise ValueError(f"architecture {architecture!r} is none of bert, roberta, deberta-v2, qwen2")


def _tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """WordPiece over a few words and all ASCII letters, so that no text is unknown as a whole."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *WORDS.split()]
    ids = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = BertNormalizer(lowercase=True)
    backend.pre_tokenizer = BertPreTokenizer()
    if architecture == "qwen2":
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="[UNK]", eos_token="[SEP]"
        )
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
        # Of these only BERT tells the two texts of a pair apart by token type.
        model_input_names=["input_ids", "attention_mask"]
        + ["token_type_ids"] * (architecture == "bert"),
    )
