"""Who a command acts as, what it may do, and what it prints and exits with."""

import json
import sys
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client

from corrections.acting import (
    ActingCommand,
    ActingUserUnknown,
    Refused,
    WrongUsage,
    acting_user,
    system_user,
)

pytestmark = pytest.mark.django_db


class Echo(ActingCommand):
    """Says who acts."""

    permission = "corrections.import_correction"

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--fail", choices=["refused", "usage"])

    def act(self, *, by: User, fail: str | None, **options: Any) -> dict[str, Any]:
        if fail == "refused":
            raise Refused("Too few rows.", details={"rows": 3})
        if fail == "usage":
            raise WrongUsage("No such file.")
        self.stdout.write("for people")
        print("a library talks", file=sys.stdout)  # noqa: T201
        return {"by": by.username}


@pytest.fixture(autouse=True)
def _open_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command run as the shell runs it closes its connections: here that is the test's own."""
    monkeypatch.setattr(connections, "close_all", lambda: None)


def run(*arguments: str) -> int:
    """Exit status of the command as the shell sees it."""
    try:
        Echo().run_from_argv(["manage.py", "echo", "--skip-checks", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def last_line(text: str) -> dict[str, Any]:
    return dict(json.loads(text.rstrip("\n").split("\n")[-1]))


def test_by_default_the_built_in_user_acts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    assert last_line(capsys.readouterr().out) == {"ok": True, "by": "system"}


def test_with_json_everything_else_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("--json")

    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert "for people" in said.err
    assert "a library talks" in said.err


def test_a_named_user_acts_if_permitted(
    curator: User, caller: User, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--json", "--as", "curt") == 0
    assert last_line(capsys.readouterr().out)["by"] == "curt"

    assert run("--json", "--as", "carla") == 1
    refusal = last_line(capsys.readouterr().out)
    assert refusal["ok"] is False
    assert "corrections.import_correction" in refusal["error"]


def test_the_setting_names_who_acts(curator: User, settings: Any) -> None:
    settings.LYRA_COMMAND_USER = "curt"
    assert acting_user() == curator


def test_an_unknown_user_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--as", "nobody") == 2
    assert "nobody" in capsys.readouterr().err
    with pytest.raises(ActingUserUnknown):
        acting_user("nobody")


def test_a_refusal_exits_1_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--fail", "refused", "--json") == 1

    said = capsys.readouterr()
    assert last_line(said.out) == {"ok": False, "error": "Too few rows.", "rows": 3}
    assert "Too few rows." in said.err


@pytest.mark.parametrize("arguments", [("--fail", "usage"), ("--fail", "x"), ("--unknown",)])
def test_wrong_usage_exits_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == 2


def test_the_built_in_user_cannot_sign_in() -> None:
    user = system_user()

    assert (user.is_active, user.has_usable_password()) == (False, False)
    assert system_user() == user
    form = {"username": "system", "password": ""}
    assert Client().post("/admin/login/", form).wsgi_request.user.is_anonymous


def test_an_account_named_like_the_built_in_user_gets_no_rights_from_it() -> None:
    User.objects.create_user("system", password="x")

    assert run() == 1
