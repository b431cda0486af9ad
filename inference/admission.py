"""Who is let in: requests for predictions that come when too many are being worked on are refused.

At the door, before anything is read or asked of the database: refusing must cost next to nothing
when there is too much to do. Whoever waits in the model holds a thread; some threads stay free, or
nobody would be left to refuse.
"""

import functools
import threading
from collections.abc import Callable
from http import HTTPStatus

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse

from inference import monitoring

PATHS = frozenset({"/api/v1/nli", "/nli", "/ml/nli", "/embed", "/ml/embed"})
RETRY_AFTER_S = 1


class Admission:
    """503 with Retry-After beyond LYRA_THREADS less LYRA_SPARE_THREADS predictions at once."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path not in PATHS:
            return self.get_response(request)
        if not seats().acquire(blocking=False):
            monitoring.REFUSED.labels("overloaded").inc()
            return JsonResponse(
                {"detail": "Too many predictions are being worked on; try again in a moment."},
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        try:
            return self.get_response(request)
        finally:
            seats().release()


@functools.cache
def seats() -> threading.BoundedSemaphore:
    """One for each prediction that this process works on at once."""
    return threading.BoundedSemaphore(settings.LYRA_THREADS - settings.LYRA_SPARE_THREADS)
