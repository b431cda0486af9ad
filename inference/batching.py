"""Concurrent requests share one forward pass, and nobody waits for company.

Whoever finds the model idle runs it at once; requests that arrive meanwhile queue and leave
together in the next pass. At most one pass runs at a time: torch already uses every core. A large
request goes in several passes, so that small ones wait for a slice of it, not for all.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Forward = Callable[[Sequence[Any]], np.ndarray]  # n items → n rows
# What a forward pass is known to raise: torch (also out of memory), tokenizers, odd input, kernels
# that are loaded from disk at their first use.
PASS_ERRORS = (RuntimeError, ValueError, TypeError, MemoryError, OSError)


# A request of more items than WHOLE goes in slices: of SLICE while others wait, so that a single
# pair waits for no more; while nobody does, of WHOLE and then twice as many each time: faster.
WHOLE, SLICE = 64, 8


class Overloaded(RuntimeError):
    """More waits than the process will hold; come back later."""


class ForwardFailed(RuntimeError):
    """The model raised on this request alone; other requests of its pass were answered."""


@dataclass(eq=False)
class _Job:
    """A request; `rows` are those of its items that were answered, in order."""

    forward: Forward
    items: Sequence[Any]
    rows: list[np.ndarray] = field(default_factory=list)
    begun: bool = False
    slice: int = WHOLE
    error: str = ""

    @property
    def answered(self) -> int:
        return sum(map(len, self.rows))

    @property
    def left(self) -> int:
        return len(self.items) - self.answered

    @property
    def done(self) -> bool:
        return not self.left or bool(self.error)

    @property
    def faster(self) -> int:
        """Its next slice while nobody else waits."""
        return 2 * self.slice if self.rows else WHOLE

    @property
    def wants(self) -> int:
        """Items that go into the next pass."""
        return min(self.left, self.slice) if len(self.items) > WHOLE else self.left


@dataclass(eq=False)
class _Part:
    """What a pass holds of a job."""

    job: _Job
    items: Sequence[Any]
    answered: bool = False

    def answer(self, rows: np.ndarray) -> None:
        self.job.rows.append(rows)
        self.answered = True


class Batcher:
    """Merges concurrent requests for the same model.

    `max_pairs` bounds one pass, `max_waiting` the queue; `unit` is what refusals call them;
    `seats`, which batchers may share, bounds requests in a pass or waiting, of whatever size.
    `on_pass` is told the number of pairs of every pass. A request of up to WHOLE items goes whole,
    even if alone it is more than `max_pairs`.
    """

    def __init__(
        self,
        *,
        max_pairs: int,
        max_waiting: int,
        unit: str = "pairs",
        seats: threading.Semaphore | None = None,
        on_pass: Callable[[int], None] | None = None,
    ) -> None:
        self._max_pairs = max_pairs
        self._max_waiting = max_waiting
        self._unit = unit
        self._seats = seats
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
        if not len(items):
            return forward(items)
        if self._seats is None:
            return self._run(forward, items)
        if not self._seats.acquire(blocking=False):
            raise Overloaded("Too many requests are being answered; try again in a moment.")
        try:
            return self._run(forward, items)
        finally:
            self._seats.release()

    def _run(self, forward: Forward, items: Sequence[Any]) -> np.ndarray:
        job = _Job(forward, items)
        with self._turn:
            # Of a request that was begun, what is left does not wait: it was let in whole.
            waiting = sum(len(other.items) for other in self._queue if not other.begun)
            if waiting and waiting + len(items) > self._max_waiting:
                raise Overloaded(
                    f"{waiting} {self._unit} are waiting already; try again in a moment."
                )
            self._queue.append(job)
        while not job.done:
            self._wait_or_run(job)
        if job.error:
            raise ForwardFailed(job.error)
        return np.concatenate(job.rows) if len(job.rows) > 1 else job.rows[0]

    def _wait_or_run(self, job: _Job) -> None:
        """Sleep until `job` is answered, or until it is this thread's turn to run a pass."""
        with self._turn:
            while self._running and not job.done:
                self._turn.wait()
            if job.done:
                return
            self._running = True
            parts = self._take()
        try:
            if self._on_pass is not None:
                self._on_pass(sum(len(part.items) for part in parts))
            _answer(parts)
        finally:
            with self._turn:
                self._running = False
                for part in parts:
                    # Whatever cut this pass short, nobody waits for it for ever.
                    if not part.answered and not part.job.error:
                        part.job.error = "The pass was interrupted."
                self._queue = deque(each for each in self._queue if not each.done)
                self._turn.notify_all()

    def _take(self) -> list[_Part]:
        """Of the oldest job what is its turn, and of all others what fits beside it.

        They must want the same model. What remains of a job goes to the end of the queue.
        """
        first = self._queue[0]
        alone = len(self._queue) == 1
        parts, room = [], max(self._max_pairs, first.wants)
        for job in [job for job in self._queue if job.forward == first.forward]:
            job.slice = min(job.faster, self._max_pairs) if alone else SLICE
            if job.wants > room:
                continue
            job.begun = True
            parts.append(_Part(job, job.items[job.answered : job.answered + job.wants]))
            room -= len(parts[-1].items)
            self._queue.remove(job)
            if len(parts[-1].items) < job.left:
                self._queue.append(job)
        return parts


def _answer(parts: Sequence[_Part]) -> None:
    """One forward pass for all parts; if it fails, each by itself."""
    try:
        rows = parts[0].job.forward([item for part in parts for item in part.items])
    except PASS_ERRORS as error:
        if len(parts) == 1:
            parts[0].job.error = f"The model failed on this request: {error}"
            return
        for part in parts:
            _answer([part])
        return
    start = 0
    for part in parts:
        part.answer(rows[start : start + len(part.items)])
        start += len(part.items)
