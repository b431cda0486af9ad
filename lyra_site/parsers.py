"""The JSON that clients may send: UTF-8, RFC 8259, nothing that storing or answering chokes on."""

import json
import math
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser

from corrections.importers import named_once

LONGEST_INTEGER = 19  # digits; what 64 bits hold


class StrictJSONParser(BaseParser):
    """Refuses, as 400: what is not UTF-8 or not JSON, NaN and infinities, integers beyond 64 bits,
    nesting deeper than the parser's stack, text with lone surrogates, and objects that give a name
    twice, unless the view has `names_may_repeat`: the last would count, whatever the first said."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        body = stream.read()
        lenient = getattr((parser_context or {}).get("view"), "names_may_repeat", False)
        try:
            data = json.loads(
                body.decode(),
                parse_constant=_refuse_constant,
                parse_int=_integer,
                parse_float=_finite,
                object_pairs_hook=None if lenient else named_once,
            )
            if rb"\u" in body:
                # An escape is the only way for half a surrogate pair to get in; it would come out
                # again as an answer that cannot be encoded.
                json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ParseError(
                "JSON parse error: text holds a lone surrogate (\\ud800–\\udfff)"
            ) from error
        except ValueError as error:
            raise ParseError(f"JSON parse error: {error}") from error
        except RecursionError as error:
            raise ParseError("JSON parse error: nested too deeply") from error
        return data


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > LONGEST_INTEGER:
        raise ValueError("an integer does not fit in 64 bits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is out of range")
    return number
