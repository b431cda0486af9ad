"""What every request meets first: its size and encoding, and a database that may be away."""

import codecs
from collections.abc import Callable
from http import HTTPStatus

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from lyra_site.errors import DATABASE_AWAY, database_away, is_machine_path, refusal

Respond = Callable[[HttpRequest], HttpResponse]
ENCODINGS = {"utf-8", "ascii", "iso8859-1"}


class RequestLimits:
    """413 for API bodies over LYRA_MAX_BODY_BYTES, 411 for bodies of no stated length, 415 for
    declared encodings that are not text, 400 for a NUL in a cookie.

    DRF reads the request as a stream, past Django's own DATA_UPLOAD_MAX_MEMORY_SIZE; and Django
    decodes query strings by whatever codec the Content-Type names, rot13 included. A cookie may
    spell a NUL ("\\000"), and PostgreSQL refuses to look a session up by it.
    """

    def __init__(self, get_response: Respond) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        charset = (request.content_params or {}).get("charset", "utf-8")
        if not _is_text_encoding(charset):
            return refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send UTF-8.")
        if any("\0" in value for value in request.COOKIES.values()):
            return refusal(HTTPStatus.BAD_REQUEST, "A cookie holds a NUL.")
        if is_machine_path(request) and "Transfer-Encoding" in request.headers:
            # Django reads no further than Content-Length says: such a body would look empty.
            return refusal(HTTPStatus.LENGTH_REQUIRED, "Send Content-Length; chunks are not read.")
        limit = settings.LYRA_MAX_BODY_BYTES
        if is_machine_path(request) and _content_length(request) > limit:
            return refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The body is {_content_length(request)} bytes; at most {limit} are accepted.",
            )
        return self.get_response(request)


class DatabaseUnavailable:
    """503 with Retry-After where a view lost the database; DRF views answer by `errors.handle`."""

    def __init__(self, get_response: Respond) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return database_away(request) if isinstance(exception, DATABASE_AWAY) else None


def _is_text_encoding(name: str) -> bool:
    try:
        return codecs.lookup(name).name in ENCODINGS
    except (LookupError, ValueError):
        return False


def _content_length(request: HttpRequest) -> int:
    text = request.META.get("CONTENT_LENGTH") or "0"
    return int(text) if text.isdecimal() and len(text) < 20 else 0
