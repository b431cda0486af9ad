"""List, issue and revoke API tokens."""

from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.core.management.base import CommandParser

from corrections.acting import ActingCommand, Refused, WrongUsage, is_system
from lyra_site import tokens

MANAGE_OTHERS = "auth.change_user"


class Command(ActingCommand):
    help = (
        "List, issue or revoke API tokens: your own, or anybody's with the right to change users."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=["list", "issue", "revoke"])
        parser.add_argument("user", nargs="?", help="whose; default: the acting user's own")
        parser.add_argument("id", nargs="?", help="revoke: which, as `list` shows it")
        parser.add_argument(
            "--days",
            type=int,
            default=settings.LYRA_TOKEN_DAYS,
            help=f"issue: days until it expires (default {settings.LYRA_TOKEN_DAYS})",
        )

    def act(
        self,
        *,
        by: User,
        action: str,
        user: str | None,
        id: str | None,
        days: int,
        **options: Any,
    ) -> dict[str, Any]:
        owner = _owner(user, by=by)
        if action == "list":
            return self._list(owner)
        if action == "issue":
            return self._issue(owner, days=days)
        if id is None:
            raise WrongUsage("revoke takes the user and the token's id: tokens revoke USER ID")
        return self._revoke(owner, token_id=id)

    def _list(self, owner: User) -> dict[str, Any]:
        found = [tokens.describe(token) for token in tokens.tokens_of(owner).select_related("user")]
        for token in found:
            self.stdout.write(f"{token['id']}  {token['user']}  until {token['expiry']}")
        return {"tokens": found}

    def _issue(self, owner: User, *, days: int) -> dict[str, Any]:
        try:
            token, text = tokens.issue(owner, days=days)
        except tokens.TokenRefused as error:
            raise Refused(str(error)) from error
        self.stdout.write(text)
        return tokens.describe(token) | {"token": text}

    def _revoke(self, owner: User, *, token_id: str) -> dict[str, Any]:
        try:
            tokens.revoke(owner, token_id)
        except tokens.TokenUnknown as error:
            raise Refused(str(error)) from error
        self.stdout.write(f"Token {token_id} of {owner.username} is revoked.")
        return {"revoked": token_id, "user": owner.username}


def _owner(name: str | None, *, by: User) -> User:
    """Whose tokens this is about, if `by` may touch them."""
    if name is None or name == by.username:
        return by
    if not is_system(by) and not by.has_perm(MANAGE_OTHERS):
        raise Refused(f"User “{by.username}” lacks the permission {MANAGE_OTHERS}.")
    try:
        return get_user_model().objects.get(username=name)
    except get_user_model().DoesNotExist:
        raise WrongUsage(f"There is no user named “{name}”.") from None
