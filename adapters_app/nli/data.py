"""NLI pairs as the model sees them: examples, pair encoding, length-bucketed batches."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from corrections.labels import Label

Pair = tuple[str, str]

# Where a hypothesis alone fills the window, this much of it gives way to the premise.
_LEAST_PREMISE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled pair; `weight` multiplies its loss."""

    premise: str
    hypothesis: str
    label: Label
    weight: float = 1.0

    @property
    def pair(self) -> Pair:
        return self.premise, self.hypothesis


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one pair and the segment of each token."""

    ids: list[int]
    type_ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)


class PairEncoder:
    """Encodes pairs as pairs, cutting the premise only; special-token text in the input stays text.

    Uses the tokenizer's own post-processor. Tokenizers that put nothing between the two texts of a
    pair (decoder models such as Qwen2) get the end-of-text token there and at the end: user text
    cannot forge it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
        # A copy of its own: truncation, padding and special-token parsing are switched off on it.
        self._backend = type(tokenizer.backend_tokenizer).from_str(
            tokenizer.backend_tokenizer.to_str()
        )
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.max_length = max_length
        self._separator: int | None = None
        self._special = self._backend.num_special_tokens_to_add(True)
        if self._special == 0:
            self._separator = int(tokenizer.eos_token_id)
            self._special = 2

    def limited_to(self, max_length: int) -> "PairEncoder":
        """The same encoder with a shorter window (never a longer one)."""
        twin = copy.copy(self)
        twin.max_length = min(max_length, self.max_length)
        return twin

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """Encode n pairs, each at most `max_length` tokens long, in order."""
        texts = [text for pair in pairs for text in pair]
        parts = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [self._join(parts[i], parts[i + 1]) for i in range(0, len(parts), 2)]

    def _join(self, premise: Encoding, hypothesis: Encoding) -> Encoded:
        room = self.max_length - self._special
        if len(hypothesis) > room - _LEAST_PREMISE_TOKENS:
            hypothesis.truncate(max(room - min(len(premise), _LEAST_PREMISE_TOKENS), 1))
        if len(premise) > room - len(hypothesis):
            premise.truncate(room - len(hypothesis))
        if self._separator is None:
            joined = self._backend.post_process(premise, hypothesis, True)
            return Encoded(joined.ids, joined.type_ids)
        ids = [*premise.ids, self._separator, *hypothesis.ids, self._separator]
        return Encoded(ids, [0] * len(ids))


def collate(rows: Sequence[Encoded], *, pad_id: int, type_ids: bool) -> dict[str, torch.Tensor]:
    """Pad rows to the longest of them; (n, length) int64 tensors a transformers model accepts."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    types = torch.zeros((len(rows), length), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row.ids)
        mask[i, : len(row)] = 1
        types[i, : len(row)] = torch.tensor(row.type_ids)
    batch = {"input_ids": ids, "attention_mask": mask}
    if type_ids:
        batch["token_type_ids"] = types
    return batch


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """One epoch of batches of similar length: random inside a pool, pools and batches shuffled."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    pool = batch_size * 16  # sorting within random pools keeps batches random and padding low
    batches = []
    for start in range(0, len(order), pool):
        chunk = sorted(order[start : start + pool], key=lambda i: lengths[i])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    for i in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[i]
