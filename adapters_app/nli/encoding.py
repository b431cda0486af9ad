"""Pairs as token ids, without torch: pair encoding, padding, batches of similar length."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

Pair = tuple[str, str]

# Where a hypothesis alone fills the window, this much of it gives way to the premise.
_LEAST_PREMISE_TOKENS = 16
# Tokens of padding in a batch that cost about as much as a batch of its own, where every layer
# computes them. Chosen when OpenVINO still did, without AMX: from 32 to 128 did equally well, 512
# cost a tenth to a fifth more for 32 pairs. torch, which is what keeps to it now, was not tried.
MOST_PADDING = 128


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one pair and the segment of each token."""

    ids: list[int]
    type_ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)


Item = Pair | Encoded  # of a request, before and after it was encoded


class PairEncoder:
    """Encodes pairs as pairs, cutting the premise only; special-token text in the input stays text.

    Uses the tokenizer's own post-processor. Tokenizers that put nothing between the two texts of a
    pair (decoder models such as Qwen2) get the end-of-text token there and at the end: user text
    cannot forge it.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_length: int, *, separator: int | None = None
    ) -> None:
        """`separator`: id of the end-of-text token, for tokenizers that put nothing in between."""
        # A copy of its own: truncation, padding and special-token parsing are switched off on it.
        self._backend = Tokenizer.from_str(tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.max_length = max_length
        self._special = self._backend.num_special_tokens_to_add(True)
        self._separator = separator if self._special == 0 else None
        if self._separator is not None:
            self._special = 2

    def limited_to(self, max_length: int) -> "PairEncoder":
        """The same encoder with a shorter window (never a longer one)."""
        twin = copy.copy(self)
        twin.max_length = min(max_length, self.max_length)
        return twin

    def encode(self, items: Sequence[Item]) -> list[Encoded]:
        """Encode n pairs, each at most `max_length` tokens long, in order; what is encoded already
        stays as it is."""
        texts = [text for item in items if not isinstance(item, Encoded) for text in item]
        parts = iter(self._backend.encode_batch_fast(texts, add_special_tokens=False))
        return [
            item if isinstance(item, Encoded) else self._join(next(parts), next(parts))
            for item in items
        ]

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


def padded(rows: Sequence[Encoded], *, pad_id: int, multiple: int = 1) -> dict[str, np.ndarray]:
    """Rows padded to the longest, rounded up to `multiple`.

    Ids, attention mask and token types, each (n, length) int64.
    """
    length = -(-max(len(row) for row in rows) // multiple) * multiple
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    types = np.zeros((len(rows), length), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row.ids
        mask[i, : len(row)] = 1
        types[i, : len(row)] = row.type_ids
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def batches_by_length(
    lengths: Sequence[int],
    batch_size: int,
    most_padding: int = MOST_PADDING,
    most_tokens: float = math.inf,
) -> list[list[int]]:
    """Indices in batches of similar length, longest first, so that little is padded.

    A batch holds `batch_size` rows, or fewer where more would need over `most_padding` tokens, or
    be over `most_tokens` with them. A row that is longer has a batch of its own.
    """
    batches: list[list[int]] = []
    longest = padding = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padding += longest - lengths[i]
        rows = len(batches[-1]) if batches else batch_size
        if rows == batch_size or padding > most_padding or (rows + 1) * longest > most_tokens:
            batches.append([])
            longest, padding = lengths[i], 0
        batches[-1].append(i)
    return batches


def batches_of_tokens(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, each of at most `tokens` with padding.

    A row that is longer has a batch of its own.
    """
    waiting = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    while waiting:
        count = max(1, tokens // max(1, lengths[waiting[0]]))
        batches.append(waiting[:count])
        waiting = waiting[count:]
    return batches
