"""What a list may be asked for: what its view's `filters` knows, pages, and nothing else."""

from typing import Any

from django.db.models import QuerySet
from rest_framework.filters import BaseFilterBackend
from rest_framework.request import Request
from rest_framework.serializers import Serializer
from rest_framework.settings import api_settings
from rest_framework.views import APIView

from corrections.requests import read_query


class QueryFilter(BaseFilterBackend):
    """The rows that a list's query string asks for, by the view's `filters`, a serializer, and its
    `narrow`, where equality is not meant.

    A filter that is misspelt, empty or given twice is refused as a wrong one is: it would return
    everything.
    """

    def filter_queryset(
        self, request: Request, queryset: QuerySet[Any], view: APIView
    ) -> QuerySet[Any]:
        if getattr(view, "detail", True):  # of a viewset: whether it is about one row
            return queryset
        asked = self._asked(request, view)
        if hasattr(view, "narrow"):
            narrowed: QuerySet[Any] = view.narrow(queryset, asked)
            return narrowed
        return queryset.filter(**asked)

    def _asked(self, request: Request, view: Any) -> dict[str, Any]:
        filters: type[Serializer[Any]] = getattr(view, "filters", None) or Serializer
        return read_query(request.query_params, filters(), also=_about_pages(view))


def _about_pages(view: Any) -> set[str]:
    pages = view.paginator
    if pages is None:  # a file, of one format
        return set()
    return {
        pages.cursor_query_param,
        pages.page_size_query_param,
        api_settings.URL_FORMAT_OVERRIDE,
    }
