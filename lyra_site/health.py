"""Is this process alive, is it ready, and how is it doing: /livez, /readyz, /metrics.

/livez and the bare status of /readyz are open to everybody; the details of /readyz and all of
/metrics need adapters_app.view_serving (trainer, releaser, curator; an administrator).
"""

import os
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.db import connection
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Gauge,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adapters_app import liveness, registry
from adapters_app.api import AnyAccept
from adapters_app.models import TrainingRun
from corrections.models import Correction
from inference import engine
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
        body = generate_latest(_process_registry()) + generate_latest(_database_gauges())
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
    return {"ok": all(cluster["ok"] for cluster in clusters.values()), "clusters": clusters}


def _cluster(name: str) -> dict[str, Any]:
    seen = liveness.last_sign(name)
    return {
        "ok": not liveness.is_silent(seen),
        "last_heartbeat": seen.isoformat() if seen else None,
    }


def _process_registry() -> CollectorRegistry:
    """This process's counters; with PROMETHEUS_MULTIPROC_DIR, those of all gunicorn workers."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    merged = CollectorRegistry()
    MultiProcessCollector(merged)
    return merged


def _database_gauges() -> CollectorRegistry:
    """What the database knows, read at every scrape, so that all replicas say the same."""
    gauges = CollectorRegistry()
    serving = registry.serving()
    name = serving.version.name if serving.version else engine.BASE
    Gauge("lyra_serving_revision", "Serving revision", registry=gauges).set(serving.revision)
    Gauge("lyra_serving", "What serves", ["adapter"], registry=gauges).labels(name).set(1)
    _by_status(gauges, "lyra_training_runs", "Training runs by status", TrainingRun)
    _by_status(gauges, "lyra_corrections", "Corrections by status", Correction)
    age = Gauge(
        "lyra_queue_heartbeat_age_seconds",
        "Seconds since a worker of the cluster last showed itself",
        ["cluster"],
        registry=gauges,
    )
    for cluster in liveness.clusters():
        if seen := liveness.last_sign(cluster):
            age.labels(cluster).set((timezone.now() - seen).total_seconds())
    return gauges


def _by_status(
    gauges: CollectorRegistry, name: str, text: str, model: type[TrainingRun] | type[Correction]
) -> None:
    gauge = Gauge(name, text, ["status"], registry=gauges)
    counts = dict(model.objects.order_by().values_list("status").annotate(Count("pk")))
    for status in model.Status.values:
        gauge.labels(status).set(counts.get(status, 0))
