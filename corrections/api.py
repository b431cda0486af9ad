"""REST: send a verdict, list, read and export verdicts, edit and review them; the audit queue.

Thin: each change is one function of `intake` or `audits`; what they refuse is 409 with the reason
in `detail`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiResponse,
    extend_schema,
    extend_schema_view,
)
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.exceptions import (
    APIException,
    NotAuthenticated,
    PermissionDenied,
    ValidationError,
)
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.serializers import BaseSerializer
from rest_framework.viewsets import GenericViewSet

from corrections import audits, exporters, folds, intake
from corrections.intake import Review, Seen
from corrections.models import AuditSample, Correction, CorrectionEvent, CorrectionQuerySet
from corrections.serializers import (
    MAX_REVIEWS,
    AuditAnswerSerializer,
    AuditFilterSerializer,
    AuditSampleSerializer,
    AuditSkipSerializer,
    CorrectionEditSerializer,
    CorrectionFilterSerializer,
    CorrectionSerializer,
    CorrectionWithHistorySerializer,
    NewCorrectionSerializer,
    RefusalSerializer,
    RefusedReviewsSerializer,
    ReviewedSerializer,
    ReviewSerializer,
    ReviewsSerializer,
)

JSON_LINES = "application/x-ndjson"
LINES_IN_CHUNK = 100  # sent at a time


class Conflict(APIException):
    """409: understood and refused; `detail` says why."""

    status_code = status.HTTP_409_CONFLICT
    default_code = "refused"


class AnyAccept(DefaultContentNegotiation):
    """For views that answer with a file: the Accept header chooses nothing."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        first = next(iter(renderers))
        return first, str(first.media_type)


def refusal(when: str, *, says: str) -> OpenApiResponse:
    """For the schema: when an operation says no, and what it says, for example."""
    example = OpenApiExample("A refusal", value={"detail": says})
    return OpenApiResponse(RefusalSerializer, description=when, examples=[example])


DECIDED = refusal(
    "Somebody has answered or skipped it already, or its texts are removed.",
    says="Audit sample 5 was answered by ana on 2026-01-05 at 10:11 UTC.",
)


VIEW, ADD = "corrections.view_correction", "corrections.add_correction"
OWN_ONLY = (
    "Curators read all. Callers read what they sent themselves, whoever has revised or reviewed it "
    "since: `status` says what became of it, `review_note` why, where the reviewer said so."
)


