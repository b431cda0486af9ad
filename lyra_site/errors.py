"""How refusals look: JSON on the API, pages for people, and 503 with Retry-After while the database
is away or read-only, or the disk is full."""

import logging
import sys
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.core.exceptions import NON_FIELD_ERRORS
from django.core.exceptions import ValidationError as DjangoValidationError
from django.http import HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils.log import log_response
from django.views import defaults
from django.views.decorators.csrf import requires_csrf_token
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.response import Response
from rest_framework.views import exception_handler

from corrections import database_away, full_disk

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5
MAKE_ROOM_S = 60  # before it is worth to try again whether somebody has
OVERLOADED = "overloaded"  # the code of what inference refuses while too much waits
MACHINE_PATHS = (
    "/api/",
    "/ml/",
    "/nli",
    "/embed",
    "/warmup",
    "/health",
    "/livez",
    "/readyz",
    "/metrics",
)


class RequestCutOff(APIException):
    status_code = HTTPStatus.REQUEST_TIMEOUT
    default_detail = "The request did not arrive as a whole."
    default_code = "request_cut_off"


class DatabaseAway(APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_detail = "The database cannot be reached just now."
    default_code = "database_unavailable"
    wait = RETRY_AFTER_S  # becomes Retry-After


class DatabaseReadOnly(DatabaseAway):
    default_detail = "The database is read-only just now: nothing can be saved."
    default_code = "database_read_only"


class DiskFull(APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_detail = full_disk.REFUSAL
    default_code = "disk_full"
    wait = MAKE_ROOM_S


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: errors name the field, a lost database and a full disk are 503, and
    a queue that is full is no error of the server's, which Django would log for every 503."""
    if isinstance(error, DjangoValidationError):
        error = ValidationError(_by_field(error))
    elif not isinstance(error, APIException) and (passing := _passing(error)):
        error = passing
    elif isinstance(error, UnreadablePostError):  # the client was too slow, or is gone
        error = RequestCutOff()
    response = exception_handler(error, context)
    if response and isinstance(error, APIException) and error.get_codes() == OVERLOADED:
        log_response("%s", error, response=response, request=context["request"], level="debug")
    return response


def _by_field(error: DjangoValidationError) -> dict[str, list[str]]:
    if not hasattr(error, "error_dict"):
        return {"non_field_errors": error.messages}
    return {
        "non_field_errors" if field == NON_FIELD_ERRORS else field: messages
        for field, messages in error.message_dict.items()
    }


def unavailable(request: HttpRequest, error: BaseException | None) -> HttpResponse | None:
    """503 for everything that is not a DRF view; None where it is an error of another kind."""
    passing = _passing(error)
    if passing is None:
        return None
    status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(passing.wait)}
    if is_machine_path(request):
        return refusal(status, str(passing.detail), headers=headers)
    said = {
        "disk_is_full": isinstance(passing, DiskFull),
        "database_is_read_only": isinstance(passing, DatabaseReadOnly),
    }
    page = render_to_string("503.html", said)
    return HttpResponse(page, status=status, headers=headers)


def _passing(error: BaseException | None) -> DatabaseAway | DiskFull | None:
    """What somebody mends without touching this server; the error itself is for the log."""
    if full_disk.is_behind(error):
        logger.error("the disk is full: %s", error)
        return DiskFull()
    if database_away.is_read_only(error):
        logger.error("the database is read-only: %s", error)
        return DatabaseReadOnly()
    if database_away.is_behind(error):
        logger.error("database unavailable: %s", error)
        return DatabaseAway()
    return None


def refusal(
    status: HTTPStatus, detail: str, *, headers: dict[str, str] | None = None
) -> HttpResponse:
    return JsonResponse({"detail": detail}, status=status, headers=headers)


def too_large(request: HttpRequest, size: int, limit: int, *, what: str = "body") -> HttpResponse:
    """413: with what was sent, and how much may be."""
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if is_machine_path(request):
        return refusal(status, f"The {what} is {size} bytes; at most {limit} are accepted.")
    return HttpResponse(render_to_string("413.html", {"size": size, "limit": limit}), status=status)


def is_machine_path(request: HttpRequest) -> bool:
    return request.path.startswith(MACHINE_PATHS)


def too_many_sign_ins(
    request: HttpRequest, response: HttpResponse, credentials: dict[str, Any]
) -> HttpResponse:
    """AXES_LOCKOUT_CALLABLE: instead of the `response` of the page that a password was sent to."""
    wait: timedelta = settings.AXES_COOLOFF_TIME
    minutes = round(wait.total_seconds() / 60)
    page = _page(request, "429.html", HTTPStatus.TOO_MANY_REQUESTS, minutes=str(minutes))
    page.headers["Retry-After"] = str(60 * minutes)
    return page


@requires_csrf_token
def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler404."""
    if is_machine_path(request):
        return refusal(HTTPStatus.NOT_FOUND, "Not found.")
    return _page(request, "404.html", HTTPStatus.NOT_FOUND, reason=_reason(exception))


@requires_csrf_token
def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler403."""
    if is_machine_path(request):
        return refusal(HTTPStatus.FORBIDDEN, "You do not have permission to perform this action.")
    return _page(request, "403.html", HTTPStatus.FORBIDDEN, reason=_reason(exception))


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """CSRF_FAILURE_VIEW; `reason` is for the log, which Django has written it to."""
    if is_machine_path(request):
        return refusal(HTTPStatus.FORBIDDEN, "CSRF verification failed.")
    return _page(request, "403_csrf.html", HTTPStatus.FORBIDDEN)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler400: e.g. a Host header that is not ours."""
    if is_machine_path(request):
        return refusal(HTTPStatus.BAD_REQUEST, "Bad request.")
    return defaults.bad_request(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """handler500. A database lost inside another middleware (sessions, sign-in) ends up here and
    nowhere else: Django turns it into a response before an outer middleware can see it."""
    if answer := unavailable(request, sys.exception()):
        return answer
    if is_machine_path(request):
        return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error.")
    return defaults.server_error(request)


def _page(request: HttpRequest, template: str, status: HTTPStatus, **more: str) -> HttpResponse:
    """Of the admin's context no more than its header needs: strangers cost no query."""
    site = admin.site
    context = {
        "site_header": site.site_header,
        "site_title": site.site_title,
        "has_permission": site.has_permission(request),
        # What is told the person is for the page they go on to, not for an image that is missing.
        "messages": (),
        **more,
    }
    return render(request, template, context, status=status)


def _reason(exception: Exception) -> str:
    """What a view said of it. What Django says is for programmers: the resolver's list of patterns,
    and get_object_or_404's name of a class."""
    said = exception.args[0] if exception.args else ""
    return said if isinstance(said, str) and not said.endswith("matches the given query.") else ""
