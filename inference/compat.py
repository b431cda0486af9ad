"""The upstream client's contract, and the first documents' adapter endpoints, to the letter.

The client sends no auth header, follows no redirects, repeats every HTTP error status and never an
answer of 200. So what repeating mends is 503 with Retry-After (an overload, a database away), what
it does not mend is 200 with `ok: false` (a model that cannot be loaded or that fails, a refusal to
promote), wrong input is 422 with `detail`, and whoever may not call gets 401 or 403.

Who may call: a token whose user has the permission, or, with LYRA_COMPAT_OPEN=1, anyone on this
host's loopback whose request no proxy has forwarded. The open door is for predictions and for
looking: load and unload change what everybody is answered by, so they need a releaser's token
always and answer 200 `ok: false` with the reason without one. Session cookies are not accepted
here: a page in a signed-in browser could otherwise post to these paths.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import ParseError, UnsupportedMediaType
from rest_framework.parsers import BaseParser
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adapters_app import registry
from adapters_app.api import signed_in
from adapters_app.models import AdapterVersion, Promotion
from corrections.api import AnyAccept
from inference import engine, sampling, tallies
from inference.batching import ForwardFailed, Overloaded
from inference.views import DirectView, overloaded

PROMOTE = "adapters_app.promote_adapter"
FORWARDING_HEADERS = (  # as WSGI calls them
    "HTTP_FORWARDED",
    "HTTP_VIA",
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_X_FORWARDED_SERVER",
    "HTTP_X_REAL_IP",
)
# Faults of the server that the same request would meet again; Overloaded is none of them.
LASTING_FAULTS = (engine.EngineUnavailable, ForwardFailed)
_MISSING = object()


class Unprocessable(Exception):
    """422: `detail` lists what is wrong and where, as the upstream's own server does."""

    def __init__(self, detail: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(detail)
        self.detail = list(detail)


def is_open(meta: Mapping[str, Any]) -> bool:
    """Whether a request may come in without a token: `meta` is its WSGI environment."""
    if not settings.LYRA_COMPAT_OPEN:
        return False
    if any(header in meta for header in FORWARDING_HEADERS):
        return False
    try:
        peer = ipaddress.ip_address(meta.get("REMOTE_ADDR", ""))
    except ValueError:  # e.g. a Unix socket: whoever is behind it, we cannot tell
        return False
    return (getattr(peer, "ipv4_mapped", None) or peer).is_loopback


class OpenOrPermitted(BasePermission):
    """The open door, or a user with the view's `required_permission`."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        return bool(view.admits(request.user, request.META))  # type: ignore[attr-defined]


class AlwaysJson(AnyAccept):
    """Answer JSON whatever the Accept header says, as the upstream's server does."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        essence = (request.content_type or "").partition(";")[0].strip().lower()
        return next(iter(parsers)) if essence == "application/json" else None


class CompatView(DirectView):
    permission_classes = [OpenOrPermitted]
    content_negotiation_class = AlwaysJson
    names_may_repeat = True  # in an object of the body, as for the upstream's own server

    @classmethod
    def admits(cls, user: User | AnonymousUser, meta: Mapping[str, Any]) -> bool:
        return is_open(meta) or super().admits(user, meta)

    def get_authenticators(self) -> list[BaseAuthentication]:
        """Whatever is configured but sessions."""
        return [each for each in super().get_authenticators() if not _is_session(each)]

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, ParseError):
            exc = Unprocessable([_wrong("json_invalid", [], str(exc.detail))])
        elif isinstance(exc, UnsupportedMediaType):
            message = "Input should be JSON, sent as application/json"
            exc = Unprocessable([_wrong("model_attributes_type", [], message)])
        elif isinstance(exc, Overloaded):
            exc = overloaded(exc)
        if isinstance(exc, Unprocessable):
            return Response({"detail": exc.detail}, status=status.HTTP_422_UNPROCESSABLE_ENTITY)
        return super().handle_exception(exc)


def _is_session(authenticator: BaseAuthentication) -> bool:
    return isinstance(authenticator, SessionAuthentication)


