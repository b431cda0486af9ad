"""Token authentication for programs: “Authorization: Token …”."""

from django.contrib.auth.models import AbstractBaseUser
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
