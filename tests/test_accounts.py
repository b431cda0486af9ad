"""Accounts: an administrator makes one and gives it a role; it signs in to what the role allows."""

import re

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.test import Client

from lyra_site.roles import ROLES, WHAT_THEY_DO

pytest_plugins = ("tests.serving",)

ADD = "/admin/auth/user/add/"
PASSWORD = "correct horse battery"


@pytest.fixture
def ada(client, cast):
    client.force_login(cast["ada"])
    return client


def made(ada, name: str, *roles: str) -> Client:
    """Ada makes the account on the page for it; a window in which it has tried to sign in."""
    groups = Group.objects.filter(name__in=roles).values_list("pk", flat=True)
    form = {"username": name, "usable_password": "true", "groups": list(groups)}
    answer = ada.post(ADD, form | {"password1": PASSWORD, "password2": PASSWORD})
    assert answer["Location"] == f"/admin/auth/user/{User.objects.get(username=name).pk}/change/"
    return signing_in(name)


def signing_in(name: str) -> Client:
    window = Client()
    window.answer = window.post(
        "/admin/login/?next=/admin/", {"username": name, "password": PASSWORD}
    )
    return window


def statuses(window: Client, *pages: str) -> list[int]:
    return [window.get(page).status_code for page in pages]


def test_a_curator_made_on_the_page_signs_in_and_curates(ada):
    anna = made(ada, "anna", "curator")
    assert anna.answer["Location"] == "/admin/"
    allowed = ["/admin/", "/admin/corrections/correction/", "/tokens", "/api/v1/docs"]
    assert statuses(anna, *allowed) == [200] * 4
    refused = ["/admin/adapters_app/trainingrun/", "/admin/auth/user/", ADD]
    assert statuses(anna, *refused) == [403] * 3


def test_a_caller_made_on_the_page_signs_in_makes_a_token_and_predicts(ada, on_tiny):
    bot = made(ada, "bot", "caller")
    assert statuses(bot, "/admin/", "/tokens", "/api/v1/docs") == [200] * 3
    assert statuses(bot, "/admin/corrections/correction/", "/admin/auth/user/") == [403] * 2
    page = bot.post("/tokens", {"days": "7"}).content.decode()
    token = re.search(r'id="new-token">([0-9a-f]+)<', page)[1]
    program = Client(headers={"Authorization": f"Token {token}"})
    pair = {"premise": "the drug reduces risk", "hypothesis": "the drug is effective"}
    asked = {"data": {"pairs": [pair]}, "content_type": "application/json"}
    assert program.post("/api/v1/nli", **asked).status_code == 200
    assert program.get("/api/v1/corrections").json()["count"] == 0
    assert program.get("/api/v1/adapters").status_code == 403


def test_a_role_given_later_opens_the_door_and_one_taken_away_shuts_it(ada):
    assert "no role yet" in made(ada, "anna").answer.content.decode()
    anna = User.objects.get(username="anna")
    anna.groups.add(Group.objects.get(name="trainer"))
    window = signing_in("anna")
    assert statuses(window, "/admin/", "/admin/adapters_app/trainingrun/") == [200, 200]
    anna.groups.clear()
    assert statuses(window, "/admin/") == [302]
    User.objects.filter(pk=anna.pk).update(is_active=False, is_superuser=True)
    assert signing_in("anna").answer.status_code == 200  # the form again


def test_who_has_no_role_is_told_so_only_with_the_right_password(ada):
    made(ada, "anna")
    guess = {"username": "anna", "password": "a guess"}
    page = Client().post("/admin/login/", guess).content.decode()
    assert "no role" not in page
    assert "enter a correct username and password" in page


def test_the_pages_of_an_account_say_what_each_role_does(ada, cast):
    assert WHAT_THEY_DO.keys() == ROLES.keys()
    for page in (ADD, f"/admin/auth/user/{cast['bob'].pk}/change/"):
        text = ada.get(page).content.decode()
        for role, does in WHAT_THEY_DO.items():
            assert f"{role}: {does}" in text
        assert "taff status" not in text


def test_the_list_of_accounts_shows_their_roles(ada, cast):
    cast["tom"].groups.add(Group.objects.get(name="releaser"))
    page = ada.get("/admin/auth/user/").content.decode()
    shown = dict(re.findall(r'/change/">(\w+)</a></th><td class="field-roles">([^<]+)<', page))
    assert shown == {
        "ada": "administrator",
        "alice": "caller",
        "bob": "curator",
        "eve": "–",
        "rita": "releaser",
        "tom": "releaser, trainer",
    }


def test_who_may_change_accounts_makes_nobody_mightier_and_no_administrator_weaker(ada, cast):
    clerk = made(ada, "clerk", "curator")
    account = User.objects.get(username="clerk")
    account.user_permissions.set(Permission.objects.filter(content_type__app_label="auth"))
    own = f"/admin/auth/user/{account.pk}/change/"
    powers = {"is_superuser": "on", "groups": list(Group.objects.values_list("pk", flat=True))}
    form = {"username": "clerk", "first_name": "Clara", "is_active": "on", **powers}
    form |= {"date_joined_0": "2026-01-05", "date_joined_1": "10:11:12"}
    assert clerk.post(own, form).status_code == 302
    account.refresh_from_db()
    assert (account.first_name, account.is_superuser) == ("Clara", False)
    assert [group.name for group in account.groups.all()] == ["curator"]
    theirs = f"/admin/auth/user/{cast['ada'].pk}/"
    new = {"usable_password": "true", "password1": PASSWORD, "password2": PASSWORD}
    assert clerk.post(f"{theirs}password/", new).status_code == 403
    assert clerk.post(f"{theirs}change/", form).status_code == 403
    assert clerk.post(f"{theirs}delete/", {"post": "yes"}).status_code == 403
    assert User.objects.get(pk=cast["ada"].pk).username == "ada"


def test_a_refused_sign_in_is_logged_on_one_line(client, cast, caplog):
    client.post(
        "/admin/login/", {"username": "rita\nroot", "password": "x"}, REMOTE_ADDR="192.0.2.7"
    )
    (line,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert "rita\\nroot" in line
    assert "192.0.2.7" in line
    assert "\n" not in line
