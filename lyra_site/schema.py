"""What drf-spectacular cannot find out by itself: how a token is sent, and how requests are
refused. Importing this module registers the former; REST_FRAMEWORK names the latter."""

from typing import Any, cast

from drf_spectacular.extensions import (
    OpenApiAuthenticationExtension,
    OpenApiSerializerExtension,
)
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ComponentRegistry, ResolvedComponent
from rest_framework.exceptions import PermissionDenied

from corrections.requests import RequestSerializer
from corrections.serializers import RefusalSerializer
from lyra_site.errors import DatabaseAway
from lyra_site.middleware import longest_body
from lyra_site.permissions import any_of
from lyra_site.roles import ROLES

# By serializer field, as deep as what was sent; DRF keeps lists for the sentences.
FIELD_ERRORS = {
    "type": "object",
    "description": "What is wrong, by field, nested as what was sent is: sentences in a list. "
    "“non_field_errors” is about the whole.",
    "additionalProperties": {
        "oneOf": [
            {"type": "array", "items": {"type": "string"}},
            {"$ref": "#/components/schemas/FieldErrors"},
        ]
    },
    "example": {"pairs": {"0": {"hypothesis": ["This field is required."]}}},
}
RETRY_AFTER = {
    "description": "Seconds to wait before asking again. Not sent where waiting does not help.",
    "schema": {"type": "integer"},
}


class TokenScheme(OpenApiAuthenticationExtension):
    """How the schema describes Token."""

    target_class = "lyra_site.authentication.Token"
    name = "token"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {
            "type": "apiKey",
            "in": "header",
            "name": "Authorization",
            "description": "The word “Token”, a space, and a token made on /tokens or by "
            "`manage.py tokens issue`.",
        }


class ExactObjects(OpenApiSerializerExtension):
    """An answer holds every property that it may hold; a request holds no others, see
    `corrections.requests`."""

    target_class = "rest_framework.serializers.Serializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: AutoSchema, direction: str) -> dict[str, Any]:
        schema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        if direction == "response":
            return {**schema, "required": sorted(schema["properties"])}
        if isinstance(self.target, RequestSerializer):
            schema.pop("description", None)  # its docstring
            return {**schema, "additionalProperties": False}
        return cast(dict[str, Any], schema)


class OperationSchema(AutoSchema):
    """Adds to every operation the refusals that its kind meets. What is particular to one, such as
    what a 409 means, is said where the operation is."""

    def get_description(self) -> str:  # type: ignore[override]
        """Only what `extend_schema` says; docstrings are for readers of the code."""
        return ""

    def get_operation(
        self,
        path: str,
        path_regex: str,
        path_prefix: str,
        method: str,
        registry: ComponentRegistry,
    ) -> dict[str, Any] | None:
        operation = super().get_operation(path, path_regex, path_prefix, method, registry)
        if operation is None:
            return None
        refusals = {
            status: self._refusal(when, says)
            for status, (when, says) in self._refusals(operation).items()
        }
        if wrong := _wrong(operation):
            refusals["400"] = self._field_errors(wrong)
        responses = refusals | operation["responses"]
        responses["503"]["headers"] = {"Retry-After": RETRY_AFTER}
        return {**operation, "responses": dict(sorted(responses.items()))}

    def _refusals(self, operation: dict[str, Any]) -> dict[str, tuple[str, str]]:
        """Status → (when, what it says), for all that this operation has in common with others."""
        found = {
            "401": ("There is no token, or it is wrong, revoked or expired.", "Invalid token."),
            "403": (
                f"Your role does not allow it. It takes one of these: {self._roles()}.",
                str(PermissionDenied.default_detail),
            ),
            "503": (
                "The database cannot be reached or written just now, or the server's disk is full.",
                str(DatabaseAway.default_detail),
            ),
        }
        asked = _asked(operation)
        if any(place == "path" for place, _ in asked):
            found["404"] = ("There is none of this number.", "Not found.")
        if "requestBody" in operation:
            limit = longest_body(self.path)
            found["413"] = (
                "The body is too large.",
                f"The body is {limit + 1} bytes; at most {limit} are accepted.",
            )
            found["415"] = (
                f"The Content-Type is not {' or '.join(operation['requestBody']['content'])}.",
                'Unsupported media type "text/plain" in request.',
            )
        return found

    def _roles(self) -> str:
        needed = cast(Any, self.view).required_permission
        permissions = any_of(needed, self.method)
        roles = [role for role, may in ROLES.items() if not set(permissions).isdisjoint(may)]
        return ", ".join([*roles, "administrator"])

    def _refusal(self, when: str, says: str) -> dict[str, Any]:
        return _json(when, {"schema": self._detail(), "example": {"detail": says}})

    def _field_errors(self, when: str) -> dict[str, Any]:
        component = ResolvedComponent(
            name="FieldErrors",
            type=ResolvedComponent.SCHEMA,
            schema=FIELD_ERRORS,
            object="FieldErrors",
        )
        self.registry.register_on_missing(component)
        return _json(when, {"schema": {"oneOf": [component.ref, self._detail()]}})

    def _detail(self) -> dict[str, str]:
        return cast(dict[str, str], self.resolve_serializer(RefusalSerializer(), "response").ref)


def _asked(operation: dict[str, Any]) -> set[tuple[str, str]]:
    """(place, name) of the operation's parameters."""
    return {(each["in"], each["name"]) for each in operation.get("parameters", ())}


def _wrong(operation: dict[str, Any]) -> str:
    """When what is asked for can be wrong; empty where nothing can."""
    if "application/json" in operation.get("requestBody", {"content": ()})["content"]:
        return "The body is not JSON, or a field of it is missing or wrong."
    if "requestBody" in operation:
        return "There is no file, it cannot be read, or a parameter is unknown or wrong."
    if any(place == "query" for place, _ in _asked(operation)):
        return "A parameter is unknown, or has a value that it cannot have."
    return ""


def _json(description: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": content}}
