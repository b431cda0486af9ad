"""BentoML with adaptive batching: `bentoml serve benchmarks.peers.with_bentoml:Nli`."""

import bentoml
import numpy as np

from benchmarks.peers import model


@bentoml.service(workers=1)
class Nli:
    def __init__(self) -> None:
        self._confidences = model.load()

    # Its dispatcher learns by itself how long to wait; the bound is in pairs.
    @bentoml.api(batchable=True, max_batch_size=256)
    def classify(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        return self._confidences(pairs)
