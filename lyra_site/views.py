"""The token page of the signed-in user."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from lyra_site import tokens


class IssueForm(forms.Form):
    days = forms.IntegerField(min_value=1, max_value=tokens.MAX_DAYS, label="Days until it expires")


@never_cache
@sensitive_variables("text")
@require_http_methods(["GET", "HEAD", "POST"])
def token_page(request: HttpRequest) -> HttpResponse:
    """List the user's tokens; POST makes one and shows it, once, in the answer itself.

    No redirect after POST: the token would have to be kept somewhere to survive it.
    """
    user, text = _user(request), ""
    form = IssueForm(request.POST or None, initial={"days": settings.LYRA_TOKEN_DAYS})
    if request.method == "POST" and form.is_valid():
        _, text = tokens.issue(user, days=form.cleaned_data["days"])
    context: dict[str, Any] = {
        **admin.site.each_context(request),
        "title": "API tokens",
        "form": form,
        "new_token": text,
        "now": timezone.now(),
        "tokens": [(token, tokens.token_id(token)) for token in tokens.tokens_of(user)],
    }
    status = 400 if form.is_bound and form.errors else 200
    return render(request, "lyra_site/tokens.html", context, status=status)


@require_POST
def revoke_token(request: HttpRequest, token_id: str) -> HttpResponse:
    try:
        tokens.revoke(_user(request), token_id)
    except tokens.TokenUnknown as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"The token {token_id}… is revoked.")
    return redirect("tokens")


def _user(request: HttpRequest) -> User:
    """Whoever is signed in; LoginRequiredMiddleware has let nobody else in."""
    if not isinstance(request.user, User):
        raise PermissionDenied
    return request.user


@require_GET
def home(request: HttpRequest) -> HttpResponse:
    return redirect("admin:index")
