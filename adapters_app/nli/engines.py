"""What an engine is: it answers pairs for a base and any of its adapters, mixed in one call."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from adapters_app.nli.artifact import Adaptable, Artifact
from adapters_app.nli.encoding import Item, Pair


class Unsupported(ValueError):
    """An engine does not know such a base or adapter; another can answer."""


class Predictor(Protocol):
    """The base, or one adapter of it, as an engine holds it; immutable, safe in several threads."""

    @property
    def resident_bytes(self) -> int:
        """Memory held beyond the base's."""

    def logits(
        self, items: Sequence[Item], *, on_batch: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Raw scores, (n, 3) float32, columns in the order of LABELS, rows in the order given."""


Row = tuple[Predictor, Item]


class Engine(Protocol):
    """A loaded base. `name` says what computes, in words for people: "openvino bf16"."""

    @property
    def name(self) -> str: ...

    @property
    def base(self) -> Adaptable: ...

    def predictor(self, artifact: Artifact | None = None) -> Predictor:
        """The base, or an adapter that was read for this base, ready to answer."""

    def encode(self, pairs: Sequence[Pair]) -> Sequence[Item]:
        """What rows may have instead of pairs: whoever asks has this done while another pass is
        computed, and theirs has less to do."""

    def logits(
        self, rows: Sequence[Row], *, on_batch: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Raw scores of rows for any mix of this engine's predictors, (n, 3) float32."""

    @property
    def at_once(self) -> int:
        """How many calls of `begin` it computes abreast."""

    def begin(self, rows: Sequence[Row], /, *, abreast: bool = False) -> Callable[[], np.ndarray]:
        """Start on rows, where the engine can be left alone with them; what is returned waits for
        their `logits`. `abreast`: they get a share of the processors, others run beside them."""
