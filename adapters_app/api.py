"""REST: training runs, adapter versions, what serves, evaluations, calibrations, the ledger, stats.

Thin: each change is one function of `training` or `registry`; a refusal of theirs is 409 with the
reason in `detail`.
"""

import logging
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.db.models import Count, QuerySet, Sum
from django.http import FileResponse, HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.exceptions import APIException, NotAuthenticated, NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.serializers import BaseSerializer, Serializer
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from adapters_app import live, registry, scratch, storage, training, triggers
from adapters_app.models import (
    AdapterVersion,
    CalibrationEvaluation,
    PredictionTally,
    Promotion,
    ShadowEvaluation,
    TrainingRun,
)
from adapters_app.serializers import (
    AdapterSummarySerializer,
    AdapterVersionSerializer,
    CalibrationSerializer,
    PromoteSerializer,
    PromotionSerializer,
    RollbackSerializer,
    RunFilterSerializer,
    ServingSerializer,
    ShadowEvaluationSerializer,
    ShadowFilterSerializer,
    ShadowSummarySerializer,
    StatsSerializer,
    TrainingRequestSerializer,
    TrainingRunSerializer,
    TrainingSummarySerializer,
    VersionFilterSerializer,
)
from corrections.api import AnyAccept, Conflict, refusal
from corrections.models import Correction

logger = logging.getLogger(__name__)

UNREADABLE = refusal(
    "Its files are missing or damaged, the database cannot be reached or written just now, or the "
    "server's disk is full.",
    says="v7: Artifact 0a1b2c3d4e5f is not in storage.",
)

VERSION_PATTERN = "v?[0-9]{1,9}"
ID_PATTERN = "[0-9]{1,18}"
# What a download holds; never the training rows, which live in the snapshot.
ARTIFACT_FILES = ("adapter_model.safetensors", "adapter_config.json", "manifest.json", "README.md")
SPOOL_BYTES = 16 * 1024 * 1024  # a larger download is spooled to disk, not held in memory


class ArtifactUnavailable(APIException):
    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_code = "artifact_unavailable"


class ReadOnly(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Any]):
    """A list, narrowed by its `filters`, and its items."""

    lookup_value_regex = ID_PATTERN
    filters: type[Serializer[Any]] | None = None


@extend_schema_view(
    list=extend_schema(
        parameters=[RunFilterSerializer],
        summary="Training runs, newest first, without their loss curves and logs.",
    ),
    retrieve=extend_schema(summary="Follow a run: stage, steps, ETA, loss curve, log tail."),
)
class TrainingRunViewSet(ReadOnly):
    queryset = TrainingRun.objects.select_related(
        "version", "produced", "snapshot", "requested_by", "cancel_requested_by"
    ).defer(*AdapterVersion.details("version__"), *AdapterVersion.details("produced__"))
    filters = RunFilterSerializer
    required_permission = {
        "GET": "adapters_app.view_trainingrun",
        "POST": "adapters_app.request_training",
    }

    def get_queryset(self) -> QuerySet[TrainingRun]:
        found = super().get_queryset()
        return found.defer("loss_curve", "log_tail") if self.action == "list" else found

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return TrainingSummarySerializer if self.action == "list" else TrainingRunSerializer

    @extend_schema(
        summary="Request a training run, or the shadow evaluation of a version.",
        description="`kind` “train” makes a new version of all accepted corrections; “shadow” "
        "compares `version` with what serves, or with `against`. `config` holds what differs from "
        "the usual settings. Follow the run by `GET /api/v1/training-runs/{id}`: a training "
        "succeeds with a version, which does not serve before somebody promotes it.",
        examples=[
            OpenApiExample(
                "Train",
                request_only=True,
                value={
                    "kind": "train",
                    "reason": "A hundred new verdicts on falls.",
                    "domain": "geriatrics",
                    "config": {"epochs": 2},
                },
            ),
            OpenApiExample(
                "Shadow-evaluate a version",
                request_only=True,
                value={"kind": "shadow", "version": "v7", "reason": "On the verdicts of now."},
            ),
            OpenApiExample(
                "Compare two versions",
                request_only=True,
                value={
                    "kind": "shadow",
                    "version": "v7",
                    "against": "v5",
                    "reason": "Which of the two recipes is better?",
                },
            ),
        ],
        request=TrainingRequestSerializer,
        responses={
            201: TrainingRunSerializer,
            409: refusal(
                "There is too little to learn from, the version cannot be compared with what "
                "serves or with what was named, or a run that does the same is queued or running.",
                says="There are 12 accepted verdicts to train on; at least 60 are needed. Review "
                "more corrections first.",
            ),
        },
    )
    def create(self, request: Request) -> Response:
        asked = _validated(TrainingRequestSerializer, request)
        name, against = asked.pop("version", None), asked.pop("against", None)
        version = _version(name, field="version") if name else None
        if against and against != registry.BASE:
            against = _version(against, field="against")
        try:
            run = training.request(
                by=signed_in(request), version=version, against=against or None, **asked
            )
        except training.TrainingRefused as error:
            raise Conflict(str(error)) from error
        return Response(self.get_serializer(run).data, status=status.HTTP_201_CREATED)

    @extend_schema(
        summary="Cancel a run.",
        description="One that waits is cancelled at once, one that runs stops within seconds.",
        request=None,
        responses={
            200: TrainingRunSerializer,
            409: refusal("The run is over.", says="Run 9 is already over: it succeeded."),
        },
    )
    @action(
        detail=True, methods=["post"], required_permission={"POST": "adapters_app.cancel_training"}
    )
    def cancel(self, request: Request, pk: str) -> Response:
        run = self.get_object()
        try:
            training.cancel(run, by=signed_in(request))
        except training.TrainingRefused as error:
            raise Conflict(str(error)) from error
        return Response(self.get_serializer(self.get_object()).data)


