"""Refusals in a browser: a page that says why and leads on; to programs they stay JSON."""

from unittest import mock

import pytest
from django.contrib.auth.models import Group, User
from django.db import OperationalError, connection
from django.test import Client

from lyra_site import views
from tests.versions import register

pytest_plugins = ("tests.serving",)

HOME = '<a href="/admin/">Go to the first page</a>'
PLAIN_HOME = '<a href="/">Go to the first page</a>'


@pytest.fixture
def rita(client, cast):
    client.force_login(cast["rita"])
    return client


@pytest.fixture
def broken(client, monkeypatch):
    """A client for pages that fall over: what they raise is given to the returned function."""
    client.raise_request_exception = False

    def breaks(error: Exception) -> Client:
        monkeypatch.setattr(views, "redirect", mock.Mock(side_effect=error))
        return client

    return breaks


def test_a_page_that_is_not_there_leads_home(rita):
    for path in ("/nothing", "/admin/nothing/", "/admin/adapters_app/trainingrun/9/change/"):
        answer = rita.get(path)
        page = answer.content.decode()
        assert answer.status_code == 404
        assert "There is no such page" in page
        assert HOME in page
        assert "Welcome" in page  # the header, with signing out
        assert "matches the given query" not in page


def test_the_reason_is_said_where_there_is_one(rita, cast, tiny_model):
    register(cast["tom"], 1, "d" * 64, tiny_model)
    answer = rita.get("/admin/adapters_app/promotion/rollback/?to=v1")
    assert answer.status_code == 404
    assert "That version has never served; promote it instead." in answer.content.decode()


def test_strangers_cost_no_query_and_learn_nothing(client, db, django_assert_num_queries):
    with django_assert_num_queries(0):
        answer = client.get("/nothing<script>")
    page = answer.content.decode()
    assert answer.status_code == 404
    assert HOME in page
    assert "nothing" not in page
    assert "Log out" not in page
    assert not answer.cookies


def test_what_the_role_does_not_allow_is_said_with_who_can_help(rita):
    for path in ("/admin/auth/user/", "/admin/corrections/correction/"):
        answer = rita.get(path)
        page = answer.content.decode()
        assert answer.status_code == 403
        assert "Your role does not allow this" in page
        assert "You are signed in as <strong>rita</strong>" in page
        assert "ask an administrator" in page
        assert HOME in page


def test_a_form_without_its_token_is_refused_in_words(cast):
    strict = Client(enforce_csrf_checks=True)
    for path in ("/admin/login/", "/tokens"):
        answer = strict.post(path, {"days": 1})
        page = answer.content.decode()
        assert answer.status_code == 403
        assert "reload the page" in page
        assert HOME in page
        strict.force_login(cast["rita"])
    assert strict.post("/livez").json() == {"detail": "CSRF verification failed."}


def test_an_address_that_is_none_gets_a_page(rita):
    for answer in (rita.get("/admin/?q=%00"), rita.get("/", HTTP_HOST="elsewhere.example")):
        assert answer.status_code == 400
        assert "cannot make sense" in answer.content.decode()
        assert PLAIN_HOME in answer.content.decode()


def test_a_mistake_of_ours_says_so_and_no_more(broken, cast):
    client = broken(RuntimeError("a secret"))
    client.force_login(cast["rita"])
    answer = client.get("/")
    page = answer.content.decode()
    assert answer.status_code == 500
    assert "Something went wrong on the server" in page
    assert PLAIN_HOME in page
    assert "secret" not in page


def test_a_lost_database_is_a_page_for_people(client, cast):
    client.raise_request_exception = False
    client.force_login(cast["rita"])
    with mock.patch.object(connection, "cursor", side_effect=OperationalError("a secret")):
        answers = [client.get(path) for path in ("/admin/", "/tokens", "/nothing")]
    for answer in answers:
        page = answer.content.decode()
        assert answer.status_code == 503
        assert answer["Retry-After"] == "5"
        assert "The database cannot be reached just now" in page
        assert PLAIN_HOME in page
        assert "secret" not in page


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/nli/x", "/ml/nothing", "/api/v1/nli\0"])
def test_programs_get_json(client, db, path):
    answer = client.get(path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not found."})


def test_an_account_whose_role_was_taken_away_is_not_shown_what_was_there(rita, cast):
    User.objects.get(username="rita").groups.remove(Group.objects.get(name="releaser"))
    page = rita.get("/nothing").content.decode()
    assert "There is no such page" in page
    assert "Welcome" not in page
