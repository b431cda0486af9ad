"""How gunicorn's threads are kept from waiting for ever for clients that send half a request, or do
not take their answer.

Its `timeout` watches processes, not clients. A proxy that buffers requests, as nginx does, should
stand in front all the same: until the time is up, a slow client holds a thread.
"""

import contextlib
import errno
import fcntl
import socket
import struct
import sys
import termios
import time
from typing import Any

from django.conf import settings
from gunicorn import util
from gunicorn.http import RequestParser
from gunicorn.http.errors import NoMoreData
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

# A client this fast may take as long as its body, or its answer, is large.
BYTES_PER_SECOND = 16 * 1024
NOTICEABLE_S = 0.05


class TooSlow(NoMoreData):
    """The client did not send its request in time. To Django an OSError, as a lost client is."""

    def __str__(self) -> str:
        return "the client took too long to send its request"


class Worker(ThreadWorker):
    """gunicorn's threads, which wait LYRA_READ_TIMEOUT_S for a request, and as long again for the
    client to take its answer."""

    def handle(self, conn: TConn) -> Any:
        """Answer one request; called for each, also of a connection that was used before."""
        if conn.parser is None:
            patience = settings.LYRA_READ_TIMEOUT_S
            conn.sock = PatientSocket.taking_over(conn.sock, patience)
            conn.parser = RequestParser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader = PatientUnreader(conn.sock, patience)
        conn.parser.unreader.expect_request()
        conn.sock.expect_answer()
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


class _Patience:
    """How long one waits yet for a client that takes or sends; it has more for every byte.

    The kernel ends the waiting (SO_RCVTIMEO, SO_SNDTIMEO): a timeout of Python's would give the
    interpreter to other threads twice more for every piece.
    """

    def __init__(self, sock: socket.socket, option: int, seconds: float) -> None:
        self._sock, self._option, self._whole = sock, option, seconds
        self._left = self._limit = seconds
        self._tell_the_kernel()

    def renew(self) -> None:
        self._left = self._whole

    def limit(self) -> None:
        """Of the next call, which then waits no longer than is left."""
        if self._limit - self._left > NOTICEABLE_S or self._left > self._limit:
            self._limit = self._left
            self._tell_the_kernel()

    def is_over(self, waited: float, count: int) -> bool:
        """After so many seconds in which `count` bytes went through."""
        self._left = min(self._left - waited + count / BYTES_PER_SECOND, self._whole)
        return self._left <= 0

    def _tell_the_kernel(self) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, self._option, _timeval(self._limit))


class PatientSocket(socket.socket):
    """Cuts off a client that takes what it is sent too slowly, however many pieces it is sent in.

    What counts is what the client's side has acknowledged: the kernel takes from us by the megabyte
    and asks for more when a third of it is through.
    """

    _patience: _Patience
    _waited = 0.0  # and not counted yet
    _handed_over = _taken = 0  # bytes, to the kernel and by the client

    @classmethod
    def taking_over(cls, sock: socket.socket, patience: float) -> "PatientSocket":
        """`sock`, which is of no use thereafter."""
        own = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        own._patience = _Patience(own, socket.SO_SNDTIMEO, patience)
        return own

    def expect_answer(self) -> None:
        self._patience.renew()
        self._waited = 0.0

    def sendall(self, data: bytes, flags: int = 0) -> None:  # type: ignore[override]
        """Raises BrokenPipeError, as for a client that is gone."""
        rest = memoryview(data)
        while rest:
            self._patience.limit()
            began = time.monotonic()
            try:
                count = self.send(rest, flags)
            except BlockingIOError:
                if self.gettimeout() == 0:  # gunicorn's, for an error that it tells on its way out
                    raise
                count = 0
            rest = rest[count:]
            self._handed_over += count
            self._waited += time.monotonic() - began
            if self._waited > NOTICEABLE_S:
                self._count()

    def _count(self) -> None:
        waited, self._waited = self._waited, 0.0
        waiting = fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, bytes(4))
        taken = self._handed_over - int.from_bytes(waiting, sys.byteorder)
        count, self._taken = taken - self._taken, taken
        if self._patience.is_over(waited, count):
            # Closed with nothing kept for it: not even the kernel waits for it any more.
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
            self.shutdown(socket.SHUT_RDWR)
            raise BrokenPipeError(errno.EPIPE, "the client took too long to take its answer")


class PatientUnreader(SocketUnreader):
    """Counts only the time spent waiting for the client, not what is done with what it sent."""

    def __init__(self, sock: socket.socket, patience: float) -> None:
        super().__init__(sock)
        self._patience = _Patience(sock, socket.SO_RCVTIMEO, patience)

    def expect_request(self) -> None:
        self._patience.renew()

    def chunk(self, size_hint: int | None = None) -> bytes:
        self._patience.limit()
        began = time.monotonic()
        try:
            data: bytes = super().chunk(size_hint)
            in_vain = False
        except BlockingIOError:
            data, in_vain = b"", True
        if self._patience.is_over(time.monotonic() - began, len(data)) or in_vain:
            self.sock.shutdown(socket.SHUT_RD)  # nothing more is expected
            raise TooSlow
        return data


def _timeval(seconds: float) -> bytes:
    """C's struct timeval; zero would mean no limit."""
    microseconds = max(1, round(seconds * 1_000_000))
    return struct.pack("@ll", *divmod(microseconds, 1_000_000))
