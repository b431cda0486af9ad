"""The rival of swapping.py: adapters loaded into one model and switched by PEFT itself."""

import time
from multiprocessing.connection import Connection

import torch
from peft import PeftModel

from adapters_app.nli.base_model import Base, load_base
from adapters_app.nli.data import collate
from adapters_app.nli.encoding import Pair
from benchmarks.swapping import LOAD, STEADY, PeftSwap, Swap


class PeftServer:
    """One model with at most `resident` adapters; the one that was used longest ago goes."""

    def __init__(self, base: Base, directory: str, resident: int) -> None:
        self._base = base
        self._model = PeftModel.from_pretrained(
            base.own_copy(), directory, adapter_name=_name(directory)
        ).eval()
        self._used = [_name(directory)]
        self._resident = resident

    def swap(self, asked: PeftSwap) -> Swap:
        """Answer with what is active, then with another adapter, then with that again."""
        name = _name(asked.directory)
        resident = name in self._used
        if asked.how != LOAD and not resident:
            self._load(asked.directory)
        before = [self._timed(asked.pair) for _ in range(STEADY)]
        began = time.perf_counter()
        if asked.how == LOAD:
            self._load(asked.directory)
        self._model.set_adapter(name)
        self._answer(asked.pair)
        first = time.perf_counter() - began
        after = [self._timed(asked.pair) for _ in range(STEADY)]
        self._forget(name)
        return Swap(first, [*before[1:], *after], resident)

    def _load(self, directory: str) -> None:
        self._model.load_adapter(directory, adapter_name=_name(directory))

    def _forget(self, active: str) -> None:
        self._used = [*(name for name in self._used if name != active), active]
        while len(self._used) > self._resident:
            self._model.delete_adapter(self._used.pop(0))

    def _timed(self, pair: Pair) -> float:
        began = time.perf_counter()
        self._answer(pair)
        return time.perf_counter() - began

    @torch.inference_mode()
    def _answer(self, pair: Pair) -> list[float]:
        base = self._base
        rows = base.encoder.encode([pair])
        batch = collate(rows, pad_id=base.pad_id, type_ids=base.uses_type_ids)
        probabilities: list[float] = self._model(**batch).logits.softmax(-1)[0].tolist()
        return probabilities


def serve_peft(pipe: Connection, base: str, directory: str, resident: int) -> None:
    """Swap as asked until the parent is done; says first what answers."""
    server = PeftServer(load_base(base), directory, resident)
    pipe.send("PEFT")
    while (asked := pipe.recv()) is not None:
        pipe.send(server.swap(asked))


def _name(directory: str) -> str:
    return directory.rpartition("/")[2]
