"""What the peers serve: the engine, the model and the adapter of ours, without our server."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from adapters_app.nli import checkpoint, reference
from adapters_app.nli.encoding import Pair
from adapters_app.nli.openvino_engine import start
from benchmarks.serving import MODEL, REFERENCES, stored_adapter

HOME = "BENCHMARK_HOME"  # variable: the directory that `serving.prepare` filled
# Requests in a batch, where a peer wants a bound, and seconds that it waits for them.
MAX_BATCH, MAX_WAIT_S = 32, 0.005


def load() -> Callable[[Sequence[Pair]], np.ndarray]:
    """A function from n pairs to the n softmax values of their likeliest labels."""
    home = Path(os.environ[HOME])
    engine = start(str(home / MODEL), revision="", references=home / REFERENCES, ask=_refuse)
    predictor = engine.predictor(stored_adapter(home, 0, engine.base))

    def confidences(pairs: Sequence[Pair]) -> np.ndarray:
        logits = predictor.logits(pairs)
        top: np.ndarray = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
        return top

    return confidences


def _refuse(files: checkpoint.Files) -> tuple[reference.Reference, str]:
    raise SystemExit(f"no reference was stored for {files.name}")
