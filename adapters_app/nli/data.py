"""NLI pairs as training sees them: examples, and length-bucketed batches of tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from adapters_app.nli.encoding import Encoded, Pair, padded
from corrections.labels import Label


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


def collate(
    rows: Sequence[Encoded], *, pad_id: int, type_ids: bool, multiple: int = 1
) -> dict[str, torch.Tensor]:
    """Pad rows to the longest of them, rounded up to `multiple`.

    (n, length) int64 tensors a transformers model accepts.
    """
    arrays = padded(rows, pad_id=pad_id, multiple=multiple)
    if not type_ids:
        del arrays["token_type_ids"]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


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
