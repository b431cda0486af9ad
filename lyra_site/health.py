"""Is this process alive, is it ready, and how is it doing: /livez, /readyz, /metrics.

/livez and the bare status of /readyz are open to everybody; the details of /readyz and all of
/metrics need adapters_app.view_serving (trainer, releaser, curator; an administrator).
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, InterfaceError, connection
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

from adapters_app import liveness, registry, secret_key
from adapters_app.models import Serving, TrainingRun
from corrections import database_away, schema
from corrections.api import AnyAccept
from corrections.models import Correction
from inference import engine
from lyra_site import shared_cache

logger = logging.getLogger(__name__)

DETAILS = "adapters_app.view_serving"
AHEAD = "The last heartbeat is dated in the future: a clock is wrong, or was set back since."
NEEDED = ("database", "secret_key", "model")
OK, DEGRADED, UNAVAILABLE = "ok", "degraded", "unavailable"


@login_not_required
def livez(request: HttpRequest) -> HttpResponse:
    """200 as long as the process answers at all; looks at nothing."""
    return HttpResponse("ok", content_type="text/plain")


class ReadyView(APIView):
    """503 while this process cannot answer with what should serve, or signs with another secret key
    than the other hosts: whom it signs in they do not know, and what it queues workers throw away.
    A stale queue only degrades: taking the web server out of rotation brings no worker back."""

    permission_classes = []

    def perform_authentication(self, request: Request) -> None:
        """Who asks is asked only where the database can tell."""

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        checks = {"database": _database(), "disk": _disk()}
        if checks["database"]["ok"]:
            checks |= {"model": _model(), "queue": _queue(), "secret_key": _secret_key()}
        if any(name in checks and not checks[name]["ok"] for name in NEEDED):
            status = UNAVAILABLE
        else:
            whole = all(check["ok"] for check in checks.values())
            status = OK if whole and "engine_fault" not in checks["model"] else DEGRADED
        body: dict[str, Any] = {"status": status}
        if checks["database"]["ok"] and _may_see_details(request):
            body["checks"] = checks
        return Response(body, status=503 if status == UNAVAILABLE else 200)


class MetricsView(APIView):
    required_permission = DETAILS
    content_negotiation_class = AnyAccept

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        body = generate_latest(_process_registry()) + generate_latest(_DatabaseGauges())
        return HttpResponse(body, content_type=CONTENT_TYPE_LATEST)


def _may_see_details(request: Request) -> bool:
    """Open to strangers, so also to those whose token is wrong or has expired."""
    try:
        return request.user.has_perm(DETAILS)
    except AuthenticationFailed:
        return False


def _database() -> dict[str, Any]:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, InterfaceError) as error:  # away, or damaged: it is asked no more
        return _unready(str(error))
    try:
        registry.serving()
    except (DatabaseError, InterfaceError, Serving.DoesNotExist) as error:
        # Damaged, or not migrated.
        return _unready(schema.RUN_MIGRATE if schema.is_behind() else str(error))
    return {"ok": True}


def _unready(detail: str) -> dict[str, Any]:
    logger.error("not ready: %s", detail)
    return {"ok": False, "detail": detail}


def _disk() -> dict[str, Any]:
    """Whether a training would find room; what is full loses data, and says so badly."""
    free, least = _free_bytes() // 2**20, settings.LYRA_MIN_FREE_MIB
    if free >= least:
        return {"ok": True, "free_mib": free}
    return {
        "ok": False,
        "free_mib": free,
        "detail": f"The disk of LYRA_HOME has {free} MiB free; LYRA_MIN_FREE_MIB is {least}.",
    }


def _free_bytes() -> int:
    return shutil.disk_usage(settings.LYRA_HOME).free


def _secret_key() -> dict[str, Any]:
    problem = secret_key.problem()
    return _unready(problem) if problem else {"ok": True}


def _model() -> dict[str, Any]:
    """Whether this process can answer with what should serve; loads an adapter, never the base."""
    if not engine.loaded().nli:
        engine.warm_in_background()
        return {"ok": False, "detail": "The base model is being loaded."}
    try:
        answering = engine.serving_predictor()
    except (engine.EngineUnavailable, *database_away.AWAY) as error:
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
    except database_away.AWAY as error:
        return {"ok": False, "detail": str(error)}
    found = {"ok": all(cluster["ok"] for cluster in clusters.values()), "clusters": clusters}
    problem = shared_cache.problem()
    return found | {"detail": problem} if problem else found


def _cluster(name: str) -> dict[str, Any]:
    seen = liveness.last_sign(name)
    state = {
        "ok": not liveness.is_silent(seen),
        "last_heartbeat": seen.isoformat() if seen else None,
    }
    return state | ({"detail": AHEAD} if seen and liveness.is_from_future(seen) else {})


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
        yield GaugeMetricFamily(
            "lyra_home_free_bytes", "Free space on the disk of LYRA_HOME", _free_bytes()
        )
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
