"""The curator's pages: the queue, one verdict with its history, audit samples, and the groups.

Every change goes through `intake` or `audits`; rows are never deleted, a wrong one is rejected.
"""

import re
from collections.abc import Iterator
from copy import copy
from http import HTTPStatus
from itertools import dropwhile
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters
from django.contrib.admin.views.main import PAGE_VAR
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, SuspiciousOperation, ValidationError
from django.db.models import Case, Count, Model, Q, QuerySet, When
from django.forms import Form, ModelForm
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    QueryDict,
)
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import localtime
from django.views.decorators.http import require_POST, require_safe

from corrections import audits, intake
from corrections.forms import (
    NEW_FIELDS,
    AuditForm,
    EditCorrectionForm,
    NewCorrectionForm,
    ReviewForm,
)
from corrections.labels import LABELS
from corrections.models import AuditSample, Correction, CorrectionEvent, SourceGroup

Status = Correction.Status
SHOWN_CHARACTERS = 600  # of each text in the list
ARRIVALS = (CorrectionEvent.Action.RECORDED, CorrectionEvent.Action.REVISED)
NUMBER = re.compile("[0-9]{1,18}")  # an id or a revision, as a request may name it
NUMBERED = re.compile(f"#{NUMBER.pattern}")  # a row, as pages call it


class QuarantineFilter(admin.SimpleListFilter):
    title = "quarantine"
    parameter_name = "quarantined"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "quarantined"), ("no", "usable")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        if self.value() == "yes":
            return queryset.exclude(quarantine="")
        return queryset.filter(quarantine="") if self.value() == "no" else None


class ConflictFilter(admin.SimpleListFilter):
    title = "conflict"
    parameter_name = "conflict"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "judged differently")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        if self.value() != "yes":
            return None
        return queryset.filter(pk__in=Correction.objects.conflicts().values("pk"))


