"""How refusals look: JSON on the API, and 503 with Retry-After while the database is away."""

import logging
import sys
from http import HTTPStatus
from typing import Any

from django.core.exceptions import NON_FIELD_ERRORS
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views import defaults
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.response import Response
from rest_framework.views import exception_handler

logger = logging.getLogger(__name__)

# Gone, refusing connections, or locked for longer than the busy timeout.
DATABASE_AWAY = (OperationalError, InterfaceError)
RETRY_AFTER_S = 5
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


class DatabaseAway(APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_detail = "The database cannot be reached just now."
    default_code = "database_unavailable"
    wait = RETRY_AFTER_S  # becomes Retry-After


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: errors name the field, a lost database is 503."""
    if isinstance(error, DjangoValidationError):
        error = ValidationError(_by_field(error))
    elif isinstance(error, DATABASE_AWAY):
        logger.error("database unavailable: %s", error)
        error = DatabaseAway()
    return exception_handler(error, context)


def _by_field(error: DjangoValidationError) -> dict[str, list[str]]:
    if not hasattr(error, "error_dict"):
        return {"non_field_errors": error.messages}
    return {
        "non_field_errors" if field == NON_FIELD_ERRORS else field: messages
        for field, messages in error.message_dict.items()
    }


def database_away() -> HttpResponse:
    """503 for everything that is not a DRF view."""
    return refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        str(DatabaseAway.default_detail),
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def refusal(
    status: HTTPStatus, detail: str, *, headers: dict[str, str] | None = None
) -> HttpResponse:
    return JsonResponse({"detail": detail}, status=status, headers=headers)


def is_machine_path(request: HttpRequest) -> bool:
    return request.path.startswith(MACHINE_PATHS)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler404."""
    if is_machine_path(request):
        return refusal(HTTPStatus.NOT_FOUND, "Not found.")
    return defaults.page_not_found(request, exception)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler400: e.g. a Host header that is not ours."""
    if is_machine_path(request):
        return refusal(HTTPStatus.BAD_REQUEST, "Bad request.")
    return defaults.bad_request(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """handler500. A database lost inside another middleware (sessions, sign-in) ends up here and
    nowhere else: Django turns it into a response before an outer middleware can see it."""
    if isinstance(sys.exception(), DATABASE_AWAY):
        return database_away()
    if is_machine_path(request):
        return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error.")
    return defaults.server_error(request)
