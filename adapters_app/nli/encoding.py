"""Pairs as token ids, without torch: pair encoding, padding, batches of similar length."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from adapters_app.nli.checkpoint import BaseModelError

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


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a tokenizer puts before, between and after the two texts of a pair, and the segment it
    gives the tokens of each."""

    before: Encoded
    between: Encoded
    after: Encoded
    segments: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def around(self, premise: list[int], hypothesis: list[int]) -> Encoded:
        first, second = self.segments
        return Encoded(
            [*self.before.ids, *premise, *self.between.ids, *hypothesis, *self.after.ids],
            [
                *self.before.type_ids,
                *[first] * len(premise),
                *self.between.type_ids,
                *[second] * len(hypothesis),
                *self.after.type_ids,
            ],
        )


class PairEncoder:
    """Encodes pairs as pairs, cutting the premise only; special-token text in the input stays text.

    What the tokenizer's own post-processor puts around the texts is looked up once, and put around
    their ids here: the tokenizer keeps all that it cuts off a text, and combines each piece of one
    text with each of the other, which takes gigabytes for two texts of 10,000 tokens. Tokenizers
    that put nothing between the two texts of a pair (decoder models such as Qwen2) get the
    end-of-text token there and at the end: user text cannot forge it.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_length: int, *, separator: int | None = None
    ) -> None:
        """`separator`: id of the end-of-text token, for tokenizers that put nothing in between.

        Raises:
            BaseModelError: pairs come out as something else than premise and hypothesis.
        """
        # A copy of its own: truncation, padding and special-token parsing are switched off on it.
        self._backend = Tokenizer.from_str(tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.max_length = max_length
        frame = _frame_of(self._backend)
        if frame is None:
            raise BaseModelError(
                "the base's tokenizer makes of a pair something else than its premise and then its "
                "hypothesis, as they are, with special tokens around them"
            )
        if len(frame) == 0 and separator is not None:
            end = Encoded([separator], [0])
            frame = _Frame(Encoded([], []), end, end)
        self._frame = frame

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
            item if isinstance(item, Encoded) else self._join(next(parts).ids, next(parts).ids)
            for item in items
        ]

    def _join(self, premise: list[int], hypothesis: list[int]) -> Encoded:
        room = self.max_length - len(self._frame)
        if len(hypothesis) > room - _LEAST_PREMISE_TOKENS:
            hypothesis = hypothesis[: max(room - min(len(premise), _LEAST_PREMISE_TOKENS), 1)]
        return self._frame.around(premise[: max(room - len(hypothesis), 0)], hypothesis)


def _frame_of(tokenizer: Tokenizer) -> _Frame | None:
    """Looked up around two texts of one token, and tried with others; None where that fails."""
    short, longer, empty = tokenizer.encode_batch_fast(["a", "b c d", ""], add_special_tokens=False)
    short.truncate(1)
    found = tokenizer.post_process(short, short, True)
    texts = [i for i, is_special in enumerate(found.special_tokens_mask) if not is_special]
    if len(texts) != 2:
        return None
    first, second = texts
    ids, type_ids = found.ids, found.type_ids
    frame = _Frame(
        before=Encoded(ids[:first], type_ids[:first]),
        between=Encoded(ids[first + 1 : second], type_ids[first + 1 : second]),
        after=Encoded(ids[second + 1 :], type_ids[second + 1 :]),
        segments=(type_ids[first], type_ids[second]),
    )
    for premise, hypothesis in ((longer, short), (short, longer), (empty, longer), (longer, empty)):
        joined = tokenizer.post_process(premise, hypothesis, True)
        if frame.around(premise.ids, hypothesis.ids) != Encoded(joined.ids, joined.type_ids):
            return None
    return frame


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
