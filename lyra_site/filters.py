"""What a list may be asked for: what its view's `filters` knows, pages, and nothing else."""

from typing import Any

from django.db.models import QuerySet
from rest_framework.exceptions import ValidationError
from rest_framework.filters import BaseFilterBackend
from rest_framework.request import Request
from rest_framework.serializers import Serializer
from rest_framework.settings import api_settings
from rest_framework.views import APIView

from corrections.requests import LONGEST_NAME, unknown_names


class QueryFilter(BaseFilterBackend):
    """The rows that a list's query string asks for, by the view's `filters`, a serializer, and its
    `narrow`, where equality is not meant.

    A filter that is misspelt, empty or given twice is refused as a wrong one is: it would return
    everything.
    """

    def filter_queryset(
        self, request: Request, queryset: QuerySet[Any], view: APIView
    ) -> QuerySet[Any]:
        if getattr(view, "action", None) != "list":
            return queryset
        asked = self._asked(request, view)
        if hasattr(view, "narrow"):
            narrowed: QuerySet[Any] = view.narrow(queryset, asked)
            return narrowed
        return queryset.filter(**asked)

    def _asked(self, request: Request, view: Any) -> dict[str, Any]:
        filters: Serializer[Any] = (getattr(view, "filters", None) or Serializer)(
            data=_once(request)
        )
        about_pages = {view.paginator.cursor_query_param, view.paginator.page_size_query_param}
        known = filters.fields.keys() | about_pages | {api_settings.URL_FORMAT_OVERRIDE}
        errors = unknown_names(request.query_params, known, "parameter")
        if not filters.is_valid():
            errors = {**filters.errors, **errors}
        if errors:
            raise ValidationError(errors)
        return dict(filters.validated_data)


def _once(request: Request) -> dict[str, str]:
    """The query string by name; no form, where an empty value would be none."""
    given = request.query_params
    if twice := [name for name in given if len(given.getlist(name)) > 1]:
        raise ValidationError({name[:LONGEST_NAME]: ["Given twice."] for name in twice})
    return given.dict()
