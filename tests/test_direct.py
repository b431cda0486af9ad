"""Predictions that are answered past Django: as the long way answers them, refusals included."""

import gc
import io
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.util import setup_testing_defaults

import pytest
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import OperationalError, close_old_connections
from django.urls import resolve
from knox.models import AuthToken

from adapters_app.models import PredictionTally
from corrections.models import AuditSample
from inference import admission, compat, engine, monitoring, sampling, tallies
from inference.batching import ForwardFailed, Overloaded
from lyra_site import direct
from tests.versions import PAIR, promote

pytest_plugins = ("tests.serving",)

BODY = {"pairs": [PAIR]}
UPSTREAM_PAIR = {
    "pair_id": "e1",
    "premise": PAIR["premise"],
    "nli_hypothesis": PAIR["hypothesis"],
}
UPSTREAM = {
    "/nli": {"pairs": [UPSTREAM_PAIR]},
    "/ml/nli": {"pairs": [UPSTREAM_PAIR]},
    "/embed": {"texts": ["rain"]},
    "/ml/embed": {"texts": ["rain"]},
}


@dataclass
class Door:
    """A web process as WSGI sees it, and what a client of it sends unless told otherwise;
    `long_ways` are the requests that Django got."""

    token: str  # empty: none is sent
    path: str = "/api/v1/nli"
    body: Any = field(default_factory=lambda: BODY)
    long_ways: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._django = get_wsgi_application()
        self._direct = direct.Direct(self._site)

    def _site(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        self.long_ways.append(environ["PATH_INFO"])
        return self._django(environ, start_response)

    def ask(self, body: Any = None, **changes: Any) -> tuple[str, dict[str, str], bytes]:
        """Status, headers and body, by the short way where it is open."""
        return self._ask(self._direct, body, changes)

    def ask_django(self, body: Any = None, **changes: Any) -> tuple[str, dict[str, str], bytes]:
        return self._ask(self._django, body, changes)

    def _ask(self, application: Any, body: Any, changes: dict[str, Any]) -> Any:
        body = self.body if body is None else body
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        environ = {
            "PATH_INFO": self.path,
            "REQUEST_METHOD": "POST",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(sent)),
            "HTTP_HOST": "testserver",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.input": io.BytesIO(sent),
        }
        if self.token:
            environ["HTTP_AUTHORIZATION"] = f"Token {self.token}"
        environ |= changes
        setup_testing_defaults(environ)
        told: list[Any] = []
        answer = application(environ, lambda status, headers, *_: told.extend((status, headers)))
        try:
            whole = b"".join(answer)
        finally:
            getattr(answer, "close", lambda: None)()
        status, headers = told
        assert len(dict(headers)) == len(headers)
        return status, dict(headers), whole


@pytest.fixture(autouse=True)
def one_connection() -> Iterator[None]:
    """A request does not end the test's transaction, as with Django's own client for tests."""
    signals = (request_started, request_finished)
    for signal in signals:
        signal.disconnect(close_old_connections)
    yield
    for signal in signals:
        signal.connect(close_old_connections)


@pytest.fixture
def door(on_tiny, cast) -> Door:
    """That has answered one request, so that the short way is open to the next like it."""
    return known(Door(AuthToken.objects.create(cast["alice"])[1]))


def known(door: Door) -> Door:
    assert door.ask()[0] == "200 OK"
    assert door.long_ways
    door.long_ways.clear()
    return door


def test_every_door_to_the_model_has_a_short_way():
    assert set(direct.VIEWS) == admission.PATHS
    for path, view in direct.VIEWS.items():
        assert resolve(path).func.view_class is view


def test_an_answer_is_what_django_would_have_sent_without_asking_it(door):
    assert door.ask() == door.ask_django()
    several = {"pairs": [PAIR | {"page_id": "p"}] * 3, "adapter": "base"}
    assert door.ask(several) == door.ask_django(several)
    assert not door.long_ways


def test_what_is_answered_is_counted_and_drawn(door, settings):
    settings.LYRA_AUDIT_SHARE = 1.0
    tallies.flush()
    sampling.flush()
    before = sum(PredictionTally.objects.values_list("count", flat=True))
    drawn = AuditSample.objects.count()
    door.ask({"pairs": [PAIR] * 3})
    assert tallies.flush() == 3
    sampling.flush()
    assert not door.long_ways
    assert sum(PredictionTally.objects.values_list("count", flat=True)) == before + 3
    assert AuditSample.objects.count() > drawn


