"""Load on an HTTP server and what its callers saw of it: closed loops, and arrivals at random.

It runs on the server's own processors, so it costs little (bodies are made beforehand, answers are
not parsed, a caller keeps its connection) and says what it cost. Call it in a process of its own:
in the caller's, the two would share an interpreter.
"""

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import accumulate
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

TIMEOUT_S = 120.0
CONNECTIONS = 64  # of an open loop
NO_ANSWER = 0  # as a status: refused, cut off, or not within TIMEOUT_S
OK, INVALID, UNAVAILABLE = 200, 400, 503
SHOWN = ("pairs/s", "p50 ms", "p99 ms", "not 200", "client's processor")

Rounds = Sequence[Mapping[str, Any]]  # of each, what `summary` says


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"


class Answer(NamedTuple):
    status: int
    retry_after: str  # empty: the header was not there
    body: bytes


class Sample(NamedTuple):
    """One request as its caller saw it; in an open loop `ms` counts from when it was due."""

    status: int
    ms: float
    retry_after: str


@dataclass(frozen=True)
class Outcome:
    """What became of a load."""

    samples: list[Sample]
    seconds: float
    client_seconds: float  # processor time of the process that made the load


class Client:
    """A caller with a connection that it keeps."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.url)
        self._connection = HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._method, self._path = target.method, parts.path
        self._headers = {"Content-Type": "application/json", **target.headers}

    def sample(self, body: bytes, *, due: float | None = None) -> Sample:
        """Ask; whatever goes wrong on the way is NO_ANSWER."""
        began = time.perf_counter() if due is None else due
        try:
            status, retry_after, _ = self.ask(body)
        except (HTTPException, OSError):
            self.close()
            status, retry_after = NO_ANSWER, ""
        return Sample(status, 1000 * (time.perf_counter() - began), retry_after)

    def ask(self, body: bytes) -> Answer:
        """Raises HTTPException or OSError: there is no answer."""
        kept = self._connection.sock is not None
        try:
            return self._exchange(body)
        except ConnectionError:
            if not kept:
                raise
        # Servers close what was idle for a while, perhaps just now.
        self.close()
        return self._exchange(body)

    def close(self) -> None:
        self._connection.close()

    def _exchange(self, body: bytes) -> Answer:
        self._connection.request(self._method, self._path, body, self._headers)
        response = self._connection.getresponse()
        return Answer(response.status, response.getheader("Retry-After", ""), response.read())


def closed_loop(
    target: Target, bodies: Sequence[bytes], clients: int, *, patient: bool = False
) -> Outcome:
    """Each client sends the next of `bodies` when it has the answer to its last.

    A patient one that is told when to come back (Retry-After) waits for so long.
    """
    return _closed_loops(target, deque(bodies), clients, patient=patient)


def beside(
    target: Target, bodies: Sequence[bytes], large: Sequence[bytes]
) -> tuple[Outcome, Outcome]:
    """One client's `bodies` for as long as another one's `large` take; the outcomes of both."""
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        small = pool.submit(_closed_loops, target, deque(bodies), 1, stop=done)
        try:
            other = _closed_loops(target, deque(large), 1)
        finally:
            done.set()
        return small.result(), other


def open_loop(target: Target, bodies: Sequence[bytes], rate: float) -> Outcome:
    """Requests arrive at random (Poisson, `rate` a second), whether or not others are answered."""
    draw = random.Random(1)
    arrivals = accumulate(draw.expovariate(rate) for _ in bodies)
    own = threading.local()

    def connect() -> None:
        own.client = Client(target)

    def sample(body: bytes, due: float) -> Sample:
        taken: Sample = own.client.sample(body, due=due)
        return taken

    with ThreadPoolExecutor(CONNECTIONS, initializer=connect) as pool:
        began, cpu = time.perf_counter(), time.process_time()
        waiting = []
        for body, arrival in zip(bodies, arrivals, strict=True):
            due = began + arrival
            time.sleep(max(0.0, due - time.perf_counter()))
            waiting.append(pool.submit(sample, body, due))
        return _outcome([future.result() for future in waiting], began, cpu)


def summary(outcome: Outcome, pairs: int) -> dict[str, Any]:
    """Rate, latencies (of what was answered 200) and statuses of requests of `pairs` pairs each."""
    samples = outcome.samples
    answered = [sample.ms for sample in samples if sample.status == OK]
    refused = [sample for sample in samples if sample.status == UNAVAILABLE]
    found = {
        "pairs_per_s": pairs * len(answered) / outcome.seconds,
        "p50_ms": percentile(answered, 50),
        "p99_ms": percentile(answered, 99),
        "statuses": {str(k): n for k, n in sorted(Counter(s.status for s in samples).items())},
        "client_share": outcome.client_seconds / outcome.seconds,  # of one processor
    }
    if refused:
        found["refused_p99_ms"] = percentile([sample.ms for sample in refused], 99)
        found["retry_after"] = sum(bool(sample.retry_after) for sample in refused) / len(refused)
    return found


def percentile(values: Sequence[float], q: float) -> float:
    """NaN of nothing."""
    return float(np.percentile(values, q)) if values else float("nan")


def median(rounds: Rounds, figure: str) -> float:
    """Of one figure over the rounds; NaN if it is NaN in any."""
    return float(np.median([each[figure] for each in rounds]))


def shown(rounds: Rounds) -> list[str]:
    """The columns SHOWN: medians, and how many requests of all rounds were not answered 200."""
    failed = sum(
        n for each in rounds for status, n in each["statuses"].items() if status != str(OK)
    )
    medians = [f"{median(rounds, figure):.1f}" for figure in ("pairs_per_s", "p50_ms", "p99_ms")]
    return [*medians, str(failed), f"{median(rounds, 'client_share'):.0%}"]


def _closed_loops(
    target: Target,
    todo: deque[bytes],
    clients: int,
    *,
    patient: bool = False,
    stop: threading.Event | None = None,
) -> Outcome:
    with ThreadPoolExecutor(clients) as pool:
        began, cpu = time.perf_counter(), time.process_time()
        loops = [pool.submit(_drain, target, todo, patient, stop) for _ in range(clients)]
        return _outcome([sample for loop in loops for sample in loop.result()], began, cpu)


def _drain(
    target: Target, todo: deque[bytes], patient: bool, stop: threading.Event | None
) -> list[Sample]:
    client, samples = Client(target), []
    while not (stop and stop.is_set()):
        try:
            body = todo.popleft()
        except IndexError:
            break
        samples.append(client.sample(body))
        if patient and samples[-1].retry_after:
            time.sleep(float(samples[-1].retry_after))
    client.close()
    return samples


def _outcome(samples: list[Sample], began: float, cpu: float) -> Outcome:
    return Outcome(samples, time.perf_counter() - began, time.process_time() - cpu)
