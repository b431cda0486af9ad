"""Who asks, and what they may do: tokens for programs (“Authorization: Token …”), accounts."""

import logging
import re
from binascii import Error as NotHex
from hmac import compare_digest
from ipaddress import ip_address, ip_network
from typing import Any

from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection
from django.db.models import Model
from django.http import HttpRequest
from django.utils import timezone
from knox.auth import TokenAuthentication
from knox.crypto import hash_token
from knox.settings import CONSTANTS
from rest_framework.exceptions import AuthenticationFailed

logger = logging.getLogger(__name__)

WITH_PORT = re.compile(r"([0-9.]+):[0-9]+|\[([0-9a-fA-F:.]+)\](?::[0-9]+)?")

# Every prediction asks these two, by hand: putting such a question together with the ORM costs
# several times as much as the database's answer.
WHO = """
    SELECT token.digest, account.id, account.is_superuser, account.username,
           account.is_staff, account.is_active
    FROM knox_authtoken AS token JOIN auth_user AS account ON account.id = token.user_id
    WHERE token.token_key = %(key)s AND (token.expiry IS NULL OR token.expiry >= %(now)s)
"""
ACCOUNT = ("id", "is_superuser", "username", "is_staff", "is_active")  # in the model's order
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


class Token(TokenAuthentication):
    """knox's scheme and table. A token that is not ASCII is a wrong token and not a crash; what has
    expired is deleted by `tokens.issue`, and not by every request; none is prolonged by its use
    (knox's AUTO_REFRESH). `request.auth` is the token's digest, its primary key; of the account no
    more is read than is needed to let it in."""

    def authenticate_credentials(self, token: bytes) -> tuple[User, str]:
        try:
            text = token.decode("ascii")
            digest = hash_token(text)
        except (UnicodeDecodeError, TypeError, NotHex) as error:
            raise AuthenticationFailed("Invalid token.") from error
        asked = {
            "key": text[: CONSTANTS.TOKEN_KEY_LENGTH],
            "now": connection.ops.adapt_datetimefield_value(timezone.now()),
        }
        with connection.cursor() as cursor:
            cursor.execute(WHO, asked)
            rows = cursor.fetchall()
        for found, *account in rows:
            if compare_digest(digest, found):
                user = User.from_db(connection.alias, ACCOUNT, account)
                if not user.is_active:
                    raise AuthenticationFailed("User inactive or deleted.")
                return user, digest
        raise AuthenticationFailed("Invalid token.")


def log_refused(credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any) -> None:
    """The signal that a name and a password were wrong, for signing in or for changing it; quoted,
    since a stranger chose them."""
    meta = request.META if request else {}
    logger.warning(
        "password refused%s: user name %.150r, from %s, forwarded for %.200r",
        ", locked" if getattr(request, "axes_locked_out", False) else "",
        credentials.get("username"),
        meta.get("REMOTE_ADDR"),
        meta.get("HTTP_X_FORWARDED_FOR"),
    )


def client_address(request: HttpRequest) -> str:
    """What wrong passwords are counted by: an IPv4 address; of IPv6 the first half, for a customer
    of a provider has all addresses of a /64.

    What a client writes into X-Forwarded-For comes before what LYRA_PROXIES proxies add.
    """
    hops = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
    trusted = settings.LYRA_PROXIES
    peer = request.META.get("REMOTE_ADDR", "")
    text = hops[-trusted].strip() if 0 < trusted <= len(hops) else peer
    if with_port := WITH_PORT.fullmatch(text):  # as some proxies write it
        text = with_port[1] or with_port[2]
    try:
        address = ip_address(text)
    except ValueError:  # a Unix socket's, or no address at all: all such clients count as one
        return "::"
    address = getattr(address, "ipv4_mapped", None) or address
    return str(ip_network((address, 32 if address.version == 4 else 64), strict=False)[0])


def tried_name(request: HttpRequest, credentials: dict[str, Any] | None) -> str:
    """The user name that wrong passwords are counted for. No account's is longer than its column;
    django-axes stores it in one, too, and PostgreSQL refuses what does not fit."""
    name = (credentials or {}).get("username") or request.POST.get("username", "")
    return str(name).replace("\0", "")[: User._meta.get_field("username").max_length]


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
