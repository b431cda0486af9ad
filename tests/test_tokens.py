"""Tokens: the page of the signed-in user, and the command."""

import io
import json
import re

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from knox.models import AuthToken

from corrections.acting import Refused, WrongUsage

pytest_plugins = ("tests.serving",)


@pytest.fixture
def rita(client, cast):
    client.force_login(cast["rita"])
    return client


def run(*arguments: str) -> dict:
    out = io.StringIO()
    call_command("tokens", *arguments, "--json", stdout=out, stderr=io.StringIO())
    return json.loads(out.getvalue().splitlines()[-1])


def works(client, token: str) -> bool:
    client.logout()
    return client.get("/api/v1/adapters", HTTP_AUTHORIZATION=f"Token {token}").status_code == 200


def test_a_token_is_made_shown_once_and_works(rita):
    page = rita.post("/tokens", {"days": "7"})
    token = re.search(r'id="new-token">([0-9a-f]+)<', page.content.decode())[1]
    row = AuthToken.objects.get()
    assert 6 <= (row.expiry - timezone.now()).days <= 7
    assert "no-store" in page["Cache-Control"]
    again = rita.get("/tokens").content.decode()
    assert token not in again
    assert f"<code>{token[:12]}…</code>" in again  # as the page that showed it says it is sent
    assert f"Token {token[:12]}…" in page.content.decode()
    assert works(rita, token)


def test_a_revoked_token_is_worthless(rita, cast):
    _, token = AuthToken.objects.create(cast["rita"])
    _, kept = AuthToken.objects.create(cast["rita"])
    answer = rita.post(f"/tokens/{token[:12]}/revoke", follow=True)
    assert f"The token {token[:12]}… is revoked." in answer.content.decode()
    assert works(rita, kept)
    assert not works(rita, token)


def test_an_expired_token_is_listed_as_such(rita, cast):
    old, _ = AuthToken.objects.create(cast["rita"])
    AuthToken.objects.create(cast["rita"])
    AuthToken.objects.filter(pk=old.pk).update(expiry=timezone.now())
    assert rita.get("/tokens").content.decode().count("(expired)") == 1


def test_nobody_revokes_the_token_of_another(rita, cast):
    _, token = AuthToken.objects.create(cast["alice"])
    rita.post(f"/tokens/{token[:12]}/revoke")
    rita.post("/tokens/x/revoke")
    assert AuthToken.objects.count() == 1


@pytest.mark.parametrize("days", ["0", "-1", "3651", "x", "", "1.5", "9" * 50])
def test_an_impossible_expiry_is_refused(rita, days):
    assert rita.post("/tokens", {"days": days}).status_code == 400
    assert not AuthToken.objects.exists()


def test_the_page_is_for_the_signed_in_and_posts_only(client, rita):
    assert rita.get("/tokens/abc/revoke").status_code == 405
    rita.logout()
    assert rita.get("/tokens")["Location"].startswith("/admin/login/")
    assert rita.post("/tokens", {"days": 1}).status_code == 302
    assert not AuthToken.objects.exists()


def test_posting_needs_the_csrf_token(cast):
    from django.test import Client  # noqa: PLC0415

    strict = Client(enforce_csrf_checks=True)
    strict.force_login(cast["rita"])
    assert strict.post("/tokens", {"days": 1}).status_code == 403


def test_the_command_issues_lists_and_revokes(cast, client):
    issued = run("issue", "alice", "--days", "3")
    assert issued["ok"] is True
    assert issued["user"] == "alice"
    (listed,) = run("list", "alice")["tokens"]
    assert listed["id"] == issued["id"] == issued["token"][:12]
    assert "token" not in listed
    assert run("revoke", "alice", issued["id"])["revoked"] == issued["id"]
    assert run("list", "alice")["tokens"] == []


def test_the_command_under_a_user_is_for_their_own_tokens(cast):
    assert run("issue", "--as", "alice")["user"] == "alice"
    with pytest.raises(Refused, match="lacks the permission"):
        run("issue", "bob", "--as", "alice")
    assert run("issue", "bob", "--as", "ada")["user"] == "bob"


def test_the_command_refuses(cast):
    cast["bob"].is_active = False
    cast["bob"].save()
    with pytest.raises(Refused, match="not active"):
        run("issue", "bob")
    with pytest.raises(Refused, match="days"):
        run("issue", "alice", "--days", "0")
    with pytest.raises(Refused, match="no token"):
        run("revoke", "alice", "0" * 12)
    with pytest.raises(WrongUsage):
        run("issue", "nobody")
    with pytest.raises(WrongUsage):
        run("revoke", "alice")
    with pytest.raises(CommandError):
        run("make")


def test_an_expired_token_and_a_disabled_user_are_401(client, cast):
    row, token = AuthToken.objects.create(cast["rita"])
    AuthToken.objects.filter(pk=row.pk).update(expiry=timezone.now())
    assert not works(client, token)
    expired = AuthToken.objects.filter(pk=row.pk)
    assert expired.exists()  # a request changes nothing
    run("issue", "rita")
    assert not expired.exists()
    _, token = AuthToken.objects.create(cast["rita"])
    cast["rita"].is_active = False
    cast["rita"].save()
    assert not works(client, token)
