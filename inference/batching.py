"""Concurrent requests share one forward pass, and nobody waits for company.

Whoever finds the model idle runs it at once, on every core; requests that arrive meanwhile queue
and leave together in the next pass. Where many wait and the model can compute several passes
abreast, each on its share of the cores, they leave in as many: such passes end at different times,
and one computes while the answers of another are written. Who has led a pass to its end starts the
next one before anybody is told of the answers; one of those whose pairs are in it leads that on. A
large request goes in slices, by turns with the small ones that wait, and faster while none does.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np

Forward = Callable[[Sequence[Any]], np.ndarray]  # n items → n rows
Rows = Callable[[], np.ndarray]  # waits for them


class Begin(Protocol):
    """Starts on n items and returns what waits for their rows."""

    def __call__(self, items: Sequence[Any], /, *, abreast: bool = False) -> Rows:
        """`abreast`: on a share of the cores, beside other passes."""


# What a forward pass is known to raise: torch (also out of memory), tokenizers, odd input, kernels
# that are loaded from disk at their first use.
PASS_ERRORS = (RuntimeError, ValueError, TypeError, MemoryError, OSError)


# A request of more items than WHOLE goes in slices of SLICE: a single pair waits for no more. While
# nobody comes in between they grow, from the third on twice as long each time.
WHOLE, SLICE = 64, 4
MANY = 8  # waiting items that leave in passes abreast


class Overloaded(RuntimeError):
    """More waits than the process will hold; come back later."""


class ForwardFailed(RuntimeError):
    """The model raised on this request alone; other requests of its pass were answered."""


@dataclass(frozen=True)
class AtOnce:
    """A forward that cannot be started and left alone: it computes when it is waited for."""

    forward: Forward

    def __call__(self, items: Sequence[Any], /, *, abreast: bool = False) -> Rows:
        return lambda: self.forward(items)


@dataclass(eq=False)
class _Job:
    """A request; `rows` are those of its items that were answered, in order."""

    begin: Begin
    items: Sequence[Any]
    rows: list[np.ndarray] = field(default_factory=list)
    begun: bool = False
    in_a_row: int = 0  # slices of it that nobody came in between of
    error: str = ""
    # A pass that is its thread's to lead on, or None once all is answered.
    mail: "SimpleQueue[_Pass | None]" = field(default_factory=SimpleQueue)

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
    def large(self) -> bool:
        return len(self.items) > WHOLE

    @property
    def slice(self) -> int:
        """How many of its items may go next."""
        return SLICE << max(0, self.in_a_row - 1)


@dataclass(eq=False)
class _Part:
    """What a pass holds of a job."""

    job: _Job
    items: Sequence[Any]
    answered: bool = False

    def answer(self, rows: np.ndarray) -> None:
        self.job.rows.append(rows)
        self.answered = True


@dataclass(eq=False)
class _Pass:
    """Parts that are answered together; of jobs that want the same model."""

    parts: Sequence[_Part]
    abreast: bool
    _rows: Rows | None = None

    @property
    def leader(self) -> _Job:
        """Whose thread leads it."""
        return self.parts[0].job

    @property
    def items(self) -> list[Any]:
        return [item for part in self.parts for item in part.items]

    def start(self) -> None:
        """Have the model begin. What goes wrong does so again in `finish`, for whom it concerns."""
        with suppress(BaseException):  # a panic of the tokenizer's is no Exception
            self._rows = self._begin()

    def finish(self) -> None:
        """Answer every part; if the pass fails, each by itself."""
        try:
            rows = (self._rows or self._begin())()
        except PASS_ERRORS as error:
            if len(self.parts) == 1:
                self.parts[0].job.error = f"The model failed on this request: {error}"
                return
            for part in self.parts:
                _Pass([part], self.abreast).finish()
            return
        start = 0
        for part in self.parts:
            part.answer(rows[start : start + len(part.items)])
            start += len(part.items)

    def _begin(self) -> Rows:
        return self.leader.begin(self.items, abreast=self.abreast)

    def give_up(self) -> None:
        """Whatever cut it short, nobody waits for it for ever."""
        for part in self.parts:
            if not part.answered and not part.job.error:
                part.job.error = "The pass was interrupted."


class Batcher:
    """Merges concurrent requests for the same model.

    `max_pairs` bounds one pass, `max_waiting` the queue; `at_once` is how many passes the model
    computes abreast; `unit` is what refusals call pairs; `on_pass` is told the number of pairs of
    every pass. A request of up to WHOLE items goes whole, even if alone it is more than
    `max_pairs`.
    """

    def __init__(
        self,
        *,
        max_pairs: int,
        max_waiting: int,
        at_once: int = 1,
        unit: str = "pairs",
        on_pass: Callable[[int], None] | None = None,
    ) -> None:
        self._max_pairs = max_pairs
        self._max_waiting = max_waiting
        self._at_once = at_once
        self._unit = unit
        self._on_pass = on_pass
        self._lock = threading.Lock()
        self._queue: deque[_Job] = deque()  # of whom nothing is in a pass
        self._passes = 0  # under way
        self._items = 0  # in them
        self._abreast = False  # they leave cores to others
        self._sliced = False  # the last pass was of a large request

    def run(self, begin: Begin, items: Sequence[Any]) -> np.ndarray:
        """The rows of `items`, perhaps of one pass with the items of others for an equal `begin`.

        Raises:
            Overloaded: too much is waiting already.
            ForwardFailed: the model raised on these items.
        """
        if not len(items):
            return begin(items)()
        job = _Job(begin, items)
        with self._lock:
            # Of a request that was begun, what is left does not wait: it was let in whole.
            waiting = sum(len(other.items) for other in self._queue if not other.begun)
            if waiting and waiting + len(items) > self._max_waiting:
                raise Overloaded(
                    f"{waiting} {self._unit} are waiting already; try again in a moment."
                )
            self._queue.append(job)
            passes = self._next()
        leads = self._start(passes, own=job)
        while not job.done:
            leads = leads or job.mail.get()
            if leads is not None:
                leads = self._lead(leads, job)
        if job.error:
            raise ForwardFailed(job.error)
        return np.concatenate(job.rows) if len(job.rows) > 1 else job.rows[0]

    def _lead(self, current: _Pass, own: _Job) -> _Pass | None:
        """Lead a pass to its end and start the next; return that if it is `own`'s to lead, too."""
        try:
            current.finish()
        except BaseException:
            own.error = "The pass was interrupted."  # its thread leads no more
            raise
        finally:
            with self._lock:
                current.give_up()
                self._passes -= 1
                self._items -= len(current.items)
                self._queue.extend(part.job for part in current.parts if not part.job.done)
                passes = self._next()
            following = self._start(passes, own)
            for part in current.parts:
                if part.job.done and part.job is not own:
                    part.job.mail.put(None)
        return following

    def _start(self, passes: Sequence[_Pass], own: _Job) -> _Pass | None:
        """Start passes and have them led; the one that is `own`'s to lead, if any.

        Without the lock, which newcomers take: a slice of a large request is encoded here.
        """
        leads = None
        for each in passes:
            each.start()
            if each.leader is own:
                leads = each
            else:
                each.leader.mail.put(each)
        return leads

    def _next(self) -> list[_Pass]:
        """What may start now, taken from the queue and counted; the lock is held.

        One pass on all cores, or as many abreast as there is room for.
        """
        passes = self._taken()
        for each in passes:
            size = len(each.items)
            self._passes += 1
            self._items += size
            self._abreast = each.abreast
            if self._on_pass is not None:
                self._on_pass(size)
        return passes

    def _taken(self) -> list[_Pass]:
        if not self._queue or (self._passes and not self._abreast):
            return []
        most, room = self._max_pairs, self._at_once - self._passes
        small = [job.left for job in self._queue if not job.large]
        # Passes abreast are of one size: nobody is in a long one where the next would be short.
        share = -(-(sum(small) + self._items) // self._at_once)
        # A request that is more than a share has all cores: they would be idle beside it.
        few = self._at_once == 1 or sum(small) < MANY or max(small) > share
        if few and not self._passes:
            return [_Pass(self._take(most), abreast=False)]
        most = min(most, share)
        return [_Pass(self._take(most), abreast=True) for _ in range(room) if self._queue]

    def _take(self, most: int) -> list[_Part]:
        """Of a large job a slice; or the oldest small job and all others that fit beside it among
        `most` items.

        Where both wait they take turns. Jobs in a pass want the same model.
        """
        large = next((job for job in self._queue if job.large), None)
        small = [job for job in self._queue if not job.large]
        if large and not (small and self._sliced):
            alone = self._sliced and len(self._queue) == 1 and not self._passes
            large.in_a_row = large.in_a_row + 1 if alone else 0
            self._sliced = True
            return [self._part(large, min(large.left, large.slice, self._max_pairs))]
        self._sliced = False
        room = max(most, small[0].left)
        parts = []
        for job in small:
            if job.begin == small[0].begin and job.left <= room:
                room -= job.left
                parts.append(self._part(job, job.left))
        return parts

    def _part(self, job: _Job, size: int) -> _Part:
        """The next items of a job; what remains of it queues again when they are answered."""
        job.begun = True
        self._queue.remove(job)
        return _Part(job, job.items[job.answered : job.answered + size])