class HealthView(CompatView):
    """Open to everybody: it says nothing that a refusal would not."""

    permission_classes = []

    def get_authenticators(self) -> list[BaseAuthentication]:
        return []

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        loaded = engine.loaded()
        models = {"embedding": loaded.embedding, "nli": loaded.nli}
        return Response({"status": "ok", "models_loaded": models})


class WarmupView(CompatView):
    parser_classes = []  # it takes no body and looks at none

    @extend_schema(exclude=True)
    def post(self, request: Request) -> Response:
        try:
            engine.warm(embedding=True)
        except LASTING_FAULTS as error:
            return Response({"ok": False, "message": str(error)})
        return Response({"ok": True, "message": "All models loaded"})


class CompatNliView(CompatView):
    """`confidence` and the label it belongs to are raw: the client calibrates by itself."""

    @extend_schema(exclude=True)
    def post(self, request: Request) -> Response:
        return Response(self.answer_to(request.data))

    @staticmethod
    def answer_to(data: Any) -> Mapping[str, Any]:
        """Read a request's data, answer it, count the answer and draw from it."""
        ids, pairs = _read_pairs(data)
        try:
            answer = engine.answer(engine.ACTIVE, pairs)
        except LASTING_FAULTS as error:
            return {"ok": False, "results": [], "error": str(error)}
        tallies.count(answer, raw=True)
        sampling.draw(answer, pairs, raw=True)
        results = [
            {
                "pair_id": pair_id,
                "label": result.raw_label.value,
                "confidence": result.raw_confidence,
                "raw_label": result.raw_label.value,
            }
            for pair_id, result in zip(ids, answer.results, strict=True)
        ]
        return {"ok": True, "results": results, "error": None}


class EmbedView(CompatView):
    @extend_schema(exclude=True)
    def post(self, request: Request) -> Response:
        return Response(self.answer_to(request.data))

    @staticmethod
    def answer_to(data: Any) -> Mapping[str, Any]:
        """Read a request's data and answer it."""
        texts, batch_size = _read_texts(data)
        try:
            vectors = engine.embed(texts, batch_size)
        except LASTING_FAULTS as error:
            return {"ok": False, "embeddings": [], "error": str(error)}
        return {"ok": True, "embeddings": vectors.tolist(), "error": None}


class AdapterStatusView(CompatView):
    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        version = registry.serving().version
        return Response(
            {
                "adapter_loaded": version is not None,
                "adapter_path": version.name if version else None,
                "base_model": settings.LYRA_BASE_MODEL,
            }
        )


class ReleaseView(CompatView):
    """Load or unload: whoever may not is told so in the body, unless nobody let them in at all."""

    required_permission = PROMOTE
    permission_classes = [OpenOrPermitted]

    def check_permissions(self, request: Request) -> None:
        if not request.user.is_authenticated:
            super().check_permissions(request)

    def refusal(self, request: Request) -> str:
        """Why this caller may not release; empty if they may."""
        if request.user.has_perm(PROMOTE):
            return ""
        return (
            "Loading and unloading adapters needs the token of a user who may promote "
            f"({PROMOTE}); send it as “Authorization: Token …”."
        )


class AdapterLoadView(ReleaseView):
    """Promote the named version, or the last promoted one; idempotent."""

    @extend_schema(exclude=True)
    def post(self, request: Request) -> Response:
        name = _read_adapter_path(request.data)
        if refusal := self.refusal(request):
            return _load_refused(refusal)
        try:
            version = _last_promoted() if name is None else registry.find_version(name)
            serving = registry.serving()
            if serving.version == version:
                return _loaded(version, f"{version.name} serves already.")
            registry.promote(
                version,
                by=signed_in(request),
                reason="Asked for through /nli/adapter/load.",
                expected_revision=serving.revision,
            )
        except (registry.VersionUnknown, registry.PromotionRefused) as error:
            return _load_refused(str(error))
        return _loaded(version, f"{version.name} serves now.")


class AdapterUnloadView(ReleaseView):
    """Roll back to the base; idempotent."""

    parser_classes = []

    @extend_schema(exclude=True)
    def post(self, request: Request) -> Response:
        if refusal := self.refusal(request):
            return Response({"ok": False, "message": refusal})
        serving = registry.serving()
        if serving.version is None:
            return Response({"ok": True, "message": "The base model serves already."})
        try:
            registry.rollback(
                by=signed_in(request),
                reason="Asked for through /nli/adapter/unload.",
                expected_revision=serving.revision,
                to="base",
            )
        except registry.PromotionRefused as error:
            return Response({"ok": False, "message": str(error)})
        return Response({"ok": True, "message": "The base model serves now."})


