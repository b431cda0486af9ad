"""Every URL for every role. A URL that this table does not know makes the test fail."""

import re
from collections.abc import Iterator

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core.management import call_command
from django.urls import URLPattern, URLResolver, get_resolver, resolve
from django.utils import timezone
from knox.models import AuthToken
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory, force_authenticate
from rest_framework.views import APIView

from adapters_app import registry
from adapters_app.models import Serving
from inference import admission
from inference.compat import CompatNliView, EmbedView
from inference.views import NliView
from lyra_site.authentication import Token
from lyra_site.roles import ROLES

pytest_plugins = ("tests.serving",)

# Roles beside `anonymous` and `admin` (who gets in everywhere); eve has an account and no role.
EVERYBODY = {"anonymous", "eve", "alice", "bob", "tom", "rita"}
SIGNED_IN = EVERYBODY - {"anonymous"}
PREDICTS = {"alice", "bob", "tom", "rita"}
SEES_RELEASES = {"tom", "rita"}
SEES_SERVING = {"bob", "tom", "rita"}

# (method, path) → who gets past the door.
MATRIX: dict[tuple[str, str], set[str]] = {
    ("get", "/livez"): EVERYBODY,
    ("get", "/readyz"): EVERYBODY,
    ("get", "/metrics"): SEES_SERVING,
    ("get", "/api/v1/schema"): SIGNED_IN,
    ("post", "/api/v1/nli"): PREDICTS,
    ("get", "/api/v1/stats"): SEES_SERVING,
    # Who sends corrections reads those alone: tests/test_corrections_api.py looks inside.
    ("get", "/api/v1/corrections"): {"alice", "bob"},
    ("post", "/api/v1/corrections"): {"alice", "bob"},
    ("get", "/api/v1/corrections/1"): {"alice", "bob"},
    ("patch", "/api/v1/corrections/1"): {"bob"},
    ("get", "/api/v1/corrections/export"): {"bob"},
    ("post", "/api/v1/corrections/import"): {"bob"},
    ("post", "/api/v1/corrections/1/review"): {"bob"},
    ("post", "/api/v1/corrections/review"): {"bob"},
    ("get", "/api/v1/audit-samples"): {"bob"},
    ("get", "/api/v1/audit-samples/1"): {"bob"},
    ("post", "/api/v1/audit-samples/1/answer"): {"bob"},
    ("post", "/api/v1/audit-samples/1/skip"): {"bob"},
    ("get", "/api/v1/training-runs"): SEES_RELEASES,
    ("post", "/api/v1/training-runs"): {"tom"},
    ("get", "/api/v1/training-runs/1"): SEES_RELEASES,
    ("post", "/api/v1/training-runs/1/cancel"): {"tom"},
    ("get", "/api/v1/adapters"): SEES_RELEASES,
    ("get", "/api/v1/adapters/serving"): SEES_SERVING,
    ("post", "/api/v1/adapters/rollback"): {"rita"},
    ("get", "/api/v1/adapters/v1"): SEES_RELEASES,
    ("get", "/api/v1/adapters/v1/card"): SEES_RELEASES,
    ("get", "/api/v1/adapters/v1/download"): {"rita"},
    ("post", "/api/v1/adapters/v1/promote"): {"rita"},
    ("get", "/api/v1/shadow-evaluations"): SEES_RELEASES,
    ("get", "/api/v1/shadow-evaluations/1"): SEES_RELEASES,
    ("get", "/api/v1/calibrations"): SEES_RELEASES,
    ("get", "/api/v1/calibrations/1"): SEES_RELEASES,
    ("get", "/api/v1/promotions"): SEES_RELEASES,
    ("get", "/api/v1/promotions/1"): SEES_RELEASES,
    **{
        (method, prefix + path): who
        for prefix in ("", "/ml")
        for method, path, who in (
            ("get", "/health", EVERYBODY),
            ("post", "/warmup", PREDICTS),
            ("post", "/nli", PREDICTS),
            ("post", "/embed", PREDICTS),
            ("get", "/nli/adapter/status", PREDICTS),
            # A refusal is 200 with ok: false; tests/test_compat.py looks inside.
            ("post", "/nli/adapter/load", SIGNED_IN),
            ("post", "/nli/adapter/unload", SIGNED_IN),
        )
    },
}
# Pages of people: a session, not a token. The admin's own URLs ask its ModelAdmins.
PAGES = {
    "/",
    "/admin/corrections/correction/import/",
    "/tokens",
    "/tokens/x/revoke",
    "/api/v1/docs",
}


