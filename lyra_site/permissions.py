"""Deny by default: a view says which permission it needs, or nobody gets in."""

from typing import TYPE_CHECKING

from rest_framework.permissions import BasePermission

if TYPE_CHECKING:  # rest_framework.views imports this module while it is being imported itself
    from rest_framework.request import Request
    from rest_framework.views import APIView


class HasPermission(BasePermission):
    """Grants users with the view's `required_permission`: "app.codename", or one per HTTP method.

    HEAD asks for what GET asks for. OPTIONS describes the view to anyone who may do anything there.
    A method that the view does not have is nothing to refuse: DRF answers 405.
    """

    def has_permission(self, request: "Request", view: "APIView") -> bool:
        if not hasattr(view, str(request.method).lower()):
            return request.user.is_authenticated
        needed = getattr(view, "required_permission", None)
        if isinstance(needed, str):
            return bool(needed) and request.user.has_perm(needed)
        if not needed:
            return False
        if request.method == "OPTIONS":
            return any(request.user.has_perm(permission) for permission in needed.values())
        method = "GET" if request.method == "HEAD" else request.method
        return method in needed and request.user.has_perm(needed[method])
