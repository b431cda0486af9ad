"""The two forms of the correction pages: a new verdict, and what a curator may change of one."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from corrections.drafts import check
from corrections.intake import EDITABLE
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
            _add_problems(self, cleaned)
        return cleaned


class EditCorrectionForm(forms.ModelForm):
    """What may change in place; refused where the row is no longer the one that was shown."""

    seen_revision = forms.IntegerField(widget=forms.HiddenInput)
    note = forms.CharField(
        required=False,
        max_length=2000,
        widget=forms.TextInput(attrs={"class": "vTextField"}),
        help_text="Why; it is kept in the history.",
    )

    class Meta:
        model = Correction
        fields = EDITABLE
        widgets = SMALL_TEXT

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["seen_revision"] = self.instance.revision

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if cleaned.get("seen_revision") not in (None, self.instance.revision):
            raise ValidationError("Somebody else changed this row meanwhile: look at it again.")
        return cleaned


def _add_problems(form: forms.ModelForm, values: dict[str, Any]) -> None:
    try:
        check(values)
    except ValidationError as error:
        for name, problems in error.message_dict.items():
            form.add_error(name if name in form.fields else None, problems)