@extend_schema_view(
    list=extend_schema(
        parameters=[CorrectionFilterSerializer],
        summary="Corrections, newest first.",
        description=f"{OWN_ONLY} To learn of what was decided since you last asked, give "
        "`updated_after`.",
    ),
    retrieve=extend_schema(summary="One correction, with its history.", description=OWN_ONLY),
)
class CorrectionViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Any]):
    queryset = Correction.objects.select_related("group", "reviewer")
    filters = CorrectionFilterSerializer
    lookup_value_regex = "[0-9]{1,18}"
    required_permission = {
        "GET": (VIEW, ADD),
        "POST": ADD,
        "PATCH": "corrections.change_correction",
    }

    def get_queryset(self) -> QuerySet[Correction]:
        found = cast(CorrectionQuerySet, super().get_queryset())
        reads_all = self.action not in {"list", "retrieve"} or self.request.user.has_perm(VIEW)
        return found if reads_all else found.sent_by(_user(self.request))

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return CorrectionSerializer if self.action == "list" else CorrectionWithHistorySerializer

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "reads_all": self.request.user.has_perm(VIEW)}

    def narrow(self, queryset: QuerySet[Any], asked: dict[str, Any]) -> QuerySet[Any]:
        return _narrowed(cast(CorrectionQuerySet, queryset), asked)

    @extend_schema(
        summary="Send a verdict: the model was wrong, or right.",
        description="What the model said is in the answer of `/nli`: `predicted_label` is its "
        "`label`, `predicted_confidence` its `confidence`, `predicted_version` and "
        "`predicted_digest` its `version` and `digest`.\n\n"
        "201 where the correction is new; 200 where its `external_id` was known: the same content "
        "changes nothing, new content is a revision, to be reviewed again. Only by its "
        "`external_id` is a request that is sent again recognised: without one, each is a verdict "
        "of its own. `expected_revision` says which revision you revise, or by 0 that there is "
        "none yet.\n\n"
        "A revision keeps what "
        "you leave out: `reason`, `domain`, `page_id`, `sampling` and `sampling_probability`, and "
        "`predicted_version` and `predicted_digest` as long as pair and `predicted_label` are the "
        "same. A `predicted_version` of null is not left out: the base predicted.\n\n"
        "How a set was drawn (`sampling` other than “user”) is for curators to say, as is changing "
        "pair, prediction or sampling of what was drawn, and revising what somebody else sent: "
        "otherwise 403.",
        examples=[
            OpenApiExample(
                "The model was wrong",
                request_only=True,
                value={
                    "premise": "No increase in falls was seen.",
                    "hypothesis": "The drug made falls more common.",
                    "predicted_label": "neutral",
                    "predicted_confidence": 0.62,
                    "predicted_version": 7,
                    "correct_label": "refutes",
                    "reason": "Seen no increase means not more common.",
                    "page_id": "trial-12",
                    "external_id": "ticket-4711",
                },
            )
        ],
        request=NewCorrectionSerializer,
        responses={
            201: CorrectionSerializer,
            200: CorrectionSerializer,
            409: refusal(
                "Another revision is on record than `expected_revision`, or the row answers an "
                "audit sample and what was drawn would change.",
                says="Row 5 answers audit sample 3: its pair, prediction, sampling and probability "
                "stay as they were drawn, but premise would change.",
            ),
        },
    )
    def create(self, request: Request) -> Response:
        sent = NewCorrectionSerializer(data=request.data)
        sent.is_valid(raise_exception=True)
        _check_may_draw(request, sent.validated_data)
        try:
            correction, created = intake.record_correction(
                by=_user(request),
                **sent.validated_data,
                # Before what is sent is compared with the row: a refusal would tell of it.
                known=lambda row: _check_is_theirs(request, row),
                then=lambda row, changes: _check_may_redraw(request, row, changes),
            )
        except intake.RevisionRefused as error:
            raise Conflict(str(error)) from error
        return Response(
            CorrectionSerializer(correction, context=self.get_serializer_context()).data,
            status=status.HTTP_201_CREATED if created else status.HTTP_200_OK,
        )

    @extend_schema(
        summary="Edit label, reason, domain or annotator.",
        description="What you leave out stays as it is. Send the `revision` that you saw in "
        "`GET /api/v1/corrections/{id}`: a row that has changed since is refused. A changed label "
        "goes back to pending, to be reviewed again; the other fields need no new review.",
        examples=[
            OpenApiExample(
                "Another label",
                request_only=True,
                value={
                    "revision": 1,
                    "correct_label": "neutral",
                    "note": "Falls were not counted.",
                },
            )
        ],
        request=CorrectionEditSerializer,
        responses={
            200: CorrectionWithHistorySerializer,
            409: refusal(
                "The row is not what you saw any more.",
                says="Row 5 has changed since you saw it: look at it again.",
            ),
        },
    )
    def partial_update(self, request: Request, pk: str) -> Response:
        sent = CorrectionEditSerializer(data=request.data)
        sent.is_valid(raise_exception=True)
        correction, values = self.get_object(), dict(sent.validated_data)
        correction.revision = values.pop("revision")  # as it was seen
        try:
            edited = intake.edit_correction(correction, by=_user(request), **values)
        except intake.ReviewRefused as error:
            raise Conflict(str(error)) from error
        if values["note"] and not edited:
            said = "Nothing would change; a note goes with a change, or with a review."
            raise ValidationError({"note": [said]})
        return Response(self.get_serializer(self.get_object()).data)

    @extend_schema(
        summary="Accept, reject or reopen.",
        description="Send the `revision` and the `status` (as `seen_status`) that you saw in "
        "`GET /api/v1/corrections/{id}`, and a row that somebody else changed or reviewed since is "
        "refused; what you leave out is not compared. A row that has the status already keeps its "
        "reviewer; a `note` that is new is put on record.",
        examples=[
            OpenApiExample(
                "Accept",
                request_only=True,
                value={
                    "status": "accepted",
                    "note": "Read the trial's report.",
                    "revision": 1,
                    "seen_status": "pending",
                },
            )
        ],
        request=ReviewSerializer,
        responses={
            200: CorrectionWithHistorySerializer,
            409: refusal(
                "The row is not what you saw any more, or it is quarantined.",
                says="Row 5 has changed since you saw it: look at it again.",
            ),
        },
    )
    @action(
        detail=True,
        methods=["post"],
        required_permission={"POST": "corrections.review_correction"},
    )
    def review(self, request: Request, pk: str) -> Response:
        sent = ReviewSerializer(data=request.data)
        sent.is_valid(raise_exception=True)
        decided = {self.get_object().pk: _decided(sent.validated_data)}
        try:
            intake.review_each(decided, by=_user(request))
        except intake.ReviewRefused as error:
            raise Conflict(str(error)) from error
        return Response(self.get_serializer(self.get_object()).data)

    @extend_schema(
        operation_id="corrections_review_many",
        summary="Accept, reject or reopen many.",
        description=f"Up to {MAX_REVIEWS} reviews, each as in "
        "`POST /api/v1/corrections/{id}/review`, beside the `id` of its correction. All are "
        "recorded or, where one is refused, none is: `refused` then says which, and why.",
        examples=[
            OpenApiExample(
                "Accept one, reject another",
                request_only=True,
                value={
                    "reviews": [
                        {"id": 5, "status": "accepted", "revision": 1, "seen_status": "pending"},
                        {"id": 9, "status": "rejected", "note": "Half a sentence.", "revision": 2},
                    ]
                },
            )
        ],
        request=ReviewsSerializer,
        responses={
            200: ReviewedSerializer,
            409: OpenApiResponse(
                RefusedReviewsSerializer,
                description="Corrections are not what you saw any more, are quarantined, or do "
                "not exist.",
                examples=[
                    OpenApiExample(
                        "A refusal",
                        value={
                            "detail": "1 of 40 reviews is refused, so nothing was changed.",
                            "refused": {
                                "5": "Row 5 has changed since you saw it: look at it again."
                            },
                        },
                    )
                ],
            ),
        },
    )
    @action(
        detail=False,
        methods=["post"],
        url_path="review",
        required_permission={"POST": "corrections.review_correction"},
    )
    def review_many(self, request: Request) -> Response:
        sent = ReviewsSerializer(data=request.data)
        sent.is_valid(raise_exception=True)
        reviews = {each["id"]: _decided(each) for each in sent.validated_data["reviews"]}
        try:
            changed = intake.review_each(reviews, by=_user(request))
        except intake.ReviewRefused as error:
            count = len(error.reasons)
            said = f"{count} of {len(reviews)} reviews {'is' if count == 1 else 'are'} refused"
            refused = {str(pk): reason for pk, reason in error.reasons.items()}
            raise Conflict(
                {"detail": f"{said}, so nothing was changed.", "refused": refused}
            ) from error
        return Response({"changed": changed})

    @extend_schema(
        operation_id="corrections_export",
        summary="Export corrections, oldest first, as JSON Lines.",
        description="One JSON object a line, as `manage.py export_corrections` writes and "
        "`manage.py import_corrections` and `POST /api/v1/corrections/import` read it, narrowed as "
        "the list is. It is sent while it is read from the database: an answer that breaks off is "
        "not whole.",
        parameters=[CorrectionFilterSerializer],
        responses={(200, JSON_LINES): str},
    )
    @action(
        detail=False,
        required_permission={"GET": "corrections.export_correction"},
        pagination_class=None,
        content_negotiation_class=AnyAccept,
    )
    def export(self, request: Request) -> StreamingHttpResponse:
        rows = exporters.exported(self.filter_queryset(self.get_queryset()))
        lines = folds.chunks(exporters.jsonl_lines(rows), LINES_IN_CHUNK)
        return StreamingHttpResponse(
            ("".join(chunk) for chunk in lines),
            content_type=JSON_LINES,
            headers={"Content-Disposition": 'attachment; filename="corrections.jsonl"'},
        )