@extend_schema_view(
    list=extend_schema(summary="Adapter versions, newest first, without their metrics."),
    retrieve=extend_schema(summary="One version: its recipe, metrics and digests."),
)
class AdapterViewSet(ReadOnly):
    queryset = AdapterVersion.objects.select_related("snapshot", "created_by").defer("metrics")
    lookup_field = "number"
    lookup_url_kwarg = "version"
    lookup_value_regex = VERSION_PATTERN
    required_permission = {"GET": "adapters_app.view_adapterversion"}

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return AdapterSummarySerializer if self.action == "list" else AdapterVersionSerializer

    def get_object(self) -> AdapterVersion:
        try:
            return registry.find_version(self.kwargs["version"])
        except registry.VersionUnknown as error:
            raise NotFound(str(error)) from error

    @extend_schema(
        summary="Promote a version: it answers from the next request on.",
        description="`expected_revision` is the `revision` that "
        "`GET /api/v1/adapters/serving` told you before you decided: where something else has been "
        "put into service since, nothing changes and you get 409. `evidence` is the `id` of the "
        "shadow evaluation you read, from `GET /api/v1/shadow-evaluations?version=v7`; one that "
        "compares with what did not serve (`incumbent_served` is false) is no evidence.\n\n"
        "A version that is `better` or `not_worse` may be promoted as it is, an `inconclusive` one "
        "with `acknowledge`, a `worse` one with `override`; the ledger keeps both, and your "
        "`reason`.",
        examples=[
            OpenApiExample(
                "Promote",
                request_only=True,
                value={
                    "reason": "Better on 640 pairs.",
                    "expected_revision": 12,
                    "evidence": 9,
                },
            )
        ],
        request=PromoteSerializer,
        responses={
            200: PromotionSerializer,
            409: refusal(
                "The evidence does not suffice, what serves or the evidence has changed since you "
                "looked, or the version cannot be used.",
                says="What serves has changed since you looked: rita promoted v6 at 2026-01-05 "
                "10:11:12 UTC (revision 13; you saw 12). Look again, then decide.",
            ),
        },
    )
    @action(
        detail=True, methods=["post"], required_permission={"POST": "adapters_app.promote_adapter"}
    )
    def promote(self, request: Request, version: str) -> Response:
        asked = _validated(PromoteSerializer, request)
        try:
            promotion = registry.promote(self.get_object(), by=signed_in(request), **asked)
        except registry.PromotionRefused as error:
            raise Conflict(str(error)) from error
        return Response(PromotionSerializer(promotion).data)

    @extend_schema(
        summary="Roll back: to the one before, to a named version, or to the base.",
        description="What comes back answers with the calibrator that it had. "
        "`expected_revision` is the `revision` that `GET /api/v1/adapters/serving` told you before "
        "you decided; without it nothing is compared.",
        examples=[
            OpenApiExample(
                "To the one before",
                request_only=True,
                value={"reason": "Complaints from the field.", "expected_revision": 13},
            ),
            OpenApiExample(
                "To the base",
                request_only=True,
                value={
                    "reason": "Complaints from the field.",
                    "expected_revision": 13,
                    "to": "base",
                },
            ),
        ],
        request=RollbackSerializer,
        responses={
            200: PromotionSerializer,
            409: refusal(
                "There is nothing to go back to, the version has never served or cannot be used, "
                "or what serves has changed since you looked.",
                says="The base already serves; there is nothing to roll back to.",
            ),
        },
    )
    @action(
        detail=False, methods=["post"], required_permission={"POST": "adapters_app.promote_adapter"}
    )
    def rollback(self, request: Request) -> Response:
        asked = _validated(RollbackSerializer, request)
        to = asked.pop("to", None)
        if to and to != "base":
            to = _version(to, field="to")
        try:
            promotion = registry.rollback(by=signed_in(request), to=to or None, **asked)
        except registry.PromotionRefused as error:
            raise Conflict(str(error)) from error
        return Response(PromotionSerializer(promotion).data)

    @extend_schema(
        summary="What serves now, and its revision.",
        description="The `revision` goes up with every promotion and rollback, which take it as "
        "`expected_revision`.",
        responses=ServingSerializer,
    )
    @action(
        detail=False,
        required_permission={"GET": "adapters_app.view_serving"},
        pagination_class=None,
    )
    def serving(self, request: Request) -> Response:
        return Response(ServingSerializer(registry.serving()).data)

    @extend_schema(
        summary="The model card, Markdown.",
        responses={(200, "text/markdown"): str, 503: UNREADABLE},
    )
    @action(detail=True, content_negotiation_class=AnyAccept)
    def card(self, request: Request, version: str) -> HttpResponse:
        with _artifact(self.get_object()) as directory:
            text = (directory / "README.md").read_bytes()
        return HttpResponse(text, content_type="text/markdown; charset=utf-8")

    @extend_schema(
        summary="The adapter as a ZIP: tensors, configuration, manifest, card; no training text.",
        responses={(200, "application/zip"): OpenApiTypes.BINARY, 503: UNREADABLE},
    )
    @action(
        detail=True,
        required_permission={"GET": "adapters_app.download_adapter"},
        content_negotiation_class=AnyAccept,
    )
    def download(self, request: Request, version: str) -> FileResponse:
        found = self.get_object()
        with _artifact(found) as directory:
            archive = _zipped(directory)
        return FileResponse(archive, as_attachment=True, filename=f"{found.name}.zip")


