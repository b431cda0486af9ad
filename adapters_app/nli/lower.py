"""What the layers below an adapter make of pairs: it never changes, so it is computed once.

Every epoch of every fit of a run would ask the same frozen layers the same; for an adapter of the
upper half of an encoder that is about half of every forward pass.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from adapters_app.nli.base_model import Base
from adapters_app.nli.data import collate
from adapters_app.nli.encoding import Pair, PairEncoder, batches_by_length

BATCH = 32
# Above it the lower layers are computed in every step, as they would be without this module.
MOST_BYTES = 2**30


class Lower:
    """What layer `first` of a frozen model is given for each of some pairs, (tokens, hidden)."""

    def __init__(self, path: str, first: int, states: Mapping[Pair, torch.Tensor]) -> None:
        """`path`: name of the model's list of layers."""
        self._path = path
        self._first = first
        self._states = states

    @classmethod
    def of(
        cls,
        base: Base,
        frozen: nn.Module,
        pairs: Sequence[Pair],
        *,
        first: int,
        encoder: PairEncoder,
        autocast: Callable[[], torch.autocast],
        on_batch: Callable[[int], None] | None = None,
    ) -> "Lower | None":
        """Ask the layers of `frozen` below `first`, which is cut short for it, once.

        None where that takes too much memory, or a layer's output is not all the next one gets.
        """
        path = _path_of_layers(base)
        if not path:
            return None
        seen = _Seen(base)
        _replace(frozen, path, range(first, base.layers), seen)
        rows = encoder.encode(pairs)
        hidden = base.model.config.hidden_size
        if sum(map(len, rows)) * hidden * torch.finfo(torch.float32).bits // 8 > MOST_BYTES:
            return None
        states: dict[Pair, torch.Tensor] = {}
        for batch in batches_by_length([len(row) for row in rows], BATCH):
            inputs = collate(
                [rows[i] for i in batch], pad_id=base.pad_id, type_ids=base.uses_type_ids
            )
            with torch.no_grad(), autocast():
                frozen(**{key: value.to(base.device) for key, value in inputs.items()})
            for i, state in zip(batch, seen.states, strict=True):
                states[pairs[i]] = state[: len(rows[i])].clone()
            if on_batch is not None:
                on_batch(len(states))
        return cls(path, first, states)

    def state(self, pair: Pair) -> torch.Tensor:
        """(tokens, hidden)"""
        return self._states[pair]

    def stand_in(self, model: nn.Module, base: Base) -> "Given":
        """Put what is known in the place of the lower layers of `model`."""
        given = Given(base)
        _replace(model, self._path, range(self._first), given)
        return given


class _Passed(nn.Module):
    """In the place of a layer: hands on what it is given, in the form that layers do."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.base = base
        # DeBERTa's layers return their attention weights too, or nothing in their place.
        self._with_weights = base.model.config.model_type == "deberta-v2"

    def forward(self, states: torch.Tensor, *_: object, **__: object) -> object:
        return (states, None) if self._with_weights else states


class _Seen(_Passed):
    """Keeps what it is given."""

    states: torch.Tensor

    def forward(self, states: torch.Tensor, *_: object, **__: object) -> object:
        self.states = states
        return super().forward(states)


class Given(_Passed):
    """In the place of the lowest layer: gives the states of the batch that is set."""

    states: torch.Tensor

    def set(self, states: Sequence[torch.Tensor]) -> None:
        """The rows of the next forward pass, each (tokens, hidden)."""
        self.states = pad_sequence(list(states), batch_first=True)

    def forward(self, states: torch.Tensor, *_: object, **__: object) -> object:
        return super().forward(self.states)


def _replace(model: nn.Module, path: str, numbers: range, lowest: _Passed) -> None:
    """Put `lowest` in the place of the first of these layers; the others hand on what they get."""
    layers = model.get_submodule(path)
    for number in numbers:
        replacement = lowest if number == numbers.start else _Passed(lowest.base)
        layers.register_module(str(number), replacement)


def _path_of_layers(base: Base) -> str:
    """Name of the encoder's list of layers; empty where something else happens between two."""
    for name, module in base.model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == base.layers:
            encoder = base.model.get_submodule(name.rpartition(".")[0])
            return "" if getattr(encoder, "conv", None) is not None else name
    return ""
