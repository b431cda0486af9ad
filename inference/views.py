"""`POST /api/v1/nli`: predictions by what serves, by the base, or by a named version."""

from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import AnonymousUser, User
from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from corrections.api import refusal
from inference import admission, engine, monitoring, sampling, tallies
from inference.batching import ForwardFailed, Overloaded
from inference.serializers import (
    NliAnswerSerializer,
    NliRequestSerializer,
    answer_json,
    read_request,
)


class Unavailable(APIException):
    """503: what should answer cannot do so now. `wait` becomes Retry-After, in seconds."""

    status_code = 503

    def __init__(self, detail: str, *, code: str, wait: int) -> None:
        super().__init__(detail, code)
        self.wait = wait


# In the WSGI environment: what `lyra_site.direct` met. Clients' headers are called HTTP_… there.
MET = "lyra.met"


class DirectView(APIView):
    """A view that `lyra_site.direct` may answer for, by what is said here of who may ask."""

    required_permission = "adapters_app.predict"

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuses what `lyra_site.direct` met before anything of it is done again."""
        # Taken out, and by no name: a circle would keep the body until garbage is looked for.
        if MET in request.META:
            raise request.META.pop(MET)
        super().initial(request, *args, **kwargs)

    @classmethod
    def admits(cls, user: User | AnonymousUser, meta: Mapping[str, Any]) -> bool:
        """Whether this user may ask, by a request of these headers, as WSGI calls them."""
        return user.has_perm(cls.required_permission)


class NliView(DirectView):
    @extend_schema(
        operation_id="nli",
        summary="Judge pairs: does the premise support, refute, or not settle the hypothesis?",
        description="Up to 256 pairs in a request, unless the server is set otherwise; all of them "
        "are answered by one version, which the answer names. `page_id` says which pairs come from "
        "one page or document. Answers of what serves may be drawn for people to judge, where the "
        "server is set to.",
        examples=[
            OpenApiExample(
                "A pair",
                request_only=True,
                value={
                    "pairs": [
                        {
                            "premise": "No increase in falls was seen.",
                            "hypothesis": "The drug made falls more common.",
                        }
                    ]
                },
            ),
            OpenApiExample(
                "Who answers is chosen",
                request_only=True,
                value={
                    "pairs": [
                        {
                            "premise": "No increase in falls was seen.",
                            "hypothesis": "The drug made falls more common.",
                            "page_id": "trial-12",
                        }
                    ],
                    "adapter": "base",
                },
            ),
            OpenApiExample(
                "An answer",
                response_only=True,
                value={
                    "results": [
                        {
                            "label": "refutes",
                            "probabilities": {"supports": 0.04, "refutes": 0.83, "neutral": 0.13},
                            "confidence": 0.83,
                            "raw_confidence": 0.91,
                        }
                    ],
                    "adapter": "v7",
                    "version": 7,
                    "digest": "9f2c61d0" * 8,
                    "calibrator": "v7/c1 (temperature)",
                    "revision": 12,
                },
            ),
        ],
        request=NliRequestSerializer,
        responses={
            200: NliAnswerSerializer,
            503: refusal(
                "Too many predictions are being worked on, what should answer cannot be loaded, "
                "the database cannot be reached or written just now, or the server's disk is full.",
                says="Too many predictions are being worked on; try again in a moment.",
            ),
        },
    )
    def post(self, request: Request) -> Response:
        return Response(self.answer_to(request.data))

    @staticmethod
    def answer_to(data: Any) -> Mapping[str, Any]:
        """Read a request's data, answer it, count the answer and draw from it."""
        asked = read_request(data)
        adapter, rows = asked["adapter"], asked["pairs"]
        pairs = [(row["premise"], row["hypothesis"]) for row in rows]
        answer = predict(adapter, pairs)
        if adapter == engine.ACTIVE:
            sampling.draw(answer, pairs, page_ids=[row.get("page_id", "") for row in rows])
        return answer_json(answer)


def predict(adapter: str, pairs: list[tuple[str, str]]) -> engine.Answer:
    """Answer and count; what the engine refuses is raised as the HTTP status it means."""
    try:
        answer = engine.answer(adapter, pairs)
    except engine.AdapterUnknown as error:
        raise ValidationError({"adapter": [str(error)]}) from error
    except Overloaded as error:
        raise overloaded(error) from error
    except ForwardFailed as error:
        raise _refused("failed", str(error), wait=5) from error
    except engine.EngineUnavailable as error:
        raise _refused("unavailable", str(error), wait=5) from error
    tallies.count(answer)
    return answer


def overloaded(error: Overloaded) -> APIException:
    """The 503 of a queue that is full: it passes by itself."""
    return _refused("overloaded", str(error), wait=admission.RETRY_AFTER_S)


def _refused(reason: str, message: str, *, wait: int) -> APIException:
    monitoring.REFUSED.labels(reason).inc()
    return Unavailable(message, code=reason, wait=wait)


def describe_state() -> dict[str, Any]:
    """What this process holds in memory, for `GET /api/v1/stats` and /readyz."""
    loaded = engine.loaded()
    return {
        "base_loaded": loaded.nli,
        "resident_adapters": list(loaded.digests),
        "engine": loaded.engine,
        "engine_fault": loaded.engine_fault,
    }