def routes(patterns=None, before="/") -> Iterator[str]:
    """Every path of the URL configuration, example values in place of its variables."""
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        text = before + _example(str(pattern.pattern))
        if isinstance(pattern, URLResolver):
            if text != "/admin/":
                yield from routes(pattern.url_patterns, text)
        elif isinstance(pattern, URLPattern):
            yield text


def _example(pattern: str) -> str:
    text = pattern.removeprefix("^").removesuffix(r"\Z").removesuffix("$")
    text = re.sub(r"\(\?P<version>[^)]*\)", "v1", text)
    text = re.sub(r"\(\?P<\w+>[^)]*\)", "1", text)
    return re.sub(r"<[^>]*>", "x", text)


def test_every_url_is_in_the_table():
    known = {path for _, path in MATRIX} | PAGES
    assert set(routes()) == known


@pytest.mark.parametrize(("method", "path"), sorted(MATRIX))
@pytest.mark.parametrize("who", sorted(EVERYBODY | {"ada"}))
def test_the_door(client, as_user, on_tiny, method, path, who):
    caller = client if who == "anonymous" else as_user(who)
    status = getattr(caller, method)(path).status_code
    if who == "ada" or who in MATRIX[method, path]:
        assert status not in {401, 403}
        assert status < 500 or path in {"/readyz"}
    else:
        assert status == (401 if who == "anonymous" else 403)


@pytest.mark.parametrize("path", sorted({path for _, path in MATRIX} | PAGES))
@pytest.mark.parametrize("method", ["head", "options", "put", "patch", "delete", "trace"])
def test_no_method_gets_a_stranger_past_the_door(client, on_tiny, db, method, path):
    status = client.generic(method.upper(), path).status_code
    assert status < 500 or path == "/readyz"
    if path not in {"/livez", "/readyz", "/health", "/ml/health"}:
        assert status in {302, 401, 403, 404, 405}


@pytest.mark.parametrize("who", ["ada", "eve"])
@pytest.mark.parametrize("path", sorted({path for _, path in MATRIX if "/api/" in path}))
def test_a_method_that_a_path_does_not_have_is_405(as_user, on_tiny, path, who):
    has = {method for method, known in MATRIX if known == path}
    for method in {"get", "post", "put", "patch", "delete", "trace"} - has:
        assert as_user(who).generic(method.upper(), path).status_code == 405, method


@pytest.mark.parametrize("needed", [None, "", {}, {"GET": "adapters_app.view_serving"}])
def test_a_method_without_a_permission_is_for_nobody(cast, needed):
    class Forgotten(APIView):
        required_permission = needed

        def post(self, request):
            return Response()

    request = APIRequestFactory().post("/")
    force_authenticate(request, cast["ada"])
    assert Forgotten.as_view()(request).status_code == 403


@pytest.mark.parametrize(("who", "status"), [("alice", 200), ("tom", 200), ("bob", 403)])
def test_of_several_permissions_one_is_enough(cast, who, status):
    class Shared(APIView):
        required_permission = {"GET": ("adapters_app.request_training", "no.such", "")}

        def get(self, request):
            return Response()

    if who == "alice":
        Shared.required_permission = ("no.such", "corrections.add_correction")
    request = APIRequestFactory().get("/")
    force_authenticate(request, cast[who])
    assert Shared.as_view()(request).status_code == status


