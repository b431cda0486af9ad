"""Concurrent requests share one forward pass, and nobody waits for company.

Whoever finds the model idle runs it at once; requests that arrive meanwhile queue and leave
together in the next pass. At most one pass runs at a time: torch already uses every core.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Forward = Callable[[Sequence[Any]], np.ndarray]  # n items → n rows
# What a forward pass is known to raise: torch (also out of memory), tokenizers, odd input, kernels
# that are loaded from disk at their first use.
PASS_ERRORS = (RuntimeError, ValueError, TypeError, MemoryError, OSError)


class Overloaded(RuntimeError):
    """More waits than the process will hold; come back later."""


class ForwardFailed(RuntimeError):
    """The model raised on this request alone; other requests of its pass were answered."""


@dataclass(eq=False)
class _Job:
    forward: Forward
    items: Sequence[Any]
    rows: np.ndarray | None = None
    error: str = ""

    @property
    def done(self) -> bool:
        return self.rows is not None or bool(self.error)


class Batcher:
    """Merges concurrent requests for the same model.

    `max_pairs` bounds one pass (a larger request still goes, alone), `max_waiting` the queue;
    `unit` is what refusals call them; `on_pass` is told the number of pairs of every pass.
    """

    def __init__(
        self,
        *,
        max_pairs: int,
        max_waiting: int,
        unit: str = "pairs",
        on_pass: Callable[[int], None] | None = None,
    ) -> None:
        self._max_pairs = max_pairs
        self._max_waiting = max_waiting
        self._unit = unit
        self._on_pass = on_pass
        self._turn = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._running = False

    def run(self, forward: Forward, items: Sequence[Any]) -> np.ndarray:
        """`forward(items)`, perhaps in one call with the items of others for an equal `forward`.

        Raises:
            Overloaded: too much is waiting already.
            ForwardFailed: the model raised on these items.
        """
        job = _Job(forward, items)
        with self._turn:
            waiting = sum(len(other.items) for other in self._queue)
            if self._queue and waiting + len(items) > self._max_waiting:
                raise Overloaded(
                    f"{waiting} {self._unit} are waiting already; try again in a moment."
                )
            self._queue.append(job)
        while not job.done:
            self._wait_or_run(job)
        if job.rows is None:
            raise ForwardFailed(job.error)
        return job.rows

    def _wait_or_run(self, job: _Job) -> None:
        """Sleep until `job` is answered, or until it is this thread's turn to run a pass."""
        with self._turn:
            while self._running and not job.done:
                self._turn.wait()
            if job.done:
                return
            self._running = True
            batch = self._take()
        try:
            if self._on_pass is not None:
                self._on_pass(sum(len(each.items) for each in batch))
            _answer(batch)
        finally:
            with self._turn:
                self._running = False
                for each in batch:
                    if not each.done:  # whatever cut this pass short, nobody waits for it for ever
                        each.error = "The pass was interrupted."
                self._turn.notify_all()

    def _take(self) -> list[_Job]:
        """The oldest job and all that fit beside it and want the same model."""
        first = self._queue.popleft()
        batch, room = [first], self._max_pairs - len(first.items)
        for job in [job for job in self._queue if job.forward == first.forward]:
            if len(job.items) <= room:
                self._queue.remove(job)
                batch.append(job)
                room -= len(job.items)
        return batch


def _answer(batch: list[_Job]) -> None:
    """One forward pass for the whole batch; if it fails, each job by itself."""
    try:
        rows = batch[0].forward([item for job in batch for item in job.items])
    except PASS_ERRORS as error:
        if len(batch) == 1:
            batch[0].error = f"The model failed on this request: {error}"
            return
        for job in batch:
            _answer([job])
        return
    start = 0
    for job in batch:
        job.rows = rows[start : start + len(job.items)]
        start += len(job.items)
