"""The forms of the admin's own pages: request training, promote, roll back.

They only shape what a person typed. Whether it may be done is decided by `training` and `registry`.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from django import forms

from adapters_app.models import Scope, ShadowEvaluation
from adapters_app.nli.config import PRECISIONS, PRESETS, TrainConfig

Verdict = ShadowEvaluation.Verdict

# What each field of TrainConfig does, for someone who has not read the code.
CONFIG_HELP = {
    "rank": "Rank of the LoRA matrices: how much an adapter can learn.",
    "alpha": "LoRA's scale; what is learnt is multiplied by alpha ÷ rank.",
    "dropout": "Share of inputs dropped inside the LoRA layers while training.",
    "target_modules": "“auto” = the attention's query and value projections; or names and commas.",
    "layer_share": "Share of the layers, from the top, that get an adapter.",
    "learning_rate": "Peak rate of the optimiser, after the warm-up.",
    "epochs": "Upper limit. Fewer are used where that is clearly better out of fold.",
    "batch_size": "Pairs per optimiser step. Smaller needs less memory.",
    "warmup_share": "Share of all steps over which the learning rate climbs.",
    "weight_decay": "Pull of the weights towards zero.",
    "max_length": "Tokens per pair. Only the premise is cut.",
    "anchor_weight": "How strongly answers on general pairs are held where the base has them.",
    "anchor_share": "General pairs in every step, as a share of the batch.",
    "interpolation": "Share of the learnt change that is released: 1 = all of it.",
    "label_smoothing": "Share of each label's weight that is spread over the other two.",
    "logit_adjustment": "Share of the labels’ mix that is kept out of what is learnt: 0 = none.",
    "min_steps": "Steps that an epoch count is stretched to when there is little data.",
    "seed": "Same seed, verdicts, packages and device: same adapter.",
    "precision": "“auto” = bf16 where the hardware multiplies it natively, else fp32.",
    "gradient_checkpointing": "Compute activations twice instead of keeping them.",
    "min_confidence": "Leave out verdicts whose prediction was less confident than this.",
    "reporting_weights": "Confirmations count for those that people did not bother to send.",
    "corrections_only": "Leave out confirmations. The model then forgets what it got right.",
}
CONFIG_GROUPS = {
    "Adapter": ("rank", "alpha", "dropout", "target_modules", "layer_share", "interpolation"),
    "Optimiser": (
        "learning_rate",
        "epochs",
        "batch_size",
        "warmup_share",
        "weight_decay",
        "label_smoothing",
        "logit_adjustment",
        "min_steps",
        "seed",
        "precision",
        "gradient_checkpointing",
    ),
    "Keeping what the base can do": ("anchor_weight", "anchor_share"),
    "Which verdicts": ("max_length", "reporting_weights", "min_confidence", "corrections_only"),
}


def _config_field(name: str, value: Any) -> forms.Field:
    """A form field for one field of TrainConfig, by the type of its preset's value."""
    shared: dict[str, Any] = {
        "label": name.replace("_", " "),
        "help_text": CONFIG_HELP.get(name, ""),
    }
    if name == "precision":
        return forms.ChoiceField(choices=[(choice, choice) for choice in PRECISIONS], **shared)
    if isinstance(value, bool):
        return forms.BooleanField(required=False, **shared)
    if isinstance(value, int):
        return forms.IntegerField(**shared)
    if isinstance(value, float):
        return forms.FloatField(**shared)
    return forms.CharField(**shared)


class OwnForm(forms.Form):
    """A form on a page of ours: sent back with errors, it opens at the first field to correct."""

    def full_clean(self) -> None:
        super().full_clean()
        wrong = (field for field in self.visible_fields() if field.name in self.errors)
        first = next(wrong, None)
        if first is not None:  # it may be far below the evidence
            first.field.widget.attrs["autofocus"] = True


class RequestTrainingForm(OwnForm):
    """What the adapter is for, and every field of TrainConfig, starting from a preset."""

    preset = forms.ChoiceField(choices=[(name, name) for name in PRESETS], widget=forms.HiddenInput)
    scope = forms.ChoiceField(
        choices=Scope.choices,
        initial=Scope.USER,
        help_text="What the adapter is meant for. Recorded with the version.",
    )
    domain = forms.CharField(
        max_length=100,
        required=False,
        help_text="Free words, e.g. “medicine”. Recorded with the version.",
    )
    reason = forms.CharField(
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="Why now? It is kept with the run.",
    )

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        preset: str = "default",
        initial: Mapping[str, Any] | None = None,
    ) -> None:
        config = PRESETS[preset].to_dict()
        super().__init__(data, initial={**config, **(initial or {})})
        self.config_names = [field.name for field in fields(TrainConfig) if field.name != "preset"]
        for name in self.config_names:
            self.fields[name] = _config_field(name, config[name])

    def clean(self) -> dict[str, Any]:
        """Let TrainConfig judge each value, so that every wrong one is told at once."""
        cleaned = super().clean() or {}
        preset = cleaned.get("preset")
        if preset is None:
            return cleaned
        given = {name: cleaned[name] for name in self.config_names if name in cleaned}
        for name, value in given.items():
            try:
                TrainConfig.from_mapping({"preset": preset, name: value})
            except ValueError as error:
                self.add_error(name, str(error).removeprefix(f"{name}: "))
        if not self.errors:
            cleaned["config"] = TrainConfig.from_mapping({"preset": preset, **given}).to_dict()
        return cleaned

    def config_groups(self) -> list[tuple[str, list[forms.BoundField]]]:
        """The config's fields under their headings; fields new to TrainConfig come last."""
        grouped = {name for names in CONFIG_GROUPS.values() for name in names}
        headings = {
            **CONFIG_GROUPS,
            "Other": tuple(name for name in self.config_names if name not in grouped),
        }
        groups = [
            (heading, [self[name] for name in names if name in self.config_names])
            for heading, names in headings.items()
        ]
        return [(heading, members) for heading, members in groups if members]

    def config_has_errors(self) -> bool:
        return any(name in self.errors for name in self.config_names)


class ReleaseForm(OwnForm):
    """What every change of who answers asks for: why, and which state the person was looking at."""

    expected_revision = forms.IntegerField(min_value=0, widget=forms.HiddenInput)
    reason = forms.CharField(
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="One sentence for the ledger. It cannot be changed afterwards.",
    )


class PromoteForm(ReleaseForm):
    """Promotion. Its verdict decides which of the two boxes it offers.

    The hidden ids are of what the person was shown; a decision on anything else is refused.
    """

    evidence_id = forms.IntegerField(required=False, widget=forms.HiddenInput)
    calibration_id = forms.IntegerField(required=False, widget=forms.HiddenInput)

    acknowledge = forms.BooleanField(
        required=False,
        label="I know that the evidence is inconclusive and promote it all the same",
        help_text="Recorded in the ledger under your name.",
    )
    override = forms.BooleanField(
        required=False,
        label="Override the gate",
        help_text="The evidence speaks against it. Say in the reason why you promote it anyway; "
        "the ledger keeps both.",
    )

    def offer(self, verdict: str) -> None:
        """Keep only the box that a promotion on this verdict needs."""
        if verdict != Verdict.INCONCLUSIVE:
            del self.fields["acknowledge"]
        if verdict != Verdict.WORSE:
            del self.fields["override"]
