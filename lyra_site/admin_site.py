"""The admin site of the house."""

from collections.abc import Iterable
from typing import Any, cast

from django.contrib.admin import AdminSite, ModelAdmin
from django.contrib.auth.models import User
from django.db.models import Model
from django.db.models.base import ModelBase
from django.http import HttpRequest
from django.template.response import TemplateResponse

from adapters_app import dashboard

# django-q2's admin runs arbitrary dotted paths (Schedule) and resubmits tasks without a permission;
# knox's shows digests and makes tokens nobody ever sees. Each has a page of ours instead.
HIDDEN_APPS = {"django_q", "knox"}


class LyraAdminSite(AdminSite):
    site_header = site_title = "Lyra"
    index_title = "Correction loop"

    def register(
        self,
        model_or_iterable: type[Model] | Iterable[type[Model]],
        admin_class: type[ModelAdmin] | None = None,
        **options: Any,
    ) -> None:
        models = (
            [model_or_iterable] if isinstance(model_or_iterable, ModelBase) else model_or_iterable
        )
        shown = [model for model in models if model._meta.app_label not in HIDDEN_APPS]
        super().register(shown, admin_class, **options)

    def index(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        """The first page: how the loop stands and what to do next."""
        found = dashboard.context(cast(User, request.user))  # admin_view let only users in
        return super().index(request, {**found, **(extra_context or {})})
