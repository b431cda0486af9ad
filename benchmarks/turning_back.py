"""Our server, except that a request may say how far it goes: a WSGI application for `one_server`.

Steps are functions that a prediction goes through on the direct way as on the long one. Once the
one that the request names has done its work, the request is answered with nothing.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from benchmarks import steps
from lyra_site.wsgi import site  # loads Django, without which models cannot be imported

# isort: split
from django.contrib.auth.models import User

from inference import admission, engine, views
from lyra_site import authentication, direct, parsers

# Step → where the function is found that takes it.
TAKEN_BY: dict[str, tuple[Any, str]] = {
    steps.AUTHENTICATED: (authentication.Token, "authenticate_credentials"),
    steps.PERMITTED: (User, "has_perm"),
    steps.PARSED: (parsers.StrictJSONParser, "parse"),
    steps.VALIDATED: (views, "read_request"),
    steps.COMPUTED: (engine, "answer"),
}
# Taken out of a request: a header that others do not send would make it one of another kind.
ENVIRON = f"HTTP_{steps.HEADER.upper().replace('-', '_')}"


class TurnedBack(BaseException):
    """No Exception: those are answered on the way."""


class _Asked(threading.local):
    """What the request of this thread asks for."""

    way = steps.DIRECT
    step = steps.WHOLE


def _turn_back_at(step: str) -> None:
    if _asked.step == step:
        raise TurnedBack


def _turning_back(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def act(*arguments: Any, **named: Any) -> Any:
        done = function(*arguments, **named)
        _turn_back_at(step)
        return done

    return act


def _admitted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    _turn_back_at(steps.ADMITTED)
    return _ways[_asked.way](environ, start_response)


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    _asked.way, _, _asked.step = environ.pop(ENVIRON, f"{steps.DIRECT} ").partition(" ")
    try:
        _turn_back_at(steps.CONNECTED)
        return _server(environ, start_response)
    except TurnedBack:
        start_response("200 OK", [("Content-Length", "0")])
        return []


_asked = _Asked()
_ways: dict[str, WSGIApplication] = {steps.DIRECT: direct.Direct(site), steps.LONG: site}
_server = admission.Admission(_admitted)
for _step, (_where, _name) in TAKEN_BY.items():
    mock.patch.object(_where, _name, _turning_back(_step, getattr(_where, _name))).start()
