"""Guessed passwords: after a few wrong ones a name is refused from there, and nowhere else."""

from datetime import timedelta

import pytest
from axes.models import AccessAttempt
from django.contrib.auth.models import Group, User
from django.core.checks import run_checks
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from knox.models import AuthToken

from lyra_site.authentication import client_address

PASSWORD = "correct horse"
TRIES, MINUTES = 5, 15
MINUTE = timedelta(minutes=1)


@pytest.fixture(
    params=[
        pytest.param("db", marks=pytest.mark.django_db, id="sqlite"),
        pytest.param("on_postgresql", id="postgresql"),
    ]
)
def rita(request):
    """An account on each of the databases, whose last queries differ."""
    request.getfixturevalue(request.param)
    user = User.objects.create_user("rita", password=PASSWORD)
    user.groups.add(Group.objects.get(name="releaser"))
    return user


def sign_in(password, name="rita", address="192.0.2.7", via=""):
    """What a browser of its own is answered, that connects from the address."""
    forwarded = {"X-Forwarded-For": via} if via else {}
    return Client(headers=forwarded).post(
        "/admin/login/?next=/admin/",
        {"username": name, "password": password},
        REMOTE_ADDR=address,
    )


def guess(times=TRIES, **where):
    return [sign_in(f"guess {number}", **where).status_code for number in range(times)]


def test_after_a_few_wrong_passwords_the_right_one_is_refused_too(rita):
    assert guess() == [200, 200, 200, 200, 429]
    refused = sign_in(PASSWORD)
    assert refused.status_code == 429
    assert refused["Retry-After"] == str(60 * MINUTES)
    page = refused.content.decode()
    assert f"for up to {MINUTES} minutes" in page
    assert "lyra.css" in page