@extend_schema_view(
    list=extend_schema(
        parameters=[ShadowFilterSerializer],
        summary="Shadow evaluations, newest first, without their flipped pairs.",
    ),
    retrieve=extend_schema(summary="One evaluation, with its flipped pairs."),
)
class ShadowEvaluationViewSet(ReadOnly):
    queryset = ShadowEvaluation.objects.select_related("candidate", "incumbent", "snapshot").defer(
        *AdapterVersion.details("candidate__"), *AdapterVersion.details("incumbent__")
    )
    filters = ShadowFilterSerializer
    required_permission = {"GET": "adapters_app.view_shadowevaluation"}

    def get_queryset(self) -> QuerySet[ShadowEvaluation]:
        found = super().get_queryset()
        return found.defer("flips") if self.action == "list" else found

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return ShadowSummarySerializer if self.action == "list" else ShadowEvaluationSerializer

    def narrow(self, queryset: QuerySet[Any], asked: dict[str, Any]) -> QuerySet[Any]:
        found = _of_version(queryset, asked.get("version"), "candidate")
        return _of_version(found, asked.get("against"), "incumbent")


@extend_schema_view(
    list=extend_schema(
        parameters=[VersionFilterSerializer], summary="Fitted calibrators, newest first."
    ),
    retrieve=extend_schema(summary="One calibrator: parameters, figures before and after, bins."),
)
class CalibrationViewSet(ReadOnly):
    queryset = CalibrationEvaluation.objects.select_related(
        "version", "replaces__version", "snapshot", "created_by"
    ).defer(*AdapterVersion.details("version__"), *AdapterVersion.details("replaces__version__"))
    serializer_class = CalibrationSerializer
    filters = VersionFilterSerializer
    required_permission = {"GET": "adapters_app.view_calibrationevaluation"}

    def narrow(self, queryset: QuerySet[Any], asked: dict[str, Any]) -> QuerySet[Any]:
        return _of_version(queryset, asked.get("version"), "version")


@extend_schema_view(
    list=extend_schema(summary="The ledger of promotions and rollbacks, newest first."),
    retrieve=extend_schema(summary="One entry of the ledger."),
)
class PromotionViewSet(ReadOnly):
    queryset = Promotion.objects.select_related("version", "previous_version", "by").defer(
        *AdapterVersion.details("version__"), *AdapterVersion.details("previous_version__")
    )
    serializer_class = PromotionSerializer
    required_permission = {"GET": "adapters_app.view_promotion"}


