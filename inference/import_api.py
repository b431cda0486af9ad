"""`POST /api/v1/corrections/import`: a file of verdicts, as the command takes it.

Thin: `imports` imports. What it refuses is 409 with the report; a file that cannot be read is 400.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from django.http import UnreadablePostError
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework import serializers, status
from rest_framework.exceptions import PermissionDenied
from rest_framework.parsers import BaseParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adapters_app.api import signed_in
from corrections import importers
from corrections.api import JSON_LINES, refusal
from corrections.intake import ImportReport
from corrections.requests import ChoiceField, RequestSerializer, read_query
from inference import engine, imports
from inference.batching import ForwardFailed, Overloaded
from inference.views import Unavailable

WAIT_S = 5  # before the same is sent again
PIECE = 64 * 1024  # bytes read at a time
CSV, SQLITE = "text/csv", "application/vnd.sqlite3"
# What a body that is nothing but the file is called in messages; the end tells its format.
NAMES = {JSON_LINES: "upload.jsonl", CSV: "upload.csv", SQLITE: "upload.db"}


class RawFile(BaseParser):
    """The body is the file: it is read where it is stored, not here."""

    def parse(self, stream: Any, *about: Any) -> Any:
        return stream


class JsonLinesFile(RawFile):
    media_type = JSON_LINES


class CsvFile(RawFile):
    media_type = CSV


class SqliteFile(RawFile):
    media_type = SQLITE


class ImportFileSerializer(RequestSerializer):
    file = serializers.FileField(
        allow_empty_file=True,  # the reader says so by name
        help_text="JSON Lines, a Lyra database, or CSV, where its name ends in `.csv`.",
    )


class ImportChoicesSerializer(serializers.Serializer[Any]):
    dry_run = serializers.BooleanField(
        default=False, help_text="true: say what would happen, and write and predict nothing."
    )
    accept = serializers.BooleanField(
        default=False, help_text="true: mark the rows accepted. For those who may review."
    )
    partial = serializers.BooleanField(  # type: ignore[assignment]  # hides whether an update is
        default=False, help_text="true: record the good rows although others are refused."
    )
    predict_missing = serializers.BooleanField(
        default=False,
        help_text="true: let what serves predict the rows that carry no prediction, which are "
        "refused otherwise.",
    )
    sampling = ChoiceField(
        choices=[imports.BY_CHOICE.value, imports.COMPLETE.value],
        required=False,
        help_text="How rows that do not say so were chosen: reported by people, or a complete "
        "labelled set. By default reported by people in a Lyra database and where a row states "
        "what was predicted, else complete.",
    )


class RefusedRowSerializer(serializers.Serializer[Any]):
    line = serializers.IntegerField(help_text="From 1; of a database the row, as it is read.")
    reason = serializers.CharField(help_text="Why, in a sentence.")


class ImportReportSerializer(serializers.Serializer[Any]):
    """What an import did, or with `written` false would do, in rows."""

    detail = serializers.CharField(help_text="The report in words.")
    written = serializers.BooleanField(help_text="false: a dry run, or nothing was imported.")
    rows = serializers.IntegerField(help_text="Those in the file.")
    created = serializers.IntegerField()
    revised = serializers.IntegerField(help_text="Known, with new content: to be reviewed again.")
    unchanged = serializers.IntegerField(help_text="Known, with the content they had last time.")
    corrected = serializers.IntegerField(help_text="Where the model was wrong.")
    confirmed = serializers.IntegerField(help_text="Where it was right.")
    accepted = serializers.IntegerField(help_text="By this import.")
    by_choice = serializers.IntegerField(
        help_text="What people chose to report: it trains, and no figure counts it."
    )
    quarantined = serializers.IntegerField(help_text="Not usable; each row says why.")
    predicted = serializers.IntegerField(help_text="By what serves, for this import.")
    refused = RefusedRowSerializer(
        many=True, help_text=f"The first {imports.SHOWN_REFUSALS} that cannot be recorded."
    )
    more_refused = serializers.IntegerField(help_text="How many beyond those in `refused`.")


REPORT = {
    "detail": "Imported 480 rows of verdicts.jsonl: 478 new, 0 revised, 2 unchanged, 0 refused; "
    "310 corrected, 170 confirmed; 0 accepted, 1 quarantined, 0 predicted.",
    "written": True,
    "rows": 480,
    "created": 478,
    "revised": 0,
    "unchanged": 2,
    "corrected": 310,
    "confirmed": 170,
    "accepted": 0,
    "by_choice": 0,
    "quarantined": 1,
    "predicted": 0,
    "refused": [],
    "more_refused": 0,
}
REFUSED_REPORT = dict.fromkeys(REPORT, 0) | {
    "detail": "1 of 480 rows is refused, so nothing is imported; mend it or ask for `partial`.",
    "written": False,
    "rows": 480,
    "refused": [{"line": 7, "reason": "correct_label is 'maybe'; it must be one of …"}],
}
LINE = (
    '{"id": "t-12", "premise": "No increase in falls was seen.", "hypothesis": "The drug made '
    'falls more common.", "predicted_label": "neutral", "predicted_confidence": 0.62, '
    '"correct_label": "refutes"}'
)
TABLE = (
    "id,premise,hypothesis,predicted_label,predicted_confidence,correct_label\n"
    "t-12,No increase in falls was seen.,The drug made falls more common.,neutral,0.62,refutes"
)


class ImportView(APIView):
    required_permission = imports.IMPORT
    parser_classes = (MultiPartParser, JsonLinesFile, CsvFile, SqliteFile)

    @extend_schema(
        operation_id="corrections_import",
        summary="Import a file of corrections.",
        description="The file is `file` of a form, or the body itself: JSON Lines, such as "
        "`GET /api/v1/corrections/export` gives, CSV, or a Lyra database. It is recorded as a "
        "whole, or with a row that is refused not at all, unless `partial` is asked for. Importing "
        "again is harmless: rows are recognised by their `id`, or where they have none by their "
        "content.\n\n"
        "What an export says of reviews, revisions and folds is taken over from administrators "
        "alone. A large file is to be imported in parts, or by "
        "`manage.py import_corrections`.",
        parameters=[ImportChoicesSerializer],
        request={
            "multipart/form-data": ImportFileSerializer,
            JSON_LINES: OpenApiTypes.STR,
            CSV: OpenApiTypes.STR,
            SQLITE: OpenApiTypes.BINARY,
        },
        examples=[
            OpenApiExample(
                "A file of a form",
                request_only=True,
                media_type="multipart/form-data",
                value={"file": "verdicts.jsonl"},
            ),
            OpenApiExample("JSON Lines", request_only=True, media_type=JSON_LINES, value=LINE),
            OpenApiExample("CSV", request_only=True, media_type=CSV, value=TABLE),
            OpenApiExample(
                "A Lyra database", request_only=True, media_type=SQLITE, value="SQLite format 3…"
            ),
        ],
        responses={
            200: OpenApiResponse(
                ImportReportSerializer,
                description="Imported; or what would be, in a dry run.",
                examples=[OpenApiExample("A report", value=REPORT)],
            ),
            409: OpenApiResponse(
                ImportReportSerializer,
                description="Rows are refused, so nothing is imported.",
                examples=[OpenApiExample("A refusal", value=REFUSED_REPORT)],
            ),
            503: refusal(
                "Another file is being imported, what should predict cannot do so now, the "
                "database cannot be reached or written just now, or the server's disk is full.",
                says=str(imports.Busy()),
            ),
        },
    )
    def post(self, request: Request) -> Response:
        by = signed_in(request)
        choices = imports.Choices(**read_query(request.query_params, ImportChoicesSerializer()))
        if choices.accept and not by.has_perm(imports.REVIEW):
            raise PermissionDenied(imports.may_not_accept(by))
        name, chunks = _file(request)
        try:
            report = imports.import_upload(chunks, choices, name=name, by=by)
        except importers.FileUnreadable as error:
            raise serializers.ValidationError({"file": [str(error)]}) from error
        except (engine.EngineUnavailable, ForwardFailed) as error:
            raise Unavailable(str(error), code="unavailable", wait=WAIT_S) from error
        except (imports.Busy, Overloaded) as error:
            raise Unavailable(str(error), code="overloaded", wait=WAIT_S) from error
        if report.withheld:
            said = imports.refusal(report, otherwise="ask for `partial`")
            return Response(_shown(report, said), status=status.HTTP_409_CONFLICT)
        said = imports.summary(report, name, dry_run=choices.dry_run)
        doubt = imports.doubt(report, choices, complete="Then send `sampling=complete`.")
        return Response(_shown(report, f"{said} {doubt}".rstrip()))


def _file(request: Request) -> tuple[str, Iterable[bytes]]:
    """What the file is called, and its bytes."""
    name = NAMES.get((request.content_type or "").partition(";")[0].strip().lower())
    if name and request.data:
        return name, _pieces(request.data, int(request.META["CONTENT_LENGTH"]))
    sent = ImportFileSerializer(data=request.data)
    sent.is_valid(raise_exception=True)
    file = sent.validated_data["file"]
    return file.name, file.chunks()


def _pieces(body: Any, missing: int) -> Iterator[bytes]:
    """A body that is the file, of so many bytes. What came of one that broke off may look like a
    whole file; a form ends with its boundary, without which Django finds no file in it."""
    for piece in iter(partial(body.read, PIECE), b""):
        missing -= len(piece)
        yield piece
    if missing > 0:
        raise UnreadablePostError(f"{missing} bytes of the file did not arrive")


def _shown(report: ImportReport, said: str) -> dict[str, Any]:
    refused, more = imports.shown(report)
    values = vars(report) | {"detail": said, "refused": refused, "more_refused": more}
    return dict(ImportReportSerializer(values).data)
