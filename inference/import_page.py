"""The page that imports a file of verdicts: it is checked first, which writes nothing.

The server keeps no file in between. It is sent twice, and imported only where it and the choices
are still those that were checked.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.forms.boundfield import BoundWidget
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.views.decorators.http import require_http_methods

from adapters_app.admin import allow
from adapters_app.forms import OwnForm
from corrections import importers
from corrections.intake import ImportReport, RefusedRow
from inference import imports

VIEW = "corrections.view_correction"
IMPORT = "import"  # of the two buttons
# How rows that do not say so were chosen: value, name, what follows from it.
SAMPLINGS = {
    "": (
        "Let the file say",
        "Where a row states a prediction, somebody reported it; else it is of a labelled set.",
    ),
    imports.COMPLETE.value: (
        "These are all rows of a labelled set",
        "They train, and figures count them: nobody left out what the model got right.",
    ),
    imports.BY_CHOICE.value: (
        "People chose what to report",
        "They train, but no figure counts them: people report mistakes sooner than right answers.",
    ),
}
MEND = "choose to import the good rows"
SAY_COMPLETE = f"Then choose “{SAMPLINGS[imports.COMPLETE.value][0]}”."


class ImportForm(OwnForm):
    """The file, how to import it, and what was checked before."""

    file = forms.FileField(allow_empty_file=True)  # the reader says so by name
    sampling = forms.ChoiceField(
        required=False,
        label="How were the rows chosen?",
        choices=[(value, name) for value, (name, _) in SAMPLINGS.items()],
        widget=forms.RadioSelect,
        initial="",
    )
    predict_missing = forms.BooleanField(
        required=False,
        label="Let the model predict the rows that state no prediction",
        help_text="Whoever serves now is asked when you import. Otherwise such rows are refused.",
    )
    partial = forms.BooleanField(
        required=False,
        label="Import the good rows although others are refused",
        help_text="Otherwise one refused row keeps the whole file out, for you to mend it.",
    )
    accept = forms.BooleanField(
        required=False,
        label="Accept the rows",
        help_text="Otherwise they wait for somebody to review them.",
    )

    def __init__(self, *args: Any, may_review: bool, **named: Any) -> None:
        super().__init__(*args, **named)
        if not may_review:
            del self.fields["accept"]

    def samplings(self) -> Iterator[tuple[BoundWidget, str]]:
        """Each button, and what follows from it."""
        for button, (_, follows) in zip(self["sampling"], SAMPLINGS.values(), strict=True):
            yield button, follows

    @cached_property
    def chosen(self) -> imports.Choices:
        values = self.cleaned_data
        return imports.Choices(
            accept=values.get("accept", False),
            partial=values["partial"],
            predict_missing=values["predict_missing"],
            sampling=values["sampling"] or None,
        )

    @cached_property
    def seal(self) -> str:
        """What was checked, to be known again: SHA-256 of the choices and the file."""
        found = hashlib.sha256(repr(asdict(self.chosen)).encode())
        for chunk in self.cleaned_data["file"].chunks():
            found.update(chunk)
        return found.hexdigest()


@dataclass(frozen=True)
class Checked:
    """What the page tells of a file that was not imported."""

    report: ImportReport
    headline: str
    doubt: str
    seal: str  # of what would be imported; empty where nothing would
    is_another: bool  # than what was checked before

    @property
    def tone(self) -> str:
        return "bad" if self.report.withheld else "warn" if self.report.refused else "good"

    @property
    def refused(self) -> list[RefusedRow]:
        return imports.shown(self.report)[0]

    @property
    def more_refused(self) -> int:
        return imports.shown(self.report)[1]


@require_http_methods(["GET", "HEAD", "POST"])
def import_view(request: HttpRequest) -> HttpResponse:
    """Check a file, or import the one that was checked."""
    by = allow(request, imports.IMPORT)
    sent = (request.POST, request.FILES) if request.method == "POST" else ()
    form = ImportForm(*sent, may_review=by.has_perm(imports.REVIEW))
    checked = None
    if form.is_bound and form.is_valid():
        wanted = request.POST.get("step") == IMPORT
        is_as_checked = request.POST.get("checked") == form.seal
        started = timezone.now()
        report = _attempt(form, by, dry_run=not (wanted and is_as_checked))
        if report and report.written:
            _tell(request, form, report)
            return HttpResponseRedirect(_imported_url(by, report, started))
        if report:
            checked = _checked(form, report, is_another=wanted and not is_as_checked)
    context = {
        **admin.site.each_context(request),
        "title": "Import corrections",
        "trail": [("Corrections", _list_url())],
        "form": form,
        "checked": checked,
        "most_bytes": settings.LYRA_MAX_IMPORT_BYTES,
        "most_rows": f"{settings.LYRA_MAX_IMPORT_ROWS:,}",
    }
    return TemplateResponse(request, "admin/corrections/correction/import.html", context)


def _attempt(form: ImportForm, by: User, *, dry_run: bool) -> ImportReport | None:
    """Import the file, or say what would be; None where the form says why neither is possible."""
    file = form.cleaned_data["file"]
    try:
        return imports.import_upload(
            file.chunks(),
            replace(form.chosen, dry_run=dry_run),
            name=file.name,
            by=by,
        )
    except importers.FileUnreadable as error:
        form.add_error("file", str(error))
    except (imports.Busy, *imports.UNPREDICTED) as error:
        form.add_error(None, f"Nothing was imported. {error}")
    return None


def _checked(form: ImportForm, report: ImportReport, *, is_another: bool) -> Checked:
    name, good = form.cleaned_data["file"].name, report.rows - len(report.refused)
    headline = f"{good} of {report.rows} rows of {name} would be imported."
    if report.withheld:
        headline = imports.refusal(report, otherwise=MEND)
    return Checked(
        report,
        headline,
        imports.doubt(report, form.chosen, complete=SAY_COMPLETE),
        seal="" if report.withheld else form.seal,
        is_another=is_another,
    )


def _tell(request: HttpRequest, form: ImportForm, report: ImportReport) -> None:
    name = form.cleaned_data["file"].name
    messages.success(request, imports.summary(report, name, dry_run=False))
    if doubt := imports.doubt(report, form.chosen, complete=SAY_COMPLETE):
        messages.warning(request, f"{doubt} Importing the file again changes them.")


def _imported_url(by: User, report: ImportReport, started: datetime) -> str:
    """The list, of the rows that this import made or changed."""
    if not by.has_perm(VIEW):
        return reverse("import-corrections")
    if not (report.created or report.revised or report.accepted):
        return _list_url()
    during = {"updated_at__gte": started, "updated_at__lte": timezone.now()}
    return f"{_list_url()}?{urlencode({name: at.isoformat() for name, at in during.items()})}"


def _list_url() -> str:
    return reverse("admin:corrections_correction_changelist")