def test_a_promotion_and_a_token_that_is_revoked_hold_for_the_next_request(
    door, make_version, cast
):
    promote(make_version(), cast["rita"])
    assert json.loads(door.ask()[2])["adapter"] == "v1"
    assert not door.long_ways
    AuthToken.objects.all().delete()
    assert door.ask()[0] == "401 Unauthorized"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b" ", 400),
        (b"{", 400),
        (b'{"pairs": [{"premise": NaN, "hypothesis": "b"}]}', 400),
        (b'{"pairs": [], "pairs": []}', 400),
        (b'{"pairs": [{"premise": "\\ud800", "hypothesis": "b"}]}', 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        ({"pairs": []}, 400),
        ({"pairs": [{"premise": " ", "hypothesis": "b"}]}, 400),
        ({"pairs": [PAIR] * 10_000}, 400),
        ({"pairs": [PAIR], "adapter": "v99"}, 400),
        ({"pairs": [PAIR], "color": "red"}, 400),
        ([1], 400),
    ],
)
def test_what_is_refused_is_refused_in_the_same_words(door, body, status):
    answer = door.ask(body)
    assert answer == door.ask_django(body)
    assert answer[0].startswith(str(status))
    assert json.loads(answer[2])


@pytest.mark.parametrize(
    "credentials",
    [
        "Token x",
        "Token",
        "Token ",
        "Token a b",
        "Token ÿÿ",
        "token x",
        "Basic eDp5",
        "",
        "Token\tx",
    ],
)
def test_strangers_are_refused_in_the_same_words(door, credentials):
    answer = door.ask(HTTP_AUTHORIZATION=credentials)
    assert answer == door.ask_django(HTTP_AUTHORIZATION=credentials)
    assert answer[0] == "401 Unauthorized"
    assert answer[1]["WWW-Authenticate"] == "Token"


def test_who_may_not_predict_is_refused_in_the_same_words(door, cast):
    cast["alice"].groups.clear()
    answer = door.ask()
    assert answer == door.ask_django()
    assert answer[0] == "403 Forbidden"


def test_an_account_that_is_closed_is_refused(door, cast):
    cast["alice"].is_active = False
    cast["alice"].save()
    answer = door.ask()
    assert answer == door.ask_django()
    assert answer[0] == "401 Unauthorized"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Overloaded("4096 pairs are waiting already"), "503 Service Unavailable"),
        (engine.EngineUnavailable("v7 cannot be loaded"), "503 Service Unavailable"),
        (OperationalError("the database is gone"), "503 Service Unavailable"),
        (ZeroDivisionError("a defect"), "500 Internal Server Error"),
    ],
)
def test_what_went_wrong_is_told_and_not_tried_again(door, monkeypatch, caplog, error, status):
    tried = []

    def fail(*_: Any) -> None:
        tried.append(1)
        raise error

    monkeypatch.setattr(engine, "answer", fail)
    answer = door.ask()
    assert answer[0] == status
    assert ("Retry-After" in answer[1]) == status.startswith("503")
    assert len(tried) == 1
    quiet = isinstance(error, Overloaded)
    assert ("django.request" in {each.name for each in caplog.records}) != quiet


@pytest.mark.parametrize("path", ["/api/v1/nli", "/ml/nli"])
def test_what_was_met_is_not_kept(door, monkeypatch, path):
    """A full queue refuses many; their bodies must not wait for the garbage collector."""
    met = []

    class Refused(Overloaded):
        def __init__(self, *_: Any) -> None:
            super().__init__("4096 pairs are waiting already")
            met.append(weakref.ref(self))

    def refuse(*_: Any) -> None:
        raise Refused

    door = known(Door(door.token, path, UPSTREAM.get(path, BODY)))
    monkeypatch.setattr(engine, "answer", refuse)
    gc.collect()
    gc.disable()
    try:
        assert door.ask()[0] == "503 Service Unavailable"
        assert met[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"HTTP_HOST": "elsewhere.example"}, "400 Bad Request"),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, "411 Length Required"),
        ({"CONTENT_TYPE": "text/plain"}, "415 Unsupported Media Type"),
        ({"HTTP_ACCEPT": "text/html"}, "406 Not Acceptable"),
        ({"HTTP_ACCEPT": "application/json; indent=4"}, "200 OK"),
        ({"QUERY_STRING": "a=b"}, None),
        ({"HTTP_COOKIE": "sessionid=x"}, "200 OK"),
        ({"REQUEST_METHOD": "GET"}, "405 Method Not Allowed"),
        ({"PATH_INFO": "/api/v1/nli/"}, "404 Not Found"),
    ],
)
def test_whoever_asks_otherwise_goes_the_long_way(door, changes, status):
    for _ in range(2):
        answer = door.ask(**changes)
        assert answer == door.ask_django(**changes)
        assert status in (None, answer[0])
    assert door.long_ways


