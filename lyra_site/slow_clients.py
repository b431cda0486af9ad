"""How gunicorn's threads are kept from waiting for ever for clients that send half a request.

Its `timeout` watches processes, not clients. A proxy that buffers requests, as nginx does, should
stand in front all the same: until the time is up, a slow client holds a thread.
"""

import contextlib
import socket
import struct
import time
from typing import Any

from django.conf import settings
from gunicorn import util
from gunicorn.http import RequestParser
from gunicorn.http.errors import NoMoreData
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

# A client this fast may take as long as its body is large.
BYTES_PER_SECOND = 16 * 1024
NOTICEABLE_S = 0.05


class TooSlow(NoMoreData):
    """The client did not send its request in time. To Django an OSError, as a lost client is."""

    def __str__(self) -> str:
        return "the client took too long to send its request"


class Worker(ThreadWorker):
    """gunicorn's threads, which wait LYRA_READ_TIMEOUT_S for a request, and as long for a client
    that does not take its answer."""

    def handle(self, conn: TConn) -> Any:
        """Answer one request; called for each, also of a connection that was used before."""
        if conn.parser is None:
            conn.parser = RequestParser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader = PatientUnreader(conn.sock, settings.LYRA_READ_TIMEOUT_S)
        conn.parser.unreader.expect_request()
        again = super().handle(conn)
        if again is False:
            _part_from(conn.sock)
        return again


def _part_from(sock: socket.socket) -> None:
    """Wait here until the client has what it was sent, or a moment is over: gunicorn would do so in
    the one thread that takes new connections."""
    with contextlib.suppress(OSError):  # it is gone already
        util.close_graceful(sock.dup())
        sock.shutdown(socket.SHUT_RD)


class PatientUnreader(SocketUnreader):
    """Counts only the time spent waiting for the client, not what is done with what it sent.

    The kernel ends the waiting (SO_RCVTIMEO): a timeout of Python's would give the interpreter to
    other threads twice more for every piece read.
    """

    def __init__(self, sock: socket.socket, patience: float) -> None:
        super().__init__(sock)
        self._patience = self._left = self._limit = patience
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(patience))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(patience))

    def expect_request(self) -> None:
        self._left = self._patience

    def chunk(self, size_hint: int | None = None) -> bytes:
        if self._limit - self._left > NOTICEABLE_S or self._left > self._limit:
            self._limit = self._left
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(self._left))
        began = time.monotonic()
        try:
            data: bytes = super().chunk(size_hint)
        except BlockingIOError:
            self._left = 0
            data = b""
        waited = time.monotonic() - began
        self._left = min(self._left - waited + len(data) / BYTES_PER_SECOND, self._patience)
        if self._left <= 0:
            self.sock.shutdown(socket.SHUT_RD)  # nothing more is expected
            raise TooSlow
        return data


def _timeval(seconds: float) -> bytes:
    """C's struct timeval; zero would mean no limit."""
    microseconds = max(1, round(seconds * 1_000_000))
    return struct.pack("@ll", *divmod(microseconds, 1_000_000))