@extend_schema_view(
    list=extend_schema(
        parameters=[AuditFilterSerializer],
        summary="Live answers drawn for audit, oldest first; by default those that wait.",
    ),
    retrieve=extend_schema(summary="One audit sample."),
)
class AuditSampleViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Any]):
    """The texts are callers': only who may judge them may read them."""

    queryset = AuditSample.objects.drawn().select_related("decided_by")
    serializer_class = AuditSampleSerializer
    filters = AuditFilterSerializer
    lookup_value_regex = "[0-9]{1,18}"
    required_permission = {
        "GET": "corrections.review_correction",
        "POST": "corrections.review_correction",
    }

    @extend_schema(
        summary="Say which label is right; it becomes an accepted correction.",
        description="What the model had said is in the answer, and nowhere before: it would sway "
        "you.",
        examples=[
            OpenApiExample(
                "A verdict",
                request_only=True,
                value={"correct_label": "refutes", "reason": "No increase means not more common."},
            )
        ],
        request=AuditAnswerSerializer,
        responses={200: AuditSampleSerializer, 409: DECIDED},
    )
    @action(detail=True, methods=["post"])
    def answer(self, request: Request, pk: str) -> Response:
        return self._decide(request, AuditAnswerSerializer, audits.answer)

    @extend_schema(
        summary="Say that it cannot be told, and why; it counts as not answered.",
        description="Somebody else may still answer it, until its texts are removed.",
        examples=[
            OpenApiExample(
                "A reason",
                request_only=True,
                value={"reason": "The premise breaks off in the middle."},
            )
        ],
        request=AuditSkipSerializer,
        responses={200: AuditSampleSerializer, 409: DECIDED},
    )
    @action(detail=True, methods=["post"])
    def skip(self, request: Request, pk: str) -> Response:
        return self._decide(request, AuditSkipSerializer, audits.skip)

    def _decide(
        self,
        request: Request,
        serializer: type[BaseSerializer[Any]],
        decide: Callable[..., AuditSample],
    ) -> Response:
        sent = serializer(data=request.data)
        sent.is_valid(raise_exception=True)
        sample = self.get_object()
        try:
            sample = decide(sample.pk, by=_user(request), **sent.validated_data)
        except audits.AlreadyDecided as error:
            raise Conflict(str(error)) from error
        return Response(self.get_serializer(sample).data)


