"""Who acts when nobody is signed in, and the base of every management command.

A command is a door like any other: it acts as somebody, that somebody needs the permission, and a
refusal is a sentence and an exit status (0 done, 1 refused, 2 wrong usage).
"""

import contextlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper
from django.db import InternalError, OperationalError, ProgrammingError

from corrections import database_away, full_disk, schema

SYSTEM_USERNAME = "system"


class Refused(CommandError):
    """The operation was understood and refused; `reason` is a sentence for people. Exit status 1.

    `details` joins the JSON object that `--json` prints.
    """

    def __init__(self, reason: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason, returncode=1)
        self.reason = reason
        self.details = dict(details or {})


class WrongUsage(CommandError):
    """The arguments make no sense (a file that is not there, an unknown user). Exit status 2."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, returncode=2)


class ActingUserUnknown(WrongUsage):
    """Nobody has the user name the command was told to act as."""


def system_user() -> User:
    """The built-in user that commands act as by default: inactive, no password, cannot sign in."""
    user, _ = get_user_model().objects.get_or_create(
        username=SYSTEM_USERNAME,
        defaults={"is_active": False, "password": make_password(None)},
    )
    return user


def is_system(user: User) -> bool:
    """Whether this is the built-in user; an account named like it that can sign in is not."""
    return user.username == SYSTEM_USERNAME and not user.is_active


def acting_user(username: str | None = None) -> User:
    """The user a command acts as: `username`, else LYRA_COMMAND_USER.

    Raises ActingUserUnknown where there is no such user; only the built-in one is made on demand.
    """
    name = username or settings.LYRA_COMMAND_USER
    if name == SYSTEM_USERNAME:
        return system_user()
    try:
        return get_user_model().objects.get(username=name)
    except get_user_model().DoesNotExist:
        raise ActingUserUnknown(f"There is no user named “{name}”.") from None


class ActingCommand(BaseCommand):
    """A command that acts as a user: adds `--as` and `--json`, checks `permission`, calls `act()`.

    Subclasses set `permission` and write `act(*, by, …, **options)`, which returns what `--json`
    prints and raises Refused or WrongUsage. What people should read goes to `self.stdout`; with
    `--json` that is standard error, so that the last line of standard output is one JSON object.
    """

    permission = ""  # "app.codename"; empty = anyone who has a shell

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.add_argument(
            "--as",
            dest="as_user",
            metavar="USER",
            help="act as this user (default: LYRA_COMMAND_USER, else the built-in “system”)",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            help="print the result as one JSON object on the last line of standard output",
        )
        return parser

    def handle(self, *args: Any, as_user: str | None, json: bool, **options: Any) -> None:
        if not json:
            self._act(as_user, options)
            return
        stdout, self.stdout = self.stdout, OutputWrapper(sys.stderr)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # libraries that print
                result = self._act(as_user, options)
        except CommandError as error:
            details = error.details if isinstance(error, Refused) else {}
            stdout.write(_json_line({"ok": False, "error": str(error)} | details))
            raise
        finally:
            self.stdout = stdout
        stdout.write(_json_line({"ok": True} | result))

    def act(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Do it as `by` (a keyword); return the JSON-serialisable result.

        Subclasses name the options they need: `def act(self, *, by: User, file: Path, **options)`.
        """
        raise NotImplementedError

    def _act(self, as_user: str | None, options: dict[str, Any]) -> dict[str, Any]:
        try:
            by = acting_user(as_user)
            self._check_permission(by)
            return self.act(by=by, **options)
        except (OSError, OperationalError, ProgrammingError, InternalError) as error:
            if full_disk.is_behind(error):
                raise Refused(full_disk.in_a_command(error)) from error
            if isinstance(error, OSError):
                raise
            if schema.is_behind():
                raise Refused(schema.RUN_MIGRATE) from error
            if not database_away.is_behind(error):
                raise
            raise Refused(f"The database cannot be used just now: {error}") from error

    def _check_permission(self, by: User) -> None:
        if self.permission and not is_system(by) and not by.has_perm(self.permission):
            raise Refused(f"User “{by.username}” lacks the permission {self.permission}.")


def _json_line(result: Mapping[str, Any]) -> str:
    return json.dumps(result, ensure_ascii=False, default=str)
