"""Lists come in pages: ?page_size= (at most 200), and ?cursor= as `next` says."""

from typing import Any

from django.core import signing
from django.db.models import Model, Q
from rest_framework.exceptions import ValidationError
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.utils.urls import replace_query_param
from rest_framework.views import APIView


class Pages(BasePagination):
    """A page begins behind the last row of the one before it, wherever that stands by now: rows
    that leave the list while somebody walks it, because they are reviewed, move no other.

    DRF's CursorPagination knows a place by one column and counts rows that are equal in it, so
    that what is drawn by one request, at one moment, would be skipped.
    """

    cursor_query_param = "cursor"
    page_size_query_param = "page_size"
    max_page_size = 200

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        size, cursor = self._page_size(request), request.query_params.get(self.cursor_query_param)
        self._address = request.build_absolute_uri()
        self._count = queryset.count()
        if cursor is not None:
            queryset = queryset.filter(_behind(queryset.model, _read(queryset.model, cursor)))
        page = list(queryset[: size + 1])
        self._last = page[size - 1] if len(page) > size else None
        return page[:size]

    def get_paginated_response(self, data: Any) -> Response:
        return Response({"count": self._count, "next": self._next(), "results": data})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "required": ["count", "next", "results"],
            "properties": {
                "count": {
                    "type": "integer",
                    "description": "How many there are now, on all pages.",
                    "example": 123,
                },
                "next": {
                    "type": "string",
                    "nullable": True,
                    "format": "uri",
                    "description": "Address of the next page; null on the last one.",
                    "example": f"https://lyra.example.org/api/v1/…?{self.cursor_query_param}=…",
                },
                "results": schema,
            },
        }

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        return [
            {
                "name": self.cursor_query_param,
                "required": False,
                "in": "query",
                "description": "Where the page begins: follow `next`.",
                "schema": {"type": "string"},
            },
            {
                "name": self.page_size_query_param,
                "required": False,
                "in": "query",
                "description": "Rows on a page.",
                "schema": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": self.max_page_size,
                    "default": api_settings.PAGE_SIZE,
                },
            },
        ]

    def _page_size(self, request: Request) -> int:
        said = request.query_params.get(self.page_size_query_param, str(api_settings.PAGE_SIZE))
        size = int(said) if said.isdecimal() and len(said) <= len(str(self.max_page_size)) else 0
        if not 1 <= size <= self.max_page_size:
            message = f"Give a whole number from 1 to {self.max_page_size}."
            raise ValidationError({self.page_size_query_param: [message]})
        return size

    def _next(self) -> str | None:
        if self._last is None:
            return None
        return replace_query_param(self._address, self.cursor_query_param, _cursor(self._last))


def _keys(model: type[Model]) -> list[str]:
    """The columns that a list is ordered by, “-” before those that fall; no two rows agree in all
    of them."""
    return [str(key) for key in model._meta.ordering or ()]


def _fields(model: type[Model]) -> list[Any]:
    return [model._meta.get_field(key.lstrip("-")) for key in _keys(model)]


def _cursor(row: Model) -> str:
    model = type(row)
    return signing.dumps(
        [field.value_to_string(row) for field in _fields(model)], salt=_salt(model)
    )


def _read(model: type[Model], cursor: str) -> list[Any]:
    try:
        texts = signing.loads(cursor, salt=_salt(model))
    except signing.BadSignature as error:
        raise ValidationError({Pages.cursor_query_param: ["Follow `next` as it is."]}) from error
    return [field.to_python(text) for field, text in zip(_fields(model), texts, strict=True)]


def _salt(model: type[Model]) -> str:
    return f"{model._meta.label} by {', '.join(_keys(model))}"


def _behind(model: type[Model], values: list[Any]) -> Q:
    """Rows that come after the one with these values."""
    found = Q()
    for key, value in reversed(list(zip(_keys(model), values, strict=True))):
        name = key.lstrip("-")
        beyond = "lt" if key.startswith("-") else "gt"
        later = Q(**{f"{name}__{beyond}": value})
        # The first of the two lets an index begin at the place.
        found = Q(**{f"{name}__{beyond}e": value}) & (later | found) if found else later
    return found
