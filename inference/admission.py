"""Who is let in: requests for predictions that come when too many are being worked on are refused.

At the door, before Django makes a request of it: refusing must cost next to nothing when there is
too much to do. Whoever waits in the model holds a thread; some threads stay free, or nobody would
be left to refuse.
"""

import functools
import json
import threading
from collections.abc import Iterable
from http import HTTPStatus
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from django.conf import settings

from inference import monitoring

PATHS = frozenset({"/api/v1/nli", "/nli", "/ml/nli", "/embed", "/ml/embed"})
RETRY_AFTER_S = 1
REFUSAL = json.dumps(
    {"detail": "Too many predictions are being worked on; try again in a moment."}
).encode()


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


def _refused(start_response: StartResponse) -> Iterable[bytes]:
    monitoring.REFUSED.labels("overloaded").inc()
    status = HTTPStatus.SERVICE_UNAVAILABLE
    start_response(
        f"{status.value} {status.phrase}",
        [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(REFUSAL))),
            ("Retry-After", str(RETRY_AFTER_S)),
            ("X-Content-Type-Options", "nosniff"),
        ],
    )
    return [REFUSAL]
