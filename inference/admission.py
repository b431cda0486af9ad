"""Who is let in: requests for predictions that come when too many are being worked on are refused.

At the door, before Django makes a request of it: refusing must cost next to nothing when there is
too much to do. Whoever waits in the model holds a thread; some threads stay free, or nobody would
be left to refuse. A seat is for a request that is there as a whole: clients that send slowly, or
stop halfway, keep none from others.
"""

import functools
import io
import json
import threading
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from django.conf import settings

from inference import monitoring

PATHS = frozenset({"/api/v1/nli", "/nli", "/ml/nli", "/embed", "/ml/embed"})
RETRY_AFTER_S = 1
REFUSAL = json.dumps(
    {"detail": "Too many predictions are being worked on; try again in a moment."}
).encode()
TOO_SLOW = json.dumps({"detail": "The request took too long to arrive."}).encode()
DIGITS = 19  # of a length that is worth reading as a number


class Admission:
    """503 with Retry-After beyond LYRA_THREADS less LYRA_SPARE_THREADS predictions at once.

    WSGI middleware around all of Django: a refusal by Django's own middleware costs three times as
    much, most of it for an HttpRequest that nobody reads.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") not in PATHS:
            return self._application(environ, start_response)
        if not _is_seat_free():  # then nothing is read
            return _refused(start_response)
        try:
            environ["wsgi.input"] = _whole_body(environ)
        except OSError:  # too slow, or gone
            return tell(start_response, HTTPStatus.REQUEST_TIMEOUT, TOO_SLOW)
        if not seats().acquire(blocking=False):
            return _refused(start_response)
        try:
            return self._application(environ, start_response)
        finally:
            seats().release()


@functools.cache
def seats() -> threading.BoundedSemaphore:
    """One for each prediction that this process works on at once."""
    return threading.BoundedSemaphore(settings.LYRA_THREADS - settings.LYRA_SPARE_THREADS)


def _is_seat_free() -> bool:
    if free := seats().acquire(blocking=False):
        seats().release()
    return free


def _whole_body(environ: WSGIEnvironment) -> Any:
    """The request's body, read; what Django refuses unread, for its length or for having none,
    stays unread. Raises OSError."""
    length = environ.get("CONTENT_LENGTH") or ""
    if not length.isdecimal() or len(length) > DIGITS or int(length) > settings.LYRA_MAX_BODY_BYTES:
        return environ["wsgi.input"]
    return io.BytesIO(environ["wsgi.input"].read(int(length)))


def _refused(start_response: StartResponse) -> Iterable[bytes]:
    monitoring.REFUSED.labels("overloaded").inc()
    wait = ("Retry-After", str(RETRY_AFTER_S))
    return tell(start_response, HTTPStatus.SERVICE_UNAVAILABLE, REFUSAL, wait)


def tell(
    start_response: StartResponse, status: HTTPStatus, body: bytes, *headers: tuple[str, str]
) -> Iterable[bytes]:
    """An answer of JSON that no view makes."""
    start_response(
        f"{status.value} {status.phrase}",
        [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Content-Type-Options", "nosniff"),
            *headers,
        ],
    )
    return [body]
