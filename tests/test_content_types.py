"""Content types that Django would look an encoding up for: refused before it, nothing is kept."""

import contextlib
import encodings
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from django.core.wsgi import get_wsgi_application

from lyra_site.content_types import ContentTypes
from tests.test_slow_clients import PATIENCE_S, Server, serving
from tests.tiny import tiny_base

UNDERSTOOD = [
    "",
    "application/json",
    "application/json; charset=utf-8",
    "Application/JSON;CHARSET=UTF-8",
    'text/csv; charset = "utf8" ; header=present',
    "text/plain;charset=US-ASCII",
    "text/plain;charset=latin-1",
    "text/plain; charset=ISO-8859-1;",
    "multipart/form-data; boundary=----WebKitFormBoundaryAZ09'()+_,-./:?",
    'multipart/form-data; boundary="a=b; c"; charset=utf-8',
    "*/*",
]
REFUSED = [
    "text/plain; x*=zzz''%41",
    "text/plain; x* =zzz''%41",
    "text/plain; x*0*=zzz''%41",
    "text/plain; charset*=zzz''%41",
    "text/plain; charset*0=zz; charset*1=z",
    "text/plain; y=\"; x*=zzz''%41",
    "application/json; charset=rot13",
    "application/json; charset=zlib",
    "application/json; charset=zzz",
    "application/json; charset=",
    "application/json; charset",
    "application/json; charset=utf-8; CharSet =zzz",
    'application/json; charset="utf-8;zzz"',
    'application/json; charset="zzz',
    "application/json; charset=<zzz>",
    'application/json; y="a;charset=zzz',
    "a;b;;charset=zzz",
]


def ask(**headers: str) -> tuple[str, bytes]:
    """Status and body, by the site as it is behind the check; both sides keep to the standard."""
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/livez", "QUERY_STRING": ""}
    environ |= {"SCRIPT_NAME": "", "HTTP_HOST": "testserver", "REMOTE_ADDR": "127.0.0.1"} | headers
    setup_testing_defaults(environ)
    told: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        told.append(status)
        return lambda _: None

    site: Any = validator(ContentTypes(get_wsgi_application()))
    with contextlib.closing(site(environ, start_response)) as answer:
        return told[0], b"".join(answer)


@pytest.mark.django_db  # what lets a request through looks after old connections
@pytest.mark.parametrize("content_type", UNDERSTOOD)
def test_what_is_text_is_let_through(content_type: str) -> None:
    assert ask(CONTENT_TYPE=content_type)[0] == "200 OK"


@pytest.mark.parametrize("content_type", REFUSED)
def test_what_names_another_encoding_is_415_and_looked_up_by_nobody(content_type: str) -> None:
    known = set(encodings._cache)
    status, body = ask(CONTENT_TYPE=content_type)
    assert status == "415 Unsupported Media Type"
    assert "charset may be one of ascii, iso-8859-1" in json.loads(body)["detail"]
    assert set(encodings._cache) == known


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("application/json; x*=zzz''%41", "406 Not Acceptable"),
        ("text/html, application/json;q=1; x* =zzz''a", "406 Not Acceptable"),
        ("text/html,application/xml;q=0.9,image/webp,*/*;q=0.8", "200 OK"),
        ("application/json; indent=4, text/*;q=0.1", "200 OK"),
        ("*/*", "200 OK"),
    ],
)
def test_what_is_asked_for_names_no_encoding_either(accept: str, status: str) -> None:
    assert ask(HTTP_ACCEPT=accept)[0] == status


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tiny_base(tmp_path_factory.mktemp("base"))
    home: Path = tmp_path_factory.mktemp("home")
    with serving(home, base, {}) as started:
        yield started


@pytest.mark.parametrize("path", ["/livez", "/nli", "/api/v1/nli", "/admin/", "/nothing"])
def test_a_server_refuses_it_on_every_path(server: Server, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        for content_type in ("text/plain; x*=zzz''%41", "application/json; charset=zzz"):
            connection.request("POST", path, b"{}", {"Content-Type": content_type})
            answer = connection.getresponse()
            assert answer.status == 415
            assert "send UTF-8" in json.load(answer)["detail"]
