"""Load of pairs that nobody has seen, on servers of `servers`, from a process of its own."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from adapters_app.nli.encoding import Pair
from benchmarks import load
from benchmarks.load import Outcome, Target
from benchmarks.servers import Server
from benchmarks.serving import Texts


class Traffic:
    """Makes requests, none with a pair of an earlier one, and has them sent."""

    def __init__(self, mix: str) -> None:
        self._mix, self._seed = mix, 0
        # Spawned: it has none of this process's threads.
        self._sender = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def __enter__(self) -> "Traffic":
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.shutdown()

    def requests(self, count: int, pairs: int) -> list[list[Pair]]:
        """`count` requests of `pairs` pairs each."""
        self._seed += 1
        texts = Texts(self._mix, self._seed).pairs(count * pairs)
        return [texts[start : start + pairs] for start in range(0, len(texts), pairs)]

    def bodies(self, server: Server, count: int, pairs: int = 1) -> list[bytes]:
        """As `requests`, in the words of `server`."""
        return [server.body(request) for request in self.requests(count, pairs)]

    def closed(
        self, target: Target, bodies: Sequence[bytes], clients: int, *, patient: bool = False
    ) -> Outcome:
        """See `load.closed_loop`."""
        send = self._sender.submit
        return send(load.closed_loop, target, bodies, clients, patient=patient).result()

    def at_random(self, target: Target, bodies: Sequence[bytes], rate: float) -> Outcome:
        """See `load.open_loop`."""
        return self._sender.submit(load.open_loop, target, bodies, rate).result()

    def beside(
        self, target: Target, bodies: Sequence[bytes], large: Sequence[bytes]
    ) -> tuple[Outcome, Outcome]:
        """See `load.beside`."""
        return self._sender.submit(load.beside, target, bodies, large).result()