class ChangedByFilter(admin.SimpleListFilter):
    """Rows that somebody reviewed or edited; that they recorded or imported them is not meant."""

    title = "who reviewed or edited"
    parameter_name = "changed_by"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        # Also those who left: what they did stays.
        people = User.objects.with_perm(
            "corrections.review_correction",
            is_active=None,  # type: ignore[arg-type]  # both; the stubs do not know it
            backend="lyra_site.authentication.Accounts",
        )
        return [(str(user.pk), user.get_username()) for user in people.order_by("username")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        asked = self.value() or ""
        if not NUMBER.fullmatch(asked):
            return None
        changes = CorrectionEvent.objects.filter(by=int(asked)).exclude(action__in=ARRIVALS)
        return queryset.filter(pk__in=changes.values("correction"))


class AnnotatorFilter(admin.SimpleListFilter):
    """Says whose rows are listed. Only whoever was asked for: there may be thousands of names."""

    title = "annotator"
    parameter_name = "annotator"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        asked = self.value()
        return [] if asked is None else [(asked, asked or "(not named)")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        asked = self.value()
        return None if asked is None else queryset.filter(annotator=asked)


class History(admin.TabularInline):
    model = CorrectionEvent
    verbose_name_plural = "history"
    fields = ("at", "who", "action", "shown_changes", "note")
    readonly_fields = fields
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("corrections.view_correction")

    def get_queryset(self, request: HttpRequest) -> QuerySet[CorrectionEvent]:
        return super().get_queryset(request).select_related("by")

    @admin.display(description="by")
    def who(self, event: CorrectionEvent) -> str:
        """The name alone: Django's link leads to a page that only administrators may see."""
        return event.by.get_username()

    @admin.display(description="changes")
    def shown_changes(self, event: CorrectionEvent) -> str:
        lines = (
            f"{name.replace('_', ' ')}: {_shown(old)} → {_shown(new)}"
            for name, (old, new) in event.changes.items()
        )
        return "\n".join(lines) or "–"


@admin.register(Correction)
class CorrectionAdmin(admin.ModelAdmin):
    list_display = ("judged", "state", "origin")  # after the texts
    list_display_links = None
    list_filter = (
        "status",
        QuarantineFilter,
        ConflictFilter,
        "verdict",
        "correct_label",
        "predicted_label",
        "sampling",
        ("corrected_at", admin.DateFieldListFilter),
        "domain",
        ChangedByFilter,
        AnnotatorFilter,
    )
    # The rows of a review, of a group and of an import.
    linked_by = ("id__in", "group", "updated_at__gte", "updated_at__lte")
    list_per_page = 50
    list_select_related = ("group", "reviewer")
    search_fields = ("premise", "hypothesis", "reason", "external_id", "page_id", "annotator")
    search_help_text = (
        "Words of the texts or the reason, an id, a page, an annotator; #12 is row 12"
    )
    actions = ("accept", "reject", "reopen")
    inlines = (History,)
    ordering = ("-id",)

    class Media:
        css = {"all": ["corrections/review.css"]}
        js = ["corrections/review.js"]

    # --- Who may what ---

    def has_review_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("corrections.review_correction")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    # --- The list ---

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        """The texts lead to pages that know which list they were opened from."""

        @admin.display(description="premise and hypothesis")
        def pair(row: Correction) -> SafeString:
            return format_html(
                '<div class="pair"><div>{}</div><div><a href="{}">{}</a></div></div>{}{}',
                _cut(row.premise),
                self._in_list(request, _change_url(row.pk)),
                _cut(row.hypothesis),
                _why(row.reason),
                _why(f"Quarantined. {row.quarantine}" if row.quarantine else ""),
            )

        return [pair, *self.list_display]

    def get_ordering(self, request: HttpRequest) -> list[Any]:
        """Rows asked for by their ids come in that order, rivals beside one another, and of what
        somebody changed the newest first."""
        asked = request.GET.get("id__in", "").split(",")
        if len(asked) <= self.list_per_page and all(NUMBER.fullmatch(pk) for pk in asked):
            return [Case(*(When(pk=int(pk), then=place) for place, pk in enumerate(asked)))]
        if request.GET.get("conflict") == "yes":
            return ["pair_digest", "-id"]
        if NUMBER.fullmatch(request.GET.get("changed_by", "")):
            return ["-updated_at", "-id"]
        return list(self.ordering)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        if NUMBERED.fullmatch(search_term.strip()):
            return queryset.filter(pk=int(search_term.strip().removeprefix("#"))), False
        return super().get_search_results(request, queryset, search_term)

    @admin.display(description="model → person", ordering="predicted_confidence")
    def judged(self, row: Correction) -> SafeString:
        return format_html(
            '<span class="label {}">{}</span> <span class="quiet">{}</span><br> '
            '→ <span class="label {}">{}</span>',
            row.predicted_label,
            row.predicted_label,
            f"{row.predicted_confidence:.2f}",
            row.correct_label,
            row.correct_label,
        )

    @admin.display(description="status", ordering="status")
    def state(self, row: Correction) -> SafeString:
        return format_html(
            '<span class="status {0}" data-pk="{1}" data-revision="{2}">{0}</span>'
            '<input type="hidden" name="revision_{1}" value="{2}">'
            '<input type="hidden" name="status_{1}" value="{0}">'
            '<div class="quiet"><span class="reviewed-by">{3}</span> #{1}</div>{4}',
            row.status,
            row.pk,
            row.revision,
            _by(row),
            _why("quarantined" if row.quarantine else ""),
        )

    @admin.display(description="from", ordering="corrected_at")
    def origin(self, row: Correction) -> SafeString:
        return format_html(
            '{}<br> <span class="quiet">{}<br> <span class="date">{}</span></span>',
            row.domain or "–",
            row.annotator or row.get_sampling_display(),
            date_format(localtime(row.corrected_at)),
        )

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {
            "title": "Corrections",
            "counts": _counts(),
            "labels": _accepted_by_label(),
            "may_review": self.has_review_permission(request),
        }
        return super().changelist_view(request, context | (extra_context or {}))

    @admin.action(description="Accept", permissions=["review"])
    def accept(self, request: HttpRequest, queryset: QuerySet[Correction]) -> None:
        usable = queryset.filter(quarantine="")
        quarantined = queryset.count() - usable.count()
        if quarantined:
            rows = "row" if quarantined == 1 else "rows"
            messages.warning(request, f"{quarantined} quarantined {rows} cannot be accepted.")
        self._review(request, usable, Status.ACCEPTED)

    @admin.action(description="Reject", permissions=["review"])
    def reject(self, request: HttpRequest, queryset: QuerySet[Correction]) -> None:
        self._review(request, queryset, Status.REJECTED)

    @admin.action(description="Back to pending", permissions=["review"])
    def reopen(self, request: HttpRequest, queryset: QuerySet[Correction]) -> None:
        self._review(request, queryset, Status.PENDING)

    def _review(self, request: HttpRequest, rows: QuerySet[Correction], status: Status) -> None:
        try:
            changed = intake.review(
                # Who selects many means those that are not there yet, whoever saw to the others.
                rows.exclude(status=status).values_list("pk", flat=True),
                by=_user(request),
                status=status,
                seen=_seen(request),
            )
        except intake.ReviewRefused as error:
            messages.error(request, f"Nothing was changed. {error}")
        else:
            corrections = "correction" if changed == 1 else "corrections"
            messages.success(request, f"{changed} {corrections} {status.label}.")

    # --- One verdict ---

    def get_urls(self) -> list[URLPattern]:
        review = self.admin_site.admin_view(require_POST(self.review_view))
        following = self.admin_site.admin_view(require_safe(self.next_view))
        return [
            path("<int:pk>/review/", review, name="corrections_correction_review"),
            path("<int:pk>/next/", following, name="corrections_correction_next"),
            *super().get_urls(),
        ]

    def review_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Review one row, for the list's keys."""
        if not self.has_review_permission(request):
            raise PermissionDenied
        row = get_object_or_404(Correction, pk=pk)
        form = ReviewForm(request.POST)
        if not form.is_valid():
            return JsonResponse({"detail": _said(form)}, status=HTTPStatus.BAD_REQUEST)
        status, note = form.cleaned_data["status"], form.cleaned_data["note"]
        try:
            intake.review([pk], by=_user(request), status=status, note=note, seen={pk: form.seen()})
        except intake.ReviewRefused as error:
            return JsonResponse({"detail": str(error)}, status=HTTPStatus.CONFLICT)
        counts = _counts_after(row, status)
        row.refresh_from_db()
        return JsonResponse({"status": status, "reviewed_by": _by(row), "counts": counts})

    def next_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """On to the next row, with nothing decided about this one."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = get_object_or_404(Correction, pk=pk)
        return self._go_on(request, row, self._next(request, row))

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> type[ModelForm]:
        kwargs["form"] = EditCorrectionForm if obj else NewCorrectionForm
        return super().get_form(request, obj, change, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        if obj is None:
            return list(NEW_FIELDS)
        lines: list[Any] = [("correct_label", "domain"), "reason"]
        if not self.has_change_permission(request, obj):
            return [*lines, "annotator"]
        return [*lines, ("annotator", "note"), "seen_revision", "seen_status"]

    def get_inlines(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return list(self.inlines) if obj else []

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        # Not inside the transaction Django would open: recording searches for near-duplicates
        # first, and on SQLite that transaction would keep every other writer waiting.
        context = (extra_context or {}) | {
            "may_review": self.has_review_permission(request),
            "from_list": bool(_origin(request)),
            "show_save_and_add_another": False,
        }
        row = _row(object_id)
        if row:
            same = Correction.objects.filter(pair_digest=row.pair_digest).exclude(pk=row.pk)
            # The first and the last ask the database where they are shown, not before.
            context |= {
                "title": f"Row {row.pk}",
                "others": same.order_by("-pk")[:20],
                "relabelled": _relabelled(row),
                "pending": Correction.objects.pending().count,
            }
        try:
            return self._changeform_view(request, object_id, form_url, context)  # type: ignore[attr-defined]
        except intake.ReviewRefused as error:
            messages.error(request, f"Nothing was changed. {error}")
            return HttpResponseRedirect(request.get_full_path())

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        values = form.cleaned_data
        if change and values["decision"]:
            self._edit_and_review(request, obj, form)
            return
        if change:
            self._edit(request, obj, form)
            return
        recorded, _ = intake.record_correction(
            by=_user(request), **{name: values[name] for name in NEW_FIELDS}
        )
        obj.pk = recorded.pk
        obj.refresh_from_db()

    def _edit(self, request: HttpRequest, row: Correction, form: EditCorrectionForm) -> None:
        before, note = row.status, form.cleaned_data["note"]
        intake.edit_correction(row, by=_user(request), note=note, **form.changes())
        if row.status != before:
            said = f"The label of row {row.pk} was changed, so it waits for review again."
            messages.warning(request, said)

    def _edit_and_review(self, request: HttpRequest, row: Any, form: Any) -> None:
        if not self.has_review_permission(request):
            raise PermissionDenied
        # Asked before the review, which may take the row out of the list.
        row.next_in_list = self._next(request, row)
        edited = intake.edit_and_review(
            row,
            by=_user(request),
            status=form.cleaned_data["decision"],
            note=form.cleaned_data["note"],
            seen_status=form.cleaned_data["seen_status"] or None,
            **form.changes(),
        )
        changed = "was changed and " if edited else ""
        messages.success(request, f"Row {row.pk} {changed}is {row.status}.")

    def response_change(self, request: HttpRequest, obj: Any) -> HttpResponse:
        if not request.POST.get("decision"):
            return super().response_change(request, obj)
        return self._go_on(request, obj, obj.next_in_list)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The row's own history, on its page: Django's log knows nothing of reviews in the list."""
        return HttpResponseRedirect(f"{_change_url(object_id)}#events-group")

    # --- From row to row ---

    def _in_list(self, request: HttpRequest, url: str) -> str:
        """`url` with the list that `request` is of, as Django's admin carries it."""
        filters = self.get_preserved_filters(request)
        return add_preserved_filters({"preserved_filters": filters, "opts": self.opts}, url)

    def _go_on(self, request: HttpRequest, row: Correction, following: int | None) -> HttpResponse:
        """To the following row, or back to the list where there is none."""
        if following is not None:
            return HttpResponseRedirect(self._in_list(request, _change_url(following)))
        query = _origin(request)
        said = f"No row follows row {row.pk} in this list." if query else "No other row is pending."
        messages.info(request, said)
        return HttpResponseRedirect(f"{_list_url()}?{query}" if query else _list_url())

    def _next(self, request: HttpRequest, row: Correction) -> int | None:
        """The row after `row` in the list it was opened from, else in the queue; None after all.

        From a row that the list has no more, as one whose conflict is settled, on to the first.
        """
        listed = self._list_of(request)
        if listed is None:
            return _next_pending(row)
        rows = listed.values_list("pk", flat=True)
        onward = dropwhile(lambda pk: pk != row.pk, rows.iterator())
        if next(onward, None) is None:
            return rows.first()
        return next(onward, None)

    def _list_of(self, request: HttpRequest) -> QuerySet[Correction] | None:
        """All pages of the list that a row was opened from; None where there is none."""
        query = _origin(request)
        if not query:
            return None
        asked = copy(request)
        asked.GET = QueryDict(query)
        try:
            return self.get_changelist_instance(asked).queryset
        except (IncorrectLookupParameters, SuspiciousOperation):
            return None


class AuditStateFilter(admin.SimpleListFilter):
    """Those that wait unless another state is asked for; others have no texts to show."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        unread = {AuditSample.State.EXPIRED, AuditSample.State.COMPARING}
        return [(value, label) for value, label in AuditSample.State.choices if value not in unread]

    def value(self) -> str:
        return super().value() or AuditSample.State.WAITING

    def choices(self, changelist: Any) -> Iterator[Any]:
        _everything, *states = super().choices(changelist)
        yield from states

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(state=self.value())


@admin.register(AuditSample)
class AuditSampleAdmin(admin.ModelAdmin):
    """Live answers drawn at random, oldest first, and the page that one is judged on.

    What the model said is hidden until the sample is answered: who sees it first tends to agree
    (anchoring), and the live accuracy would look better than it is. So is how it was drawn, since
    a disagreement says that somebody must be wrong. What a candidate is to answer first is not
    drawn yet, and nobody's to read.
    """

    list_display = ("pair", "drawn", "outcome")
    list_display_links = None
    list_filter = (AuditStateFilter, ("drawn_at", admin.DateFieldListFilter), "predicted_version")
    list_per_page = 50
    list_select_related = ("decided_by", "correction")
    search_fields = ("premise", "hypothesis", "page_id")
    ordering = ("drawn_at", "id")
    actions = None

    class Media:
        css = {"all": ["corrections/review.css"]}

    # --- Who may what: the texts are callers', so who may judge them may read them ---

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("corrections.review_correction")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    # --- The list ---

    def get_queryset(self, request: HttpRequest) -> QuerySet[AuditSample]:
        return super().get_queryset(request).exclude(state=AuditSample.State.COMPARING)

    @admin.display(description="premise and hypothesis")
    def pair(self, sample: AuditSample) -> SafeString:
        return format_html(
            '<div class="pair"><div>{}</div><div><a href="{}">{}</a></div></div>',
            _cut(sample.premise) or "(removed)",
            _audit_url(sample.pk),
            _cut(sample.hypothesis) or "(removed)",
        )

    @admin.display(description="drawn", ordering="drawn_at")
    def drawn(self, sample: AuditSample) -> SafeString:
        return format_html(
            '<span class="date">{}</span><br> <span class="quiet">{}</span>',
            date_format(localtime(sample.drawn_at), "DATETIME_FORMAT"),
            sample.page_id,
        )

    @admin.display(description="model → person")
    def outcome(self, sample: AuditSample) -> SafeString:
        if sample.correction is None:
            why = format_html('<div class="why">{}</div>', sample.skip_reason)
            return format_html("{}{}", sample.get_state_display(), why)
        return format_html(
            '<span class="label {0}">{0}</span><br> → <span class="label {1}">{1}</span>'
            '<br> <span class="quiet">{2}</span>',
            sample.predicted_label,
            sample.correction.correct_label,
            sample.how_drawn,
        )

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {
            "title": "Audit samples",
            "states": _states(),
            "audit_share": settings.LYRA_AUDIT_SHARE,
        }
        return super().changelist_view(request, context | (extra_context or {}))

    # --- One sample ---

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Judge one sample, then go on to the next."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if not NUMBER.fullmatch(object_id):
            raise Http404
        samples = AuditSample.objects.drawn().select_related("decided_by", "correction")
        sample = get_object_or_404(samples, pk=int(object_id))
        form = AuditForm(request.POST or None)
        if request.method == "POST" and form.is_valid() and _judge(request, sample, form):
            return HttpResponseRedirect(_next_audit_url())
        context = {
            **self.admin_site.each_context(request),
            "title": f"Audit sample {sample.pk}",
            "trail": [("Audit samples", reverse("admin:corrections_auditsample_changelist"))],
            "opts": self.opts,
            "sample": sample,
            "form": form,
            "labels": [(label.value, label.value[0]) for label in LABELS],
            "waiting": AuditSample.objects.waiting().count(),
        }
        return TemplateResponse(request, "admin/corrections/auditsample/judge.html", context)


@admin.register(SourceGroup)
class SourceGroupAdmin(admin.ModelAdmin):
    """What belongs together, and its permanent fold. To look at only."""

    list_display = ("key", "fold", "rows", "created_at")
    list_filter = ("fold",)
    search_fields = ("key",)
    readonly_fields = ("key", "fold", "created_at", "rows")

    def get_queryset(self, request: HttpRequest) -> QuerySet[SourceGroup]:
        return super().get_queryset(request).annotate(rows=Count("corrections"))

    @admin.display(ordering="rows")
    def rows(self, group: Any) -> SafeString:
        return format_html('<a href="{}?group={}">{}</a>', _list_url(), group.pk, group.rows)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


def _judge(request: HttpRequest, sample: AuditSample, form: AuditForm) -> bool:
    """Record what the form says; whether that was possible. Messages and the form say why not."""
    decision, reason = form.cleaned_data["decision"], form.cleaned_data["reason"]
    try:
        if decision == AuditForm.CANNOT_TELL:
            audits.skip(sample.pk, by=_user(request), reason=reason)
            said = f"Audit sample {sample.pk} is skipped; it counts as not answered."
            messages.success(request, said)
        else:
            judged = audits.answer(
                sample.pk, by=_user(request), correct_label=decision, reason=reason
            )
            messages.success(request, _revealed(judged))
    except audits.AlreadyDecided as error:
        messages.error(request, str(error))
    except ValidationError as error:
        form.add_error(None, " ".join(error.messages))
        return False
    return True


def _revealed(sample: AuditSample) -> str:
    """What the model had said, now that a person has judged."""
    said = f"Audit sample {sample.pk}: the model had said {sample.predicted_label} as well."
    if sample.correction and sample.correction.correct_label != sample.predicted_label:
        said = (
            f"Audit sample {sample.pk}: the model had said {sample.predicted_label} "
            f"({sample.confidence:.2f}); it is corrected to {sample.correction.correct_label}."
        )
    if sample.correction and sample.correction.quarantine:
        said += f" It counts for live accuracy, not for training. {sample.correction.quarantine}"
    return said


def _states() -> list[tuple[str, str, int]]:
    """(state, its name, samples) of the audit queue."""
    drawn = AuditSample.objects.drawn().order_by()
    found = dict(drawn.values_list("state").annotate(rows=Count("pk")))
    return [
        (value, label, found.get(value, 0))
        for value, label in AuditSample.State.choices
        if value != AuditSample.State.COMPARING
    ]


def _audit_url(pk: int) -> str:
    return reverse("admin:corrections_auditsample_change", args=[pk])


def _next_audit_url() -> str:
    following = AuditSample.objects.waiting().first()
    if following is None:
        return reverse("admin:corrections_auditsample_changelist")
    return _audit_url(following.pk)


def _user(request: HttpRequest) -> User:
    if not isinstance(request.user, User):
        raise PermissionDenied
    return request.user


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"


def _counts() -> dict[str, int]:
    """Rows by status, and those that need a person to sort them out."""
    return {
        **_by_status(),
        "quarantined": Correction.objects.exclude(quarantine="").count(),
        "conflicts": Correction.objects.conflicts().count(),
    }


def _counts_after(row: Correction, status: str) -> dict[str, int]:
    """The list's counts that may be others since `row`, as it was, got its new status."""
    changed = _by_status() | _accepted_by_label()
    # Only a row that was or is rejected, and has a rival, makes or ends a conflict.
    rivals = Correction.objects.filter(pair_digest=row.pair_digest).exclude(
        correct_label=row.correct_label
    )
    if Status.REJECTED in {row.status, status} and rivals.exists():
        return changed | {"conflicts": Correction.objects.conflicts().count()}
    return changed


def _by_status() -> dict[str, int]:
    found = dict(Correction.objects.order_by().values_list("status").annotate(rows=Count("pk")))
    return {status.value: found.get(status.value, 0) for status in Status}


def _accepted_by_label() -> dict[str, int]:
    accepted = Correction.objects.accepted().order_by()
    found = dict(accepted.values_list("correct_label").annotate(rows=Count("pk")))
    return {label.value: found.get(label.value, 0) for label in LABELS}


def _seen(request: HttpRequest) -> dict[int, intake.Seen]:
    """What the list showed of each row, from its hidden fields."""
    shown = {}
    for name, revision in request.POST.items():
        pk = name.removeprefix("revision_")
        if pk != name and NUMBER.fullmatch(pk) and NUMBER.fullmatch(str(revision)):
            status = request.POST.get(f"status_{pk}")
            known = status if status in Status.values else None
            shown[int(pk)] = intake.Seen(int(str(revision)), known)
    return shown


def _why(text: str) -> SafeString:
    return format_html('<div class="why">{}</div>', text) if text else SafeString()


def _by(row: Correction) -> str:
    """Who reviewed it, as the list says it; nothing where nobody did."""
    return f"by {row.reviewed_by}," if row.reviewed_by else ""


def _shown(value: Any) -> str:
    """A field's value in the history; nothing and an empty text look alike."""
    return str(value) if value or value == 0 else "–"


def _said(form: Form) -> str:
    """What is wrong with a form, each problem with the field it is about."""
    return " ".join(f"{name}: {' '.join(map(str, said))}" for name, said in form.errors.items())


def _row(object_id: str | None) -> Correction | None:
    """The row of an address, which may be anything."""
    if object_id is None or not NUMBER.fullmatch(object_id):
        return None
    return Correction.objects.filter(pk=int(object_id)).first()


def _relabelled(row: Correction) -> CorrectionEvent | None:
    """The edit that gave the row its label, where that is not what its annotator had said."""
    told = Q(changes__has_key="correct_label") | Q(changes__has_key="annotator")
    last = row.events.filter(told).select_related("by").last()
    if last is None or last.action != CorrectionEvent.Action.EDITED or "annotator" in last.changes:
        return None
    return last if last.by.get_username() != row.annotator else None


def _change_url(pk: int | str) -> str:
    return reverse("admin:corrections_correction_change", args=[pk])


def _list_url() -> str:
    return reverse("admin:corrections_correction_changelist")


def _origin(request: HttpRequest) -> str:
    """The query of the list that a row was opened from, without the page of it."""
    query = QueryDict(request.GET.get("_changelist_filters", ""), mutable=True)
    query.pop(PAGE_VAR, None)
    return query.urlencode()


def _next_pending(row: Correction) -> int | None:
    """The next pending row in the order of the list; from the top again after the last."""
    waiting = Correction.objects.pending().filter(quarantine="").exclude(pk=row.pk)
    following = waiting.filter(pk__lt=row.pk).first() or waiting.first()
    return following.pk if following else None