def test_a_kind_of_its_own_is_learnt_by_itself(door, settings):
    """What comes over HTTPS is answered with HSTS, what does not is sent there."""
    with_tls = Door(door.token)
    settings.SECURE_SSL_REDIRECT, settings.SECURE_HSTS_SECONDS = True, 60
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    with_tls.__post_init__()  # Django's middleware reads its settings once
    for _ in range(2):
        assert with_tls.ask()[0].startswith("301")
        secure = with_tls.ask(HTTP_X_FORWARDED_PROTO="https", HTTP_X_FORWARDED_FOR="192.0.2.1")
        assert secure[0] == "200 OK"
        assert secure[1]["Strict-Transport-Security"] == "max-age=60"
    assert len(with_tls.long_ways) == 3


def test_what_nothing_reads_may_differ(door):
    for hop in range(3):
        door.ask(HTTP_X_REQUEST_ID=str(hop), HTTP_X_FORWARDED_FOR=f"192.0.2.{hop}")
    assert len(door.long_ways) == 1


def test_no_client_fills_the_memory(door):
    for number in range(3 * direct.KINDS):
        assert door.ask(HTTP_X_NEW=str(number))[0] == "200 OK"
    assert len(door._direct._known) <= direct.KINDS
    for _ in range(2):
        door.long_ways.clear()
        assert door.ask(HTTP_X_LONG="x" * direct.LONGEST_KIND)[0] == "200 OK"
        assert door.long_ways


def test_no_client_says_what_was_met(door):
    for name in ("lyra.met", "LYRA.MET", "lyra-met"):
        assert door.ask(**{"HTTP_" + name: "x"})[0] == "200 OK"


def test_a_cookie_is_for_one_client(on_tiny, cast):
    """No answer that sets one is what others get."""
    _, token = AuthToken.objects.create(cast["alice"])

    def baker(environ: WSGIEnvironment, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Set-Cookie", "a=b"), ("Content-Length", "0")])
        return [b""]

    door = Door(token)
    door._django = baker  # type: ignore[assignment]
    for _ in range(2):
        assert "Set-Cookie" in door.ask()[1]
    assert len(door.long_ways) == 2


def test_no_path_lends_its_headers_to_another(door):
    def signed(environ: WSGIEnvironment, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("X-Path", environ["PATH_INFO"]), ("Content-Length", "0")])
        return [b""]

    new = Door(door.token)
    new._django = signed  # type: ignore[assignment]
    for path in (*direct.VIEWS, *direct.VIEWS):
        assert new.ask(UPSTREAM.get(path, BODY), PATH_INFO=path)[1]["X-Path"] == path
    assert new.long_ways == list(direct.VIEWS)


@pytest.mark.parametrize("length", ["00", "0", ""])
@pytest.mark.parametrize("path", sorted(direct.VIEWS))
def test_a_body_of_no_length_is_refused_in_the_same_words(door, path, length):
    upstream = known(Door(door.token, path, UPSTREAM.get(path, BODY)))
    answer = upstream.ask(b"", CONTENT_LENGTH=length)
    assert answer == upstream.ask_django(b"", CONTENT_LENGTH=length)
    assert answer[0].startswith("4")


# --- Upstream's paths, by a token and by the open door --------------------------------------------


def upstream_door(key: str, path: str, settings, cast) -> Door:
    """Lets in who has a token, or, being open, this machine's programs without one; it has answered
    one request."""
    settings.LYRA_COMPAT_OPEN = key == "open"
    token = "" if key == "open" else AuthToken.objects.create(cast["alice"])[1]
    return known(Door(token, path, UPSTREAM[path]))


@pytest.fixture(params=sorted(UPSTREAM))
def open_door(request, settings, on_tiny, cast) -> Door:
    return upstream_door("open", request.param, settings, cast)


@pytest.fixture(params=sorted(UPSTREAM))
def token_door(request, settings, on_tiny, cast) -> Door:
    return upstream_door("token", request.param, settings, cast)


