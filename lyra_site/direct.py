"""Predictions that are asked for as programs ask, answered past Django's request and middleware.

A request object, a dozen of middleware, DRF's view and a response object take one and a half times
what it takes to authenticate, read and answer, and two cores that compute a model have nothing to
spare. So the first request of a kind goes the long way, a kind being all headers that anything
there could read, and the headers of its answer are kept, no more. Each of its kind thereafter is
let in, read and answered by the same functions, and sent with those headers. Whatever is refused
goes the long way all the same, which words it: by `MET` the view learns what was met, so that
nothing is done twice.
"""

import io
from collections.abc import Iterable
from typing import Any, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from django.contrib.auth.models import AnonymousUser, User
from django.core.signals import request_finished, request_started
from rest_framework.exceptions import NotAuthenticated, PermissionDenied
from rest_framework.renderers import JSONRenderer

from inference.compat import CompatNliView, EmbedView
from inference.views import MET, NliView
from lyra_site.authentication import Token
from lyra_site.parsers import StrictJSONParser

VIEWS: dict[str, type[NliView | CompatNliView | EmbedView]] = {
    "/api/v1/nli": NliView,
    "/nli": CompatNliView,
    "/ml/nli": CompatNliView,
    "/embed": EmbedView,
    "/ml/embed": EmbedView,
}
SCHEME = b"Token"
# Of a kind is that they are there, not what they say: nothing on the way reads these, or `_answer`
# does it itself, for every request.
UNREAD = frozenset(
    {
        "HTTP_AUTHORIZATION",
        "HTTP_TRACEPARENT",
        "HTTP_TRACESTATE",
        "HTTP_X_FORWARDED_FOR",
        "HTTP_X_REAL_IP",
        "HTTP_X_REQUEST_ID",
    }
)
READ = (
    "CONTENT_TYPE",
    "PATH_INFO",
    "SCRIPT_NAME",
    "SERVER_NAME",
    "SERVER_PORT",
    "wsgi.url_scheme",
)
KINDS, LONGEST_KIND = 64, 4096  # kept at most; characters of one

Kind = frozenset[tuple[str, str]]
Headers = list[tuple[str, str]]

_token, _parser, _renderer = Token(), StrictJSONParser(), JSONRenderer()


class Direct:
    """WSGI middleware around all of Django; bodies are there as a whole (see `admission`)."""

    def __init__(self, site: WSGIApplication) -> None:
        self._site = site
        self._known: dict[Kind, Headers] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not _is_plain(environ):
            return self._site(environ, start_response)
        kind = _kind(environ)
        headers = self._known.get(kind)
        if headers is None:
            return self._site(environ, self._learn(kind, start_response))
        # Django's own: they let go of connections that are too old or broken.
        request_started.send(sender=Direct, environ=environ)
        try:
            body = _answer(environ)
        except Exception as error:  # raised again where Django handles it
            environ[MET] = error
            return self._site(environ, start_response)
        finally:
            request_finished.send(sender=Direct)
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def _learn(self, kind: Kind, start_response: StartResponse) -> StartResponse:
        """Keeps the headers of an answer of 200 for those that ask alike."""

        def learning(status: str, headers: Headers, *more: Any) -> Any:
            names = {name.lower() for name, _ in headers}
            short = sum(len(name) + len(value) for name, value in kind) <= LONGEST_KIND
            if status.startswith("200 ") and "set-cookie" not in names and short:
                if len(self._known) >= KINDS:
                    self._known.clear()
                self._known[kind] = [
                    (name, value) for name, value in headers if name.lower() != "content-length"
                ]
            return start_response(status, headers, *more)

        return learning


def _is_plain(environ: WSGIEnvironment) -> bool:
    """A body and at most a token: no session, nothing in the query, no wish for another format."""
    words = _credentials(environ)
    return (
        environ.get("PATH_INFO") in VIEWS
        and environ["REQUEST_METHOD"] == "POST"
        and (not words or (len(words) == 2 and words[0] == SCHEME))
        and not environ.get("QUERY_STRING")
        and "HTTP_COOKIE" not in environ
        and ";" not in environ.get("HTTP_ACCEPT", "")
        and isinstance(environ["wsgi.input"], io.BytesIO)
        and environ["wsgi.input"].getbuffer().nbytes > 0
    )


def _credentials(environ: WSGIEnvironment) -> list[bytes]:
    """The words of the header, split as DRF splits them."""
    return cast(str, environ.get("HTTP_AUTHORIZATION", "")).encode("latin-1").split()


def _kind(environ: WSGIEnvironment) -> Kind:
    return frozenset(
        (name, "" if name in UNREAD else value)
        for name, value in environ.items()
        if name in READ or name.startswith("HTTP_")
    )


def _answer(environ: WSGIEnvironment) -> bytes:
    """What the view answers, as it goes over the wire; raises what it would."""
    view = VIEWS[environ["PATH_INFO"]]
    user = _user(environ)
    if not view.admits(user, environ):
        raise PermissionDenied if user.is_authenticated else NotAuthenticated
    asked = _parser.parse(environ["wsgi.input"], parser_context={"view": view})
    return _renderer.render(view.answer_to(asked))


def _user(environ: WSGIEnvironment) -> User | AnonymousUser:
    """Whoever's token it is; nobody without one."""
    if words := _credentials(environ):
        return _token.authenticate_credentials(words[1])[0]
    return AnonymousUser()
