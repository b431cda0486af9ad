"""Who is let in at the door of a web process, before Django; over HTTP in test_api_processes."""

import json
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from inference import admission, monitoring


def behind(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """What is behind the door."""
    if environ["REQUEST_METHOD"] == "PUT":
        raise RuntimeError("what should not happen")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"behind the door"]


def ask(path: str, method: str = "POST") -> tuple[str, dict[str, str], bytes]:
    """Status, headers and body of an answer; both sides keep to the WSGI standard."""
    environ = {"SCRIPT_NAME": "", "PATH_INFO": path, "REQUEST_METHOD": method, "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    told: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        told.update(status=status, headers=dict(headers))
        return lambda _: None

    door: Any = validator(admission.Admission(validator(behind)))
    with closing(door(environ, start_response)) as answer:
        body = b"".join(answer)
    return told["status"], told["headers"], body


@contextmanager
def all_seats_taken(settings: Any) -> Iterator[None]:
    predicting = settings.LYRA_THREADS - settings.LYRA_SPARE_THREADS
    for _ in range(predicting):
        assert admission.seats().acquire(blocking=False)
    try:
        yield
    finally:
        admission.seats().release(predicting)


@pytest.mark.parametrize("path", sorted(admission.PATHS))
def test_too_many_predictions_are_told_when_to_come_back(path, settings):
    """Nothing else is: some threads stay free for it."""
    counted = monitoring.REFUSED.labels("overloaded")._value
    before = counted.get()
    with all_seats_taken(settings):
        status, headers, body = ask(path)
        assert ask("/livez")[2] == b"behind the door"
    assert (status, headers["Retry-After"]) == ("503 Service Unavailable", "1")
    assert "Too many predictions" in json.loads(body)["detail"]
    assert int(headers["Content-Length"]) == len(body)
    assert counted.get() == before + 1
    assert ask(path)[0] == "200 OK"


def test_a_seat_is_given_back_whatever_becomes_of_the_request(settings):
    for _ in range(settings.LYRA_THREADS + 1):
        with pytest.raises(RuntimeError, match="should not happen"):
            ask("/api/v1/nli", "PUT")
    assert ask("/api/v1/nli")[0] == "200 OK"


def test_a_body_that_is_too_large_or_has_no_length_is_left_to_django(settings):
    """Which refuses it unread."""

    class Unreadable:
        def read(self, *_: int) -> bytes:
            pytest.fail("it was read")

    for length in (str(settings.LYRA_MAX_BODY_BYTES + 1), "", "many", "9" * 5000):
        environ = {"CONTENT_LENGTH": length, "wsgi.input": Unreadable()}
        assert admission._whole_body(environ) is environ["wsgi.input"]


def test_nothing_is_read_for_a_request_that_is_refused(settings):
    class Unreadable:
        def read(self, *_: int) -> bytes:
            pytest.fail("it was read")

    environ = {"PATH_INFO": "/nli", "CONTENT_LENGTH": "10", "wsgi.input": Unreadable()}
    with all_seats_taken(settings):
        answer = admission.Admission(behind)(environ, lambda *_: lambda _: None)
        assert b"Too many predictions" in b"".join(answer)