@pytest.fixture(params=["open", "token"])
def nli_door(request, settings, on_tiny, cast) -> Door:
    return upstream_door(request.param, "/ml/nli", settings, cast)


@pytest.mark.parametrize("key", ["open", "token"])
@pytest.mark.parametrize("path", sorted(UPSTREAM))
def test_upstream_is_answered_as_django_would_without_asking_it(key, path, settings, on_tiny, cast):
    found = upstream_door(key, path, settings, cast)
    answer = found.ask()
    assert answer == found.ask_django()
    assert json.loads(answer[2])["ok"] is True
    assert not found.long_ways


@pytest.mark.parametrize(
    "body",
    [
        {"pairs": []},
        {"pairs": [UPSTREAM_PAIR, {"premise": "", "nli_hypothesis": "a\0b"}] * 3, "model": "x"},
        b'{"pairs": 5, "pairs": [{"premise": "\xc3\xa9", "nli_hypothesis": "\\u00e9"}]}',
    ],
)
def test_whatever_upstream_sends_is_read_alike(nli_door, body):
    answer = nli_door.ask(body)
    assert answer == nli_door.ask_django(body)
    assert json.loads(answer[2])["ok"] is True
    assert not nli_door.long_ways


def test_what_upstream_is_told_is_counted_and_drawn(nli_door, settings, monkeypatch):
    settings.LYRA_AUDIT_SHARE = 1.0
    monkeypatch.setattr(tallies, "_counts", Counter())  # other tests' are of versions that are gone
    sampling.flush()
    drawn = AuditSample.objects.count()
    nli_door.ask({"pairs": [UPSTREAM_PAIR] * 3})
    assert tallies.flush() == 3
    sampling.flush()
    assert not nli_door.long_ways
    assert AuditSample.objects.count() > drawn


@pytest.mark.parametrize(
    "body",
    [
        b" ",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"pairs": NaN}',
        b'{"a": "\\ud800"}',
        {},
        [1],
        {"pairs": 5},
        {"pairs": [5]},
        {"pairs": [{"premise": "a"}]},
        {"pairs": [UPSTREAM_PAIR | {"pair_id": None}, UPSTREAM_PAIR | {"premise": 5}]},
        {"pairs": [UPSTREAM_PAIR | {"premise": "x" * 10_001}]},
        {"pairs": [UPSTREAM_PAIR] * 257},
    ],
)
def test_what_upstream_may_not_send_is_refused_in_the_same_words(nli_door, body):
    answer = nli_door.ask(body)
    assert answer == nli_door.ask_django(body)
    assert answer[0] == "422 Unprocessable Entity"
    assert json.loads(answer[2])["detail"]


@pytest.mark.parametrize(
    "changes",
    [{header: "127.0.0.1"} for header in compat.FORWARDING_HEADERS]
    + [{"REMOTE_ADDR": peer} for peer in ("10.0.0.5", "::ffff:10.0.0.5", "2001:db8::1", "", "x")],
    ids=str,
)
def test_who_may_come_in_without_a_token_is_looked_at_every_time(open_door, changes):
    for _ in range(2):
        refused = open_door.ask(**changes)
        assert refused == open_door.ask_django(**changes)
        assert refused[0] == "401 Unauthorized"
        assert refused[1]["WWW-Authenticate"] == "Token"
        assert open_door.ask()[0] == "200 OK"


@pytest.mark.parametrize(
    "changes",
    [{header: "127.0.0.1"} for header in compat.FORWARDING_HEADERS] + [{"REMOTE_ADDR": "10.0.0.5"}],
    ids=str,
)
def test_one_with_a_token_opens_to_nobody_without(token_door, settings, changes):
    settings.LYRA_COMPAT_OPEN = True
    token = token_door.token
    for _ in range(2):
        token_door.token = token
        assert token_door.ask(**changes)[0] == "200 OK"
        token_door.token = ""
        assert token_door.ask(**changes)[0] == "401 Unauthorized"


def test_a_door_that_is_shut_is_shut_to_whoever_came_in_before(open_door, settings):
    settings.LYRA_COMPAT_OPEN = False
    refused = open_door.ask()
    assert refused == open_door.ask_django()
    assert refused[0] == "401 Unauthorized"


