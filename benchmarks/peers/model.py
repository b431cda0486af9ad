"""What the peers serve: the model and the engine of ours, without our server around it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from adapters_app.nli import checkpoint, reference
from adapters_app.nli.encoding import Pair
from adapters_app.nli.openvino_engine import start

HOME = "BENCHMARK_HOME"  # variable: the directory of `model` and `references`
# Requests in a batch, where a peer wants a bound, and seconds that it waits for them.
MAX_BATCH, MAX_WAIT_S = 32, 0.005


def load() -> Callable[[Sequence[Pair]], np.ndarray]:
    """A function from n pairs to the n softmax values of their likeliest labels."""
    home = Path(os.environ[HOME])
    predictor = start(
        str(home / "model"), revision="", references=home / "references", ask=_refuse
    ).predictor()

    def confidences(pairs: Sequence[Pair]) -> np.ndarray:
        logits = predictor.logits(pairs)
        top: np.ndarray = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
        return top

    return confidences


def _refuse(files: checkpoint.Files) -> tuple[reference.Reference, str]:
    raise SystemExit(f"no reference was stored for {files.name}")
