"""Is this process alive, is it ready, and how is it doing: /livez, /readyz, /metrics.

/livez and the bare status of /readyz are open to everybody; the details of /readyz and all of
/metrics need adapters_app.view_serving (trainer, releaser, curator; an administrator).
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import AnonymousUser
from django.db import connection
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adapters_app import liveness, registry
from adapters_app.api import AnyAccept
from adapters_app.models import TrainingRun
from corrections.models import Correction
from inference import engine
from lyra_site import shared_cache
from lyra_site.errors import DATABASE_AWAY

DETAILS = "adapters_app.view_serving"
OK, DEGRADED, UNAVAILABLE = "ok", "degraded", "unavailable"


@login_not_required
def livez(request: HttpRequest) -> HttpResponse:
    """200 as long as the process answers at all; looks at nothing."""
    return HttpResponse("ok", content_type="text/plain")


class ReadyView(APIView):
    """503 while this process cannot answer with what should serve. A stale queue only degrades:
    taking the web server out of rotation would not bring a worker back."""

    permission_classes = []

    def perform_authentication(self, request: Request) -> None:
        """Open to strangers, so also to those whose token is wrong or has expired."""
        try:
            super().perform_authentication(request)
        except AuthenticationFailed:
            request.user = AnonymousUser()

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        checks = {"database": _database(), "model": _model(), "queue": _queue()}
        if not (checks["database"]["ok"] and checks["model"]["ok"]):
            status = UNAVAILABLE
        else:
            whole = checks["queue"]["ok"] and "engine_fault" not in checks["model"]
            status = OK if whole else DEGRADED
        body: dict[str, Any] = {"status": status}
        if checks["database"]["ok"] and request.user.has_perm(DETAILS):
            body["checks"] = checks
        return Response(body, status=503 if status == UNAVAILABLE else 200)


class MetricsView(APIView):
    required_permission = DETAILS
    content_negotiation_class = AnyAccept

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        body = generate_latest(_process_registry()) + generate_latest(_DatabaseGauges())
        return HttpResponse(body, content_type=CONTENT_TYPE_LATEST)


def _database() -> dict[str, Any]:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DATABASE_AWAY as error:
        return {"ok": False, "detail": str(error)}
    return {"ok": True}


def _model() -> dict[str, Any]:
    """Whether this process can answer with what should serve; loads an adapter, never the base."""
    if not engine.loaded().nli:
        engine.warm_in_background()
        return {"ok": False, "detail": "The base model is being loaded."}
    try:
        answering = engine.serving_predictor()
    except (engine.EngineUnavailable, *DATABASE_AWAY) as error:
        return {"ok": False, "detail": str(error)}
    loaded = engine.loaded()
    state = {
        "ok": True,
        "adapter": answering.name,
        "digest": answering.digest,
        "calibrator": answering.calibration,
        "revision": answering.revision,
        "engine": loaded.engine,
    }
    return state | ({"engine_fault": loaded.engine_fault} if loaded.engine_fault else {})


def _queue() -> dict[str, Any]:
    try:
        clusters = {name: _cluster(name) for name in liveness.clusters()}
    except DATABASE_AWAY as error:
        return {"ok": False, "detail": str(error)}
    found = {"ok": all(cluster["ok"] for cluster in clusters.values()), "clusters": clusters}
    problem = shared_cache.problem()
    return found | {"detail": problem} if problem else found


def _cluster(name: str) -> dict[str, Any]:
    seen = liveness.last_sign(name)
    return {
        "ok": not liveness.is_silent(seen),
        "last_heartbeat": seen.isoformat() if seen else None,
    }


def _process_registry() -> CollectorRegistry:
    """What was counted here; by several processes of one gunicorn, see gunicorn_conf, together."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    merged = CollectorRegistry()
    MultiProcessCollector(merged)
    return merged


class _DatabaseGauges(Collector):
    """What the database knows, read at every scrape, so that all replicas say the same.

    Families, not Gauges: those would be added up over processes, as this process's own figures are.
    """

    def collect(self) -> Iterator[GaugeMetricFamily]:
        serving = registry.serving()
        name = serving.version.name if serving.version else engine.BASE
        yield GaugeMetricFamily("lyra_serving_revision", "Serving revision", serving.revision)
        yield _labelled("lyra_serving", "What serves", "adapter", {name: 1})
        yield _by_status("lyra_training_runs", "Training runs by status", TrainingRun)
        yield _by_status("lyra_corrections", "Corrections by status", Correction)
        yield _labelled(
            "lyra_queue_heartbeat_age_seconds",
            "Seconds since a worker of the cluster last showed itself",
            "cluster",
            {
                cluster: (timezone.now() - seen).total_seconds()
                for cluster in liveness.clusters()
                if (seen := liveness.last_sign(cluster))
            },
        )


def _by_status(
    name: str, text: str, model: type[TrainingRun] | type[Correction]
) -> GaugeMetricFamily:
    counts = dict(model.objects.order_by().values_list("status").annotate(Count("pk")))
    values = {status: counts.get(status, 0) for status in model.Status.values}
    return _labelled(name, text, "status", values)


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value_of_label, value in values.items():
        family.add_metric([value_of_label], value)
    return family