class StatsView(APIView):
    required_permission = {"GET": "adapters_app.view_serving"}

    @extend_schema(
        summary="Verdicts, predictions, live accuracy, runs, what serves, whether to train now.",
        responses=StatsSerializer,
    )
    def get(self, request: Request) -> Response:
        conditions = triggers.conditions()
        return Response(
            {
                "serving": ServingSerializer(registry.serving()).data,
                "corrections": {
                    "by_status": _counts(Correction.objects.all(), "status"),
                    "accepted_by_verdict": _counts(Correction.objects.accepted(), "verdict"),
                    "accepted_by_label": _counts(Correction.objects.accepted(), "correct_label"),
                },
                "predictions": _predictions(),
                "live": _live(),
                "training_runs": _counts(TrainingRun.objects.all(), "status"),
                "adapter_versions": AdapterVersion.objects.count(),
                "training_triggers": {
                    "should_train": triggers.should_train(conditions),
                    "conditions": [asdict(condition) for condition in conditions],
                },
            }
        )


router = SimpleRouter(trailing_slash=False)
router.register("training-runs", TrainingRunViewSet, basename="training-run")
router.register("adapters", AdapterViewSet, basename="adapter")
router.register("shadow-evaluations", ShadowEvaluationViewSet, basename="shadow-evaluation")
router.register("calibrations", CalibrationViewSet, basename="calibration")
router.register("promotions", PromotionViewSet, basename="promotion")


def signed_in(request: Request) -> User:
    """Whoever carries the token or the session; the permission check has let nobody else in."""
    if not isinstance(request.user, User):
        raise NotAuthenticated
    return request.user


def _validated(serializer: type[Serializer[Any]], request: Request) -> dict[str, Any]:
    asked = serializer(data=request.data)
    asked.is_valid(raise_exception=True)
    return dict(asked.validated_data)


def _version(name: str, *, field: str) -> AdapterVersion:
    try:
        return registry.find_version(name)
    except registry.VersionUnknown as error:
        raise ValidationError({field: [str(error)]}) from error


def _of_version(queryset: QuerySet[Any], name: str | None, field: str) -> QuerySet[Any]:
    if name is None:
        return queryset
    if name == "base":
        return queryset.filter(**{f"{field}__isnull": True})
    return queryset.filter(**{f"{field}__number": int(name.removeprefix("v"))})


@contextmanager
def _artifact(version: AdapterVersion) -> Iterator[Path]:
    """A verified local copy of the released adapter; what keeps it from being read is a 503."""
    try:
        yield storage.fetch(version.artifact_digest)
    except (storage.ArtifactMissing, storage.ArtifactCorrupt) as error:
        raise ArtifactUnavailable(f"{version.name}: {error}") from error
    except OSError as error:
        logger.error("%s cannot be read: %s", version.name, error)  # paths are for the log
        raise ArtifactUnavailable(
            f"{version.name}: its files cannot be read: {error.strerror or error}"
        ) from error


def _zipped(directory: Path) -> Any:
    """The artifact's files in one ZIP, uncompressed: tensors do not shrink."""
    spool = tempfile.SpooledTemporaryFile(  # noqa: SIM115  the response closes it
        max_size=SPOOL_BYTES, dir=str(scratch.place())
    )
    with zipfile.ZipFile(spool, "w", zipfile.ZIP_STORED) as archive:
        for name in ARTIFACT_FILES:
            archive.write(directory / name, name)
    spool.seek(0)
    return spool


def _counts(queryset: QuerySet[Any], field: str) -> dict[str, int]:
    return dict(queryset.order_by().values_list(field).annotate(Count("pk")))


def _live() -> dict[str, Any]:
    """Accuracy and correction rate of live answers, from audits: of what serves, and by version."""
    found = live.figures()
    return {
        "serving": live.of_serving(registry.serving(), found).to_dict(),
        "by_version": [each.to_dict() for each in found],
    }


def _predictions() -> list[dict[str, Any]]:
    """Pairs answered so far, by version and label."""
    rows = (
        PredictionTally.objects.order_by("version__number", "label")
        .values_list("version__number", "label")
        .annotate(Sum("count"))
    )
    return [
        {"adapter": "base" if number is None else f"v{number}", "label": label, "count": count}
        for number, label, count in rows
    ]
