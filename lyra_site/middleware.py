"""What every request meets first in Django: its size, and what may be away or full."""

import time
from collections.abc import Callable
from http import HTTPStatus

from django.conf import settings
from django.http import HttpRequest, HttpResponse, UnreadablePostError

from inference import imports
from lyra_site.errors import is_machine_path, refusal, too_large, unavailable

Respond = Callable[[HttpRequest], HttpResponse]
FORM = "multipart/form-data"
PIECE = 64 * 1024  # bytes read at a time of what nobody wants
FORM_BYTES = 16 * 1024  # that a form may add to its file: the file's name, choices, boundaries


class RequestLimits:
    """413 for bodies over LYRA_MAX_BODY_BYTES, or files over LYRA_MAX_IMPORT_BYTES to be imported,
    411 for bodies of no stated length, 400 for a NUL in a cookie.

    DRF reads the request as a stream, past Django's own DATA_UPLOAD_MAX_MEMORY_SIZE, which does not
    count files either. A cookie may spell a NUL ("\\000"), and PostgreSQL refuses to look a session
    up by it.
    """

    def __init__(self, get_response: Respond) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if any("\0" in value for value in request.COOKIES.values()):
            return refusal(HTTPStatus.BAD_REQUEST, "A cookie holds a NUL.")
        if is_machine_path(request) and "Transfer-Encoding" in request.headers:
            # Django reads no further than Content-Length says: such a body would look empty.
            return refusal(HTTPStatus.LENGTH_REQUIRED, "Send Content-Length; chunks are not read.")
        limit = longest_body(request.path)
        if _content_length(request) > limit + _form_bytes(request):
            if request.path in imports.PATHS:
                _let_it_finish(request)
            return too_large(request, _content_length(request), limit)
        response = self.get_response(request)
        if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE and request.path in imports.PATHS:
            _let_it_finish(request)
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """A file that only the form around it made room for."""
        if not isinstance(exception, imports.TooLarge):
            return None
        return too_large(request, exception.size, longest_body(request.path), what="file")


class Unavailable:
    """503 with Retry-After where a view lost the database, or found the disk full; DRF views answer
    by `errors.handle`."""

    def __init__(self, get_response: Respond) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return unavailable(request, exception)


def longest_body(path: str) -> int:
    """Bytes that a request to this path may send, but for a form around a file."""
    takes_files = path in imports.PATHS
    return settings.LYRA_MAX_IMPORT_BYTES if takes_files else settings.LYRA_MAX_BODY_BYTES


def _form_bytes(request: HttpRequest) -> int:
    is_around_a_file = request.path in imports.PATHS and request.content_type == FORM
    return FORM_BYTES if is_around_a_file else 0


def _let_it_finish(request: HttpRequest) -> None:
    """Who is still sending when the connection is closed may never read why it was: what they send
    is thrown away, for as long as a request may take to arrive."""
    until = time.monotonic() + settings.LYRA_READ_TIMEOUT_S
    try:
        while time.monotonic() < until and request.read(PIECE):
            pass
    except UnreadablePostError:
        pass  # gone, or too slow


def _content_length(request: HttpRequest) -> int:
    text = request.META.get("CONTENT_LENGTH") or "0"
    return int(text) if text.isdecimal() and len(text) < 20 else 0
