"""Requests of the REST API, read to the letter: names that are known, and JSON's own types.

Here because every app that answers requests may import it.
"""

from collections.abc import Iterable, Mapping, Set
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from django.http import QueryDict
from rest_framework import serializers

LONGEST_NAME = 60  # characters of an unknown name that are said back
MOST_NAMES = 20


def unknown_names(given: Iterable[str], known: Set[str], what: str) -> dict[str, list[str]]:
    """Errors by name for what is `given` and not `known`; `what` names are of, e.g. “field”."""
    unknown = sorted(set(given) - known)[:MOST_NAMES]
    return {name[:LONGEST_NAME]: [_unknown(name, known, what)] for name in unknown}


def _unknown(name: str, known: Set[str], what: str) -> str:
    near = get_close_matches(name[:LONGEST_NAME], known, n=1)
    return f"Unknown {what}. Did you mean “{near[0]}”?" if near else f"Unknown {what}."


def read_query(
    given: QueryDict, known: serializers.Serializer[Any], *, also: Set[str] = frozenset()
) -> dict[str, Any]:
    """The parameters of a query string by name, as the fields of `known` read them.

    What is unknown, and not in `also` either, empty or given twice is refused as a wrong value is.
    """
    if twice := [name for name in given if len(given.getlist(name)) > 1]:
        raise serializers.ValidationError({name[:LONGEST_NAME]: ["Given twice."] for name in twice})
    known.initial_data = given.dict()  # no form, where an empty value would be none
    errors = unknown_names(given, known.fields.keys() | also, "parameter")
    if not known.is_valid():
        errors = {**known.errors, **errors}
    if errors:
        raise serializers.ValidationError(errors)
    return dict(known.validated_data)


class RequestSerializer(serializers.Serializer[Any]):
    """A body, or an object inside one. Fields that it does not know are refused: what somebody
    meant to be checked, and misspelt, would otherwise not be."""

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.fields)

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.keys() <= self._known:
            return super().to_internal_value(data)
        unknown = unknown_names(data, self._known, "field")
        try:
            super().to_internal_value(data)
        except serializers.ValidationError as error:
            raise serializers.ValidationError({**_by_field(error), **unknown}) from error
        raise serializers.ValidationError(unknown)


def _by_field(error: serializers.ValidationError) -> dict[str, Any]:
    return error.detail if isinstance(error.detail, dict) else {"non_field_errors": error.detail}


class NumberField(serializers.FloatField):
    """A JSON number: neither a string that looks like one nor a boolean."""

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        return super().to_internal_value(data)


class WholeNumberField(serializers.IntegerField):
    """A JSON integer: neither a string that looks like one nor a boolean."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid")
        return super().to_internal_value(data)


class TrueFalseField(serializers.BooleanField):
    """A JSON boolean: neither a word that means one nor a number."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class TextField(serializers.CharField):
    """A JSON string: no number that could be written as one."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return data.strip() if self.trim_whitespace else data


class ChoiceField(serializers.ChoiceField):
    """One of the texts that are allowed; of another no more than its beginning is said back."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, str) and len(data) <= LONGEST_NAME:
            return super().to_internal_value(data)
        return self.fail("invalid_choice", input=str(data)[:LONGEST_NAME])
