"""Deny by default: a view says which permission it needs, or nobody gets in."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rest_framework.permissions import BasePermission

if TYPE_CHECKING:  # rest_framework.views imports this module while it is being imported itself
    from django.contrib.auth.models import AnonymousUser, User
    from rest_framework.request import Request
    from rest_framework.views import APIView

OneOf = str | tuple[str, ...]
Needed = OneOf | Mapping[str, OneOf]


class HasPermission(BasePermission):
    """Grants users with the view's `required_permission`: "app.codename", or one per HTTP method;
    of several, in a tuple, one is enough.

    HEAD asks for what GET asks for. OPTIONS describes the view to anyone who may do anything there.
    A method that the view does not have is nothing to refuse: DRF answers 405.
    """

    def has_permission(self, request: "Request", view: "APIView") -> bool:
        if not hasattr(view, str(request.method).lower()):
            return request.user.is_authenticated
        needed = getattr(view, "required_permission", None) or ()
        if request.method == "OPTIONS" and isinstance(needed, Mapping):
            return any(_has_one(request.user, any_of(needed, each)) for each in needed)
        method = "GET" if request.method == "HEAD" else str(request.method)
        return _has_one(request.user, any_of(needed, method))


def any_of(needed: Needed, method: str) -> tuple[str, ...]:
    """The permissions of a `required_permission` of which this method takes one; none = nobody."""
    if isinstance(needed, Mapping):
        needed = needed.get(method, ())
    return (needed,) if isinstance(needed, str) else needed


def _has_one(user: "User | AnonymousUser", permissions: tuple[str, ...]) -> bool:
    return any(permission and user.has_perm(permission) for permission in permissions)