@pytest.mark.parametrize(
    ("credentials", "status"),
    [
        ("Token x", "401 Unauthorized"),
        ("Token", "401 Unauthorized"),
        ("Token a b", "401 Unauthorized"),
        ("token x", "401 Unauthorized"),
        ("Basic eDp5", "200 OK"),
        ("", "200 OK"),
        (" ", "200 OK"),
    ],
)
def test_a_wrong_token_is_refused_at_the_open_door_too(open_door, credentials, status):
    for _ in range(2):
        answer = open_door.ask(HTTP_AUTHORIZATION=credentials)
        assert answer == open_door.ask_django(HTTP_AUTHORIZATION=credentials)
        assert answer[0] == status


def test_who_may_not_predict_comes_in_by_the_open_door_alone(token_door, settings, cast):
    cast["alice"].groups.clear()
    refused = token_door.ask()
    assert refused == token_door.ask_django()
    assert refused[0] == "403 Forbidden"
    settings.LYRA_COMPAT_OPEN = True
    assert token_door.ask()[0] == "200 OK"
    AuthToken.objects.all().delete()
    assert token_door.ask() == token_door.ask_django()
    assert token_door.ask()[0] == "401 Unauthorized"


@pytest.mark.parametrize(
    ("error", "status", "long_ways"),
    [
        (Overloaded("4096 pairs are waiting already"), "503 Service Unavailable", 1),
        (engine.EngineUnavailable("v7 cannot be loaded"), "200 OK", 0),
        (ForwardFailed("out of memory"), "200 OK", 0),
        (OperationalError("the database is gone"), "503 Service Unavailable", 1),
        (ZeroDivisionError("a defect"), "500 Internal Server Error", 1),
    ],
)
def test_what_went_wrong_is_told_upstream_and_not_tried_again(
    open_door, monkeypatch, error, status, long_ways
):
    tried = []

    def fail(*_: Any) -> None:
        tried.append(1)
        raise error

    monkeypatch.setattr(engine, "answer", fail)
    monkeypatch.setattr(engine, "embed", fail)
    refused = monitoring.REFUSED.labels("overloaded")._value
    before = refused.get()
    answer = open_door.ask()
    assert (len(tried), len(open_door.long_ways)) == (1, long_ways)
    assert answer == open_door.ask_django()
    assert answer[0] == status
    assert refused.get() == before + 2 * isinstance(error, Overloaded)
    if status == "200 OK":
        assert json.loads(answer[2])["error"] == str(error)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"HTTP_HOST": "elsewhere.example"}, "400 Bad Request"),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, "411 Length Required"),
        ({"CONTENT_TYPE": "text/plain"}, "422 Unprocessable Entity"),
        ({"CONTENT_TYPE": ""}, "422 Unprocessable Entity"),
        ({"QUERY_STRING": "format=xml"}, None),
        ({"HTTP_COOKIE": "sessionid=x"}, "200 OK"),
        ({"HTTP_COOKIE": "a=b"}, "200 OK"),
        ({"HTTP_COOKIE": 'a="\\000"'}, "400 Bad Request"),
        ({"REQUEST_METHOD": "GET"}, "405 Method Not Allowed"),
        ({"REQUEST_METHOD": "OPTIONS"}, "200 OK"),
        ({"HTTP_ACCEPT": "application/json; indent=4"}, "200 OK"),
    ],
)
def test_whoever_asks_upstreams_paths_otherwise_goes_the_long_way(nli_door, changes, status):
    for _ in range(2):
        answer = nli_door.ask(**changes)
        assert answer == nli_door.ask_django(**changes)
        assert status in (None, answer[0])
    assert len(nli_door.long_ways) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"HTTP_ORIGIN": "https://elsewhere.example"},
        {"HTTP_ACCEPT": "text/html"},
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"CONTENT_TYPE": "Application/JSON; charset=utf-8"},
        {"wsgi.url_scheme": "https"},
    ],
    ids=str,
)
def test_each_kind_of_upstreams_is_learnt_by_itself(nli_door, settings, changes):
    settings.SECURE_HSTS_SECONDS, settings.SECURE_SSL_REDIRECT = 60, True
    nli_door.__post_init__()  # Django's middleware reads its settings once
    known(nli_door)
    for _ in range(2):
        answer = nli_door.ask(**changes)
        assert answer == nli_door.ask_django(**changes)
        assert answer[0] == "200 OK"
    assert ("Strict-Transport-Security" in answer[1]) == ("wsgi.url_scheme" in changes)
    assert len(nli_door.long_ways) == 1
