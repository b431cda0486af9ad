"""Token authentication for programs: “Authorization: Token …”."""

from django.contrib.auth.models import AbstractBaseUser
from knox.auth import TokenAuthentication
from rest_framework.exceptions import AuthenticationFailed


class Token(TokenAuthentication):
    """knox's, except that a token that is not ASCII is a wrong token and not a crash."""

    def authenticate_credentials(self, token: bytes) -> tuple[AbstractBaseUser, object]:
        if not token.isascii():
            raise AuthenticationFailed("Invalid token.")
        credentials: tuple[AbstractBaseUser, object] = super().authenticate_credentials(token)
        return credentials
