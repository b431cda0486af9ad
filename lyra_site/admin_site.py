"""The admin site of the house, and what each of its lists does with an address that asks for
nonsense. Whose rows a page shows, and who may see it, is said where the model is registered."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar, cast

from axes.utils import reset as forget_wrong_passwords
from django.contrib.admin import AdminSite, ModelAdmin
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.contrib.admin.forms import AdminPasswordChangeForm
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ERROR_FLAG, ChangeList
from django.contrib.auth import authenticate
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.auth.views import PasswordChangeView
from django.core.exceptions import SuspiciousOperation, ValidationError
from django.db import DataError
from django.db.models import Model, QuerySet
from django.db.models.base import ModelBase
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.views.decorators.debug import sensitive_variables

from adapters_app import dashboard
from lyra_site.authentication import client_address

# django-q2's admin runs arbitrary dotted paths (Schedule) and resubmits tasks without a permission;
# knox's shows digests and makes tokens nobody ever sees. Each has a page of ours instead.
HIDDEN_APPS = {"django_q", "knox"}
# What a value raises that no column can hold, on its way to the database or there.
UNASKABLE = (ValueError, OverflowError, DataError)
# Each is a condition of its own, and SQLite nests no more than a thousand of them.
SEARCHED_WORDS = 200

View = TypeVar("View", bound=Callable[..., HttpResponseBase])


class NarrowedByOurPages(ChangeList):
    """A list that is narrowed by its filters and by the `linked_by` of its admin class, the lookups
    that our own pages link to it with; 400 for others.

    Django takes any lookup on any column: whoever may see a list would read from what is left of it
    what the list does not show, JSON letter by letter.
    """

    def get_filters(self, request: HttpRequest) -> Any:
        found = super().get_filters(request)
        left_by_filters = found[2]
        if strange := left_by_filters.keys() - set(getattr(self.model_admin, "linked_by", ())):
            raise DisallowedModelAdminLookup(f"Filtering by {min(strange)} not allowed")
        return found


class AskedAnything(ModelAdmin):
    """Comes before the admin class of every model: a list of rows answers whatever it is asked for.

    What Django recognises as a bad value it answers itself, with the whole list; so are here those
    that it lets through to the database.
    """

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return NarrowedByOurPages

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        try:
            return super().get_changelist_instance(request)
        except UNASKABLE as error:
            if not request.GET.keys() - {ERROR_FLAG}:
                raise  # nobody asked for anything: that is our mistake
            raise IncorrectLookupParameters(error) from error

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        words = search_term.split()
        if len(words) > SEARCHED_WORDS:
            search_term = " ".join(words[:SEARCHED_WORDS])
        return super().get_search_results(request, queryset, search_term)

    def response_action(  # type: ignore[override]  # the stubs are of a later Django
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponse | None:
        chosen = request.POST.getlist(ACTION_CHECKBOX_NAME)
        if not all(self._may_be_a_key(str(text)) for text in chosen):
            return HttpResponseRedirect(f"{request.path}?{ERROR_FLAG}=1")
        return super().response_action(request, queryset)

    def _may_be_a_key(self, text: str) -> bool:
        key = self.opts.pk
        try:
            key.run_validators(key.to_python(text))
        except ValidationError:
            return False
        return "\0" not in text


class SignInForm(AuthenticationForm):
    """Tells an account that may do nothing why it gets no further, once its password is right."""

    required_css_class = "required"

    def confirm_login_allowed(self, user: User) -> None:
        super().confirm_login_allowed(user)
        if not may_do_anything(user):
            raise ValidationError(
                "This account has no role yet. Ask an administrator to give it one.", code="no_role"
            )


class OwnPasswordForm(AdminPasswordChangeForm):
    """Asks for the old password as for one to sign in with: whoever has got hold of somebody's
    session has no more tries, and the wrong ones of both pages count together."""

    def __init__(self, *args: Any, request: HttpRequest, **named: Any) -> None:
        super().__init__(*args, **named)
        self._request = request

    @sensitive_variables("old_password")
    def clean_old_password(self) -> str:
        old_password: str = self.cleaned_data["old_password"]
        name = self.user.get_username()
        if authenticate(self._request, username=name, password=old_password) is None:
            raise ValidationError(
                self.error_messages["password_incorrect"], code="password_incorrect"
            )
        forget_wrong_passwords(ip=client_address(self._request), username=name)
        return old_password


class OwnPasswordView(PasswordChangeView):
    form_class = OwnPasswordForm

    def get_form_kwargs(self) -> dict[str, Any]:
        return {**super().get_form_kwargs(), "request": self.request}


class LyraAdminSite(AdminSite):
    site_header = site_title = "Lyra"
    index_title = "Correction loop"
    login_form = SignInForm

    def has_permission(self, request: HttpRequest) -> bool:
        """Whoever has a role gets in. Django's staff status would be a second thing to grant."""
        return may_do_anything(request.user)

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
        super().register(shown, _asked_anything(admin_class or ModelAdmin), **options)

    def admin_view(self, view: View, cacheable: bool = False) -> View:
        """The door to every page but the one for signing in; 400 where the address holds a NUL."""
        return super().admin_view(_without_nul(view), cacheable)

    def password_change(  # type: ignore[override]  # the stubs know of no redirect
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponseBase:
        """Django's, whose form and view cannot be chosen otherwise."""
        context = {**self.each_context(request), **(extra_context or {})}
        done = reverse("admin:password_change_done")
        return OwnPasswordView.as_view(success_url=done, extra_context=context)(request)

    def index(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        """The first page: how the loop stands and what to do next."""
        found = dashboard.context(cast(User, request.user))  # admin_view let only users in
        return super().index(request, {**found, **(extra_context or {})})


def may_do_anything(user: User | AnonymousUser) -> bool:
    """Whether any permission is theirs, by a role or otherwise; pages ask for those they need."""
    return user.is_active and bool(user.get_all_permissions())


def _asked_anything(admin_class: type[ModelAdmin]) -> type[ModelAdmin]:
    bases = (AskedAnything, admin_class)
    return type(admin_class.__name__, bases, {"__module__": admin_class.__module__})


def _without_nul(view: View) -> View:
    """PostgreSQL compares no text with a NUL, and no text that it stores holds one."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **named: Any) -> HttpResponseBase:
        queried = (text for name, values in request.GET.lists() for text in (name, *values))
        if "\0" in request.path or any("\0" in str(text) for text in queried):
            raise SuspiciousOperation("A NUL in the address of an admin page.")
        return view(request, *args, **named)

    return cast(View, guarded)