def _last_promoted() -> AdapterVersion:
    last = (
        Promotion.objects.filter(action=Promotion.Action.PROMOTE).select_related("version").first()
    )
    if last is None or last.version is None:
        raise registry.PromotionRefused("No version was ever promoted; name one in adapter_path.")
    return last.version


def _loaded(version: AdapterVersion, message: str) -> Response:
    return Response({"ok": True, "adapter_path": version.name, "message": message})


def _load_refused(message: str) -> Response:
    return Response({"ok": False, "adapter_path": None, "message": message})


# --- Reading bodies: upstream's own names for what is wrong ---------------------------------------


def _wrong(
    kind: str, where: Sequence[str | int], message: str, given: Any = None
) -> dict[str, Any]:
    return {"type": kind, "loc": ["body", *where], "msg": message, "input": given}


def _read_object(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise Unprocessable([_wrong("model_attributes_type", [], "Input should be a JSON object")])
    return data


def _read_list(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key, _MISSING)
    if value is _MISSING:
        raise Unprocessable([_wrong("missing", [key], "Field required")])
    if not isinstance(value, list):
        raise Unprocessable([_wrong("list_type", [key], "Input should be a valid list")])
    if len(value) > settings.LYRA_MAX_PAIRS:
        message = f"List should have at most {settings.LYRA_MAX_PAIRS} items, not {len(value)}"
        raise Unprocessable([_wrong("too_long", [key], message)])
    return value


def _read_pairs(body: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """Ids and (premise, hypothesis) pairs; every fault of every pair is told at once."""
    rows = _read_list(_read_object(body), "pairs")
    faults: list[dict[str, Any]] = []
    ids, pairs = [], []
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            message = "Input should be a JSON object"
            faults.append(_wrong("model_attributes_type", ["pairs", index], message))
            continue
        faults += _text_faults(row, "pair_id", ["pairs", index], required=False)
        faults += _text_faults(row, "premise", ["pairs", index])
        faults += _text_faults(row, "nli_hypothesis", ["pairs", index])
        ids.append(row.get("pair_id", "unknown"))
        pairs.append((row.get("premise", ""), row.get("nli_hypothesis", "")))
    if faults:
        raise Unprocessable(faults)
    return ids, pairs


def _read_texts(body: Any) -> tuple[list[str], int]:
    data = _read_object(body)
    texts = _read_list(data, "texts")
    faults = [
        fault
        for index in range(len(texts))
        for fault in _text_fault(texts[index], ["texts", index])
    ]
    batch_size = data.get("batch_size", 8)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        faults.append(_wrong("int_type", ["batch_size"], "Input should be a valid integer"))
    elif not 1 <= batch_size <= 64:
        faults.append(_wrong("range", ["batch_size"], "Input should be from 1 to 64"))
    if faults:
        raise Unprocessable(faults)
    return texts, batch_size


def _read_adapter_path(body: Any) -> str | None:
    """The name in the body; None where it has none or null. No body at all is read as {}."""
    value = _read_object(body).get("adapter_path")
    if value is None:
        return None
    if faults := _text_fault(value, ["adapter_path"]):
        raise Unprocessable(faults)
    return str(value)


def _text_faults(
    row: Mapping[str, Any], key: str, where: Sequence[str | int], *, required: bool = True
) -> list[dict[str, Any]]:
    if key in row:
        return _text_fault(row[key], [*where, key])
    return [_wrong("missing", [*where, key], "Field required")] if required else []


def _text_fault(value: Any, where: Sequence[str | int]) -> list[dict[str, Any]]:
    if not isinstance(value, str):
        return [_wrong("string_type", where, "Input should be a valid string")]
    if len(value) > settings.LYRA_MAX_CHARS:
        message = (
            f"String should have at most {settings.LYRA_MAX_CHARS} characters, not {len(value)}"
        )
        return [_wrong("string_too_long", where, message)]
    return []
