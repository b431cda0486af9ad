"""API tokens: shown once when issued, then listed and revoked by how they begin."""

from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.utils import timezone
from knox.models import AuthToken

MAX_DAYS = 3650
# How much of a token, of 64 characters, is kept in sight: enough to know it by, too little to use.
ID_LENGTH = 12


class TokenUnknown(LookupError):
    """The user has no token of this id."""


class TokenRefused(ValueError):
    """No token is given out; the message says why."""


def issue(user: User, *, days: int) -> tuple[AuthToken, str]:
    """Make a token that lives `days` days; returns its row and the text, which is never stored.

    The user's expired ones go.

    Raises:
        TokenRefused: the account cannot sign in, or `days` is out of range.
    """
    if not user.is_active:
        raise TokenRefused(f"The account “{user.username}” is not active.")
    if not 1 <= days <= MAX_DAYS:
        raise TokenRefused(f"days: {days} is not between 1 and {MAX_DAYS}.")
    tokens_of(user).filter(expiry__lt=timezone.now()).delete()
    made: tuple[AuthToken, str] = AuthToken.objects.create(user=user, expiry=timedelta(days=days))
    return made


def tokens_of(user: User) -> QuerySet[AuthToken]:
    """The user's tokens, newest first."""
    return AuthToken.objects.filter(user=user).order_by("-created")


def revoke(user: User, wanted: str) -> None:
    """Delete the user's token whose id is `wanted`; the next request that carries it is refused.

    Raises:
        TokenUnknown: no such token, or not this user's.
    """
    found = tokens_of(user).filter(token_key__startswith=wanted)
    if len(wanted) != ID_LENGTH or found.count() != 1:
        raise TokenUnknown(f"“{user.username}” has no token {wanted[:ID_LENGTH]}.")
    found.delete()


def token_id(token: AuthToken) -> str:
    """What people know it by: how it begins."""
    return str(token.token_key[:ID_LENGTH])


def describe(token: AuthToken) -> dict[str, Any]:
    """What may be shown of a token, JSON-ready."""
    return {
        "id": token_id(token),
        "user": token.user.get_username(),
        "created": token.created.isoformat(),
        "expiry": token.expiry.isoformat() if token.expiry else None,
    }