@pytest.mark.parametrize("path", sorted(PAGES))
def test_pages_ask_strangers_to_sign_in(client, on_tiny, db, path):
    response = client.get(path)
    assert response.status_code == 302
    assert response["Location"].startswith("/admin/login/")


def test_every_admin_page_asks_strangers_to_sign_in(client, db):
    for path in ("/admin/", "/admin/auth/user/", "/admin/jsi18n/", "/admin/anything/"):
        response = client.get(path)
        assert response.status_code == 302, path
        assert "/admin/login/" in response["Location"]


def test_the_admins_of_the_queue_and_of_tokens_are_gone(client, cast):
    client.force_login(cast["ada"])
    for path in ("django_q/schedule/", "django_q/ormq/", "knox/authtoken/", "axes/accessattempt/"):
        assert client.get(f"/admin/{path}").status_code == 404


def test_roles_are_made_and_only_added_to(db):
    caller = Group.objects.get(name="caller")
    extra = Group.objects.get(name="releaser").permissions.get(codename="promote_adapter")
    caller.permissions.add(extra)
    caller.permissions.remove(caller.permissions.get(codename="predict"))
    call_command("migrate", verbosity=0)
    names = {
        f"{p.content_type.app_label}.{p.codename}"
        for p in caller.permissions.select_related("content_type")
    }
    assert names == {*ROLES["caller"], "adapters_app.promote_adapter"}


def test_every_door_to_the_model_counts_who_is_let_in():
    model = {NliView, CompatNliView, EmbedView}
    doors = {path for _, path in MATRIX if getattr(resolve(path).func, "view_class", None) in model}
    assert doors == admission.PATHS


def test_what_every_prediction_asks_of_the_database(db):
    check_hand_written_sql()


def test_what_every_prediction_asks_of_postgresql(on_postgresql):
    check_hand_written_sql()


def check_hand_written_sql() -> None:
    """Who calls, whether they may, and who serves: both databases have to understand it."""
    predict = Permission.objects.get(codename="predict")
    group = Group.objects.create(name="those who ask")
    group.permissions.add(predict)
    member, own, nobody, gone = (User.objects.create_user(name) for name in ("m", "o", "n", "g"))
    chief = User.objects.create_superuser("c")
    member.groups.add(group)
    gone.groups.add(group)
    own.user_permissions.add(predict)
    tokens = {
        user: AuthToken.objects.create(user)[1] for user in (member, own, nobody, gone, chief)
    }
    User.objects.filter(pk=gone.pk).update(is_active=False)

    def who(token: str) -> User:
        return Token().authenticate_credentials(token.encode())[0]

    for user in (member, own, nobody, chief):
        found = who(tokens[user])
        assert found == user
        for field in ("username", "is_active", "is_staff", "is_superuser"):
            assert field in vars(found)  # no query of its own
            assert getattr(found, field) == getattr(user, field)
    predicts = "adapters_app.predict"
    may = {user.username: who(tokens[user]).has_perm(predicts) for user in tokens if user != gone}
    assert may == {"m": True, "o": True, "n": False, "c": True}
    gone.refresh_from_db()
    assert not gone.has_perm(predicts)
    with pytest.raises(AuthenticationFailed, match="inactive"):
        who(tokens[gone])
    asked = who(tokens[member])
    assert [asked.has_perm(f"adapters_app.{name}") for name in ("predict", "no", "predict")] == [
        True,
        False,
        True,
    ]
    AuthToken.objects.filter(user=member).update(expiry=timezone.now())
    AuthToken.objects.filter(user=own).update(expiry=None)
    assert who(tokens[own]) == own
    # A hand that guesses: the first characters are looked up, all of them count.
    altered = tokens[own][:-1] + ("0" if tokens[own][-1] != "0" else "1")
    for wrong in (tokens[member], altered, tokens[own][:15], "zz", "\u00e9", ""):
        with pytest.raises(AuthenticationFailed, match="Invalid token"):
            who(wrong)

    before = registry.answering()
    assert registry.answering() is before
    Serving.objects.update(revision=7)
    assert registry.answering().revision == 7
