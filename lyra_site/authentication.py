"""Who asks, and what they may do: tokens for programs (“Authorization: Token …”), accounts."""

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, User
from django.db import connection
from django.db.models import Model
from django.utils import timezone
from knox.auth import TokenAuthentication
from knox.models import AuthToken
from rest_framework.exceptions import AuthenticationFailed


class Token(TokenAuthentication):
    """knox's, except that a token that is not ASCII is a wrong token and not a crash, and that a
    request looks at its own token alone: knox reads all of the user's to delete those that expired,
    which `tokens.issue` does here."""

    def authenticate_credentials(self, token: bytes) -> tuple[AbstractBaseUser, object]:
        if not token.isascii():
            raise AuthenticationFailed("Invalid token.")
        credentials: tuple[AbstractBaseUser, object] = super().authenticate_credentials(token)
        return credentials

    def _cleanup_token(self, auth_token: AuthToken) -> bool:
        return auth_token.expiry is not None and auth_token.expiry < timezone.now()


# By hand: putting such a question together with the ORM costs more than the two that Django asks.
MAY = """
    SELECT 1 FROM auth_permission AS permission
    JOIN django_content_type AS kind ON kind.id = permission.content_type_id
    WHERE kind.app_label = %(app)s AND permission.codename = %(codename)s AND (
        EXISTS (
            SELECT 1 FROM auth_user_user_permissions AS own
            WHERE own.permission_id = permission.id AND own.user_id = %(user)s
        ) OR EXISTS (
            SELECT 1 FROM auth_group_permissions AS granted
            JOIN auth_user_groups AS member ON member.group_id = granted.group_id
            WHERE granted.permission_id = permission.id AND member.user_id = %(user)s
        )
    )
"""


class Accounts(ModelBackend):
    """Django's, except that the first permission a request asks for is looked up by itself: a
    prediction needs no other, and all that an account may do is two queries of many rows."""

    def has_perm(self, user_obj: User | AnonymousUser, perm: str, obj: Model | None = None) -> bool:
        known: dict[str, Any] = vars(user_obj)
        alone = isinstance(user_obj, User) and user_obj.is_active and obj is None
        if not alone or known.setdefault("_asked_for", perm) != perm or "_perm_cache" in known:
            return bool(super().has_perm(user_obj, perm, obj))
        app, _, codename = perm.partition(".")
        with connection.cursor() as cursor:
            cursor.execute(MAY, {"app": app, "codename": codename, "user": user_obj.pk})
            return cursor.fetchone() is not None
