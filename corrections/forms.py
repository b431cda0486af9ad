"""The forms of the correction pages: a new verdict, an edit or review of one, an audit answer."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from corrections.drafts import MAX_NOTE, MAX_VERSION, check, check_edit
from corrections.intake import EDITABLE, Seen
from corrections.models import Correction

NEW_FIELDS = (
    "premise",
    "hypothesis",
    "predicted_label",
    "predicted_confidence",
    "correct_label",
    "reason",
    "domain",
    "page_id",
    "annotator",
)

SMALL_TEXT = {"reason": forms.Textarea(attrs={"rows": 2, "class": "vLargeTextField"})}


class NewCorrectionForm(forms.ModelForm):
    """A verdict typed in by hand."""

    class Meta:
        model = Correction
        fields = NEW_FIELDS
        widgets = SMALL_TEXT

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if not self.errors:
            _add_problems(self, check, cleaned)
        return cleaned


NOT_SAID = ("", "not said")


class EditCorrectionForm(forms.ModelForm):
    """What may change in place, and with it a review; refused where the row is no longer the one
    that was shown."""

    seen_revision = forms.IntegerField(widget=forms.HiddenInput)
    seen_status = forms.ChoiceField(
        required=False,
        choices=[NOT_SAID, *Correction.Status.choices],
        widget=forms.HiddenInput,
    )
    # Not among the fields of the page: its buttons say it, and who only saves says nothing.
    decision = forms.ChoiceField(required=False, choices=[NOT_SAID, *Correction.Status.choices])
    note = forms.CharField(
        required=False,
        max_length=MAX_NOTE,
        widget=forms.TextInput(attrs={"class": "vTextField"}),
        help_text="Why; it is kept in the history, which whoever sent the row may read.",
    )

    class Meta:
        model = Correction
        fields = EDITABLE
        widgets = SMALL_TEXT
        help_texts = {"correct_label": "Keys 1, 2, 3: supports, refutes, neutral."}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["seen_revision"] = self.instance.revision
        self.initial["seen_status"] = self.instance.status

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if cleaned.get("seen_revision") not in (None, self.instance.revision):
            raise ValidationError("Somebody else changed this row meanwhile: look at it again.")
        _add_problems(self, check_edit, self.changes())
        return cleaned

    def changes(self) -> dict[str, Any]:
        """The new values of the fields that were changed."""
        changed = (name for name in self.changed_data if name in EDITABLE)
        return {name: self.cleaned_data[name] for name in changed if name in self.cleaned_data}


class ReviewForm(forms.Form):
    """A review, and what the reviewer saw of the row; what a page leaves out is not compared."""

    status = forms.ChoiceField(choices=Correction.Status.choices)
    note = forms.CharField(required=False, max_length=MAX_NOTE)
    revision = forms.IntegerField(required=False, min_value=1, max_value=MAX_VERSION)
    seen_status = forms.ChoiceField(required=False, choices=[NOT_SAID, *Correction.Status.choices])

    def seen(self) -> Seen:
        return Seen(self.cleaned_data["revision"], self.cleaned_data["seen_status"] or None)


class AuditForm(forms.Form):
    """What a person says of a drawn answer: a label, or that it cannot be told, and why."""

    CANNOT_TELL = "skip"

    decision = forms.ChoiceField(
        choices=[*Correction.LABEL_CHOICES, (CANNOT_TELL, "cannot tell")], widget=forms.HiddenInput
    )
    reason = forms.CharField(
        required=False,
        max_length=MAX_NOTE,
        # More than one line, so that Enter chooses no button.
        widget=forms.Textarea(attrs={"rows": 2}),
        label="Why",
        help_text="With a verdict if you like; needed where it cannot be told.",
    )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if cleaned.get("decision") == self.CANNOT_TELL and not cleaned.get("reason"):
            self.add_error("reason", "Say why it cannot be told.")
        return cleaned


def _add_problems(
    form: forms.ModelForm, rule: Callable[[dict[str, Any]], object], values: dict[str, Any]
) -> None:
    try:
        rule(values)
    except ValidationError as error:
        for name, problems in error.message_dict.items():
            form.add_error(name if name in form.fields else None, problems)
