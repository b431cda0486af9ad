"""Content types, sent or asked for, that are refused before Django makes a request of them.

Django looks up whatever encoding they name, also by a parameter as RFC 2231 writes them ("x*="):
it fails where there is none, and Python keeps every name that was ever looked up. It also decodes
query strings by what `charset` names, rot13 included.
"""

import json
import re
from collections.abc import Iterable
from http import HTTPStatus
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from inference.admission import tell

CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1"})
SENT = json.dumps(
    {
        "detail": f"Content-Type: send UTF-8. charset may be one of {', '.join(sorted(CHARSETS))}, "
        "and no parameter may hold an asterisk."
    }
).encode()
ASKED_FOR = json.dumps(
    {"detail": "Accept: the name of a parameter may not hold an asterisk."}
).encode()
ENCODED_PARAMETER = re.compile(r";[^;,=]*\*")


class ContentTypes:
    """415 for a charset that is none of CHARSETS and for parameters with an asterisk, 406 where an
    answer is asked for with such a parameter.

    WSGI middleware around everything else: nothing is read, nothing is looked up.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        sent, asked_for = environ.get("CONTENT_TYPE", ""), environ.get("HTTP_ACCEPT", "")
        if ";" in sent and not is_understood(sent):
            return tell(start_response, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, SENT)
        if ";" in asked_for and ENCODED_PARAMETER.search(asked_for):
            return tell(start_response, HTTPStatus.NOT_ACCEPTABLE, ASKED_FOR)
        return self._application(environ, start_response)


def is_understood(content_type: str) -> bool:
    """Split at each semicolon, also at those within quotes: that finds more parameters than the
    header has, and none of those that name an encoding goes unseen."""
    _, _, parameters = content_type.partition(";")
    return "*" not in parameters and all(map(_is_understood, parameters.split(";")))


def _is_understood(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    if name.strip().lower() != "charset":
        return True
    value = value.strip().lower()
    if value[:1] == value[-1:] == '"':
        value = value[1:-1]
    return value in CHARSETS