@pytest.mark.parametrize(
    ("hop", "address"),
    [
        ("198.51.100.1:4711", "198.51.100.1"),
        ("[2001:db8:1:2:3::4]:4711", "2001:db8:1:2::"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::"),
        ("unknown", "::"),
    ],
)
def test_a_port_that_the_proxy_adds_is_no_part_of_the_address(rf, settings, hop, address):
    settings.LYRA_PROXIES = 1
    request = rf.get("/", headers={"X-Forwarded-For": f"192.0.2.1, {hop}"})
    assert client_address(request) == address


def test_names_that_no_account_can_have_are_counted_by_as_much_as_one_can(rita):
    """Of 300 characters and of 301, which PostgreSQL would not store."""
    assert guess(times=4, name="x" * 300) == [200] * 4
    assert sign_in("a guess", name="x" * 301).status_code == 429


def test_only_that_name_and_only_from_there(rita, caplog):
    guess()
    assert sign_in(PASSWORD, address="192.0.2.8").status_code == 302
    assert sign_in("a guess", name="bob").status_code == 200
    assert guess(name="nobody here") == [200, 200, 200, 200, 429]  # nor does it tell who exists
    sign_in(PASSWORD)
    assert "password refused, locked: user name 'rita', from 192.0.2.7" in caplog.text


def test_it_ends_by_itself_and_trying_on_prolongs_nothing(rita):
    guess()
    AccessAttempt.objects.update(attempt_time=timezone.now() - timedelta(minutes=MINUTES - 1))
    assert sign_in("one more").status_code == 429
    AccessAttempt.objects.update(attempt_time=AccessAttempt.objects.get().attempt_time - MINUTE)
    assert sign_in(PASSWORD).status_code == 302


def test_the_right_password_in_between_forgets_the_wrong_ones(rita):
    guess(TRIES - 1)
    assert sign_in(PASSWORD).status_code == 302
    assert guess(TRIES - 1) == [200] * (TRIES - 1)


def test_an_administrator_lets_the_name_in(rita):
    guess()
    call_command("axes_reset_username", "rita")
    assert sign_in(PASSWORD).status_code == 302


def signed_in(user):
    """A browser whose session somebody may have got hold of."""
    client = Client()
    client.force_login(user)
    return client


def change(client, old, new="battery staple", address="192.0.2.7"):
    return client.post(
        "/admin/password_change/",
        {"old_password": old, "new_password1": new, "new_password2": new},
        REMOTE_ADDR=address,
    )


def test_whoever_has_a_session_does_not_guess_the_password_by_changing_it(rita):
    thief = signed_in(rita)
    wrong = [change(thief, f"guess {number}").status_code for number in range(TRIES)]
    assert wrong == [200, 200, 200, 200, 429]
    refused = change(thief, PASSWORD)
    assert refused.status_code == 429
    assert refused["Retry-After"] == str(60 * MINUTES)
    page = refused.content.decode()
    assert f"for up to {MINUTES} minutes" in page
    assert "You stay signed in." in page
    assert thief.get("/admin/").status_code == 200
    rita.refresh_from_db()
    assert rita.check_password(PASSWORD)
    assert change(signed_in(rita), PASSWORD, address="192.0.2.8").status_code == 302


def test_wrong_passwords_count_together_wherever_they_are_sent(rita):
    guess(TRIES - 1)
    assert change(signed_in(rita), "one more").status_code == 429
    assert sign_in(PASSWORD).status_code == 429


def test_the_right_old_password_is_taken_and_forgets_the_wrong_ones(rita):
    browser = signed_in(rita)
    for number in range(TRIES - 1):
        page = change(browser, f"guess {number}").content.decode()
        assert "Your old password was entered incorrectly." in page
    assert change(browser, PASSWORD).status_code == 302
    assert browser.get("/admin/").status_code == 200
    assert guess(TRIES - 1) == [200] * (TRIES - 1)
    assert sign_in("battery staple").status_code == 302


def test_no_password_is_kept_of_what_was_sent(rita):
    browser = signed_in(rita)
    for _ in range(2):
        browser.post(
            "/admin/password_change/?old_password=secret0",
            {"old_password": "secret1", "new_password1": "secret2", "new_password2": "secret3"},
        )
    sign_in("secret4")
    kept = [str(vars(attempt)) for attempt in AccessAttempt.objects.all()]
    assert kept
    assert "secret" not in "".join(kept)


def test_tokens_are_not_slowed_down(rita, django_assert_max_num_queries):
    """By no query, and by no lock of their user."""
    guess()
    program = Client(headers={"Authorization": f"Token {AuthToken.objects.create(rita)[1]}"})
    with django_assert_max_num_queries(3) as asked:
        assert program.get("/api/v1/adapters/serving").status_code == 200
    assert "axes" not in str(asked.captured_queries)
    for _ in range(2 * TRIES):
        wrong = Client(headers={"Authorization": "Token " + "a" * 64})
        assert wrong.get("/api/v1/adapters/serving").status_code == 401


@pytest.mark.parametrize(
    ("proxies", "first", "second", "same"),
    [
        (0, "198.51.100.1", "198.51.100.2", True),  # anybody can write that
        (1, "198.51.100.1", "198.51.100.2", False),
        (1, "10.0.0.1, 198.51.100.1", "10.0.0.2, 198.51.100.1", True),
        (2, "198.51.100.1, 10.0.0.1", "198.51.100.2, 10.0.0.1", False),
        (1, "2001:db8:1:2::3", "2001:db8:1:2:ffff::4", True),
        (1, "2001:db8:1:2::3", "2001:db8:1:3::3", False),
        (1, "::ffff:198.51.100.1", "198.51.100.1", True),
        (1, "unknown", "_hidden", True),
        (3, "198.51.100.1", "198.51.100.2", True),  # shorter than it must be
    ],
)
def test_the_address_that_counts(releaser, settings, proxies, first, second, same):
    settings.LYRA_PROXIES = proxies
    guess(via=first)
    assert sign_in(PASSWORD, via=second).status_code == (429 if same else 302)


def test_a_client_without_an_address_is_counted_too(db):
    assert guess(address="")[-1] == 429


def test_a_server_behind_a_proxy_is_told_to_count_its_clients(settings):
    def told():
        return {message.id for message in run_checks()} & {"lyra_site.W004", "lyra_site.E008"}

    assert told() == set()
    settings.HTTPS = True
    assert told() == {"lyra_site.W004"}
    settings.LYRA_PROXIES = 1
    assert told() == set()
    settings.LYRA_PROXIES = -1
    assert told() == {"lyra_site.E008"}