router = SimpleRouter(trailing_slash=False)
router.register("corrections", CorrectionViewSet, basename="correction")
router.register("audit-samples", AuditSampleViewSet, basename="audit-sample")


def _narrowed(rows: CorrectionQuerySet, asked: dict[str, Any]) -> CorrectionQuerySet:
    visible = rows
    quarantined, conflicting = asked.pop("quarantined", None), asked.pop("conflicting", None)
    if moment := asked.pop("updated_after", None):
        # By themselves: beside the list's order SQLite would look at all rows for these few.
        changed = Correction.objects.filter(updated_at__gt=moment)
        rows = rows.filter(pk__in=changed.values("pk"))
    rows = rows.filter(**asked)
    if quarantined is not None:
        rows = rows.exclude(quarantine="") if quarantined else rows.filter(quarantine="")
    if conflicting is not None:
        disputed = visible.conflicts(seen=visible).values("pk")
        rows = rows.filter(pk__in=disputed) if conflicting else rows.exclude(pk__in=disputed)
    return rows


def _decided(values: dict[str, Any]) -> Review:
    seen = Seen(values.get("revision"), values.get("seen_status"))
    return Review(values["status"], values["note"], seen)


def _user(request: Request) -> User:
    if not isinstance(request.user, User):
        raise NotAuthenticated
    return request.user


def _check_may_draw(request: Request, values: dict[str, Any]) -> None:
    """A caller reports what they saw; how a set was drawn is for curators to say."""
    if values.get("sampling", Correction.Sampling.USER) != Correction.Sampling.USER:
        _require(request, "corrections.import_correction", "say how rows were sampled")


def _check_is_theirs(request: Request, row: Correction) -> None:
    """What somebody else recorded is for reviewers to revise."""
    recorded = row.events.filter(action=CorrectionEvent.Action.RECORDED)
    if recorded.exclude(by=_user(request)).exists():
        _require(request, "corrections.review_correction", "revise what somebody else sent")


def _check_may_redraw(request: Request, row: Correction, changes: Mapping[str, list[Any]]) -> None:
    """One's own row is one's own, but what was drawn, and how, is for curators to say."""
    before, *_ = changes.get("sampling", [row.sampling])
    redrawn = not changes.keys().isdisjoint(intake.OF_A_DRAW)
    if redrawn and before != Correction.Sampling.USER:
        _require(request, "corrections.import_correction", "change what was drawn, or how")


def _require(request: Request, permission: str, what: str) -> None:
    if not request.user.has_perm(permission):
        raise PermissionDenied(f"You may not {what}.")
