"""LitServe with batching: `python -m benchmarks.peers.with_litserve PORT`."""

import sys
from typing import Any

import litserve
import numpy as np

from adapters_app.nli.encoding import Pair
from benchmarks.peers import model


class Nli(litserve.LitAPI):
    """A batch is a list of requests, each with any number of pairs."""

    def setup(self, device: str) -> None:
        self._confidences = model.load()

    def decode_request(self, request: dict[str, Any]) -> list[Pair]:
        return [(premise, hypothesis) for premise, hypothesis in request["pairs"]]

    def batch(self, inputs: list[list[Pair]]) -> list[list[Pair]]:
        return inputs

    def predict(self, x: list[list[Pair]]) -> list[np.ndarray]:
        ends = np.cumsum([len(pairs) for pairs in x])
        return np.split(self._confidences([pair for pairs in x for pair in pairs]), ends[:-1])

    def unbatch(self, output: list[np.ndarray]) -> list[np.ndarray]:
        return output

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return {"confidences": output.tolist()}


if __name__ == "__main__":
    api = Nli(max_batch_size=model.MAX_BATCH, batch_timeout=model.MAX_WAIT_S)
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
