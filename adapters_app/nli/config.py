"""How an adapter is trained: one validated, frozen dataclass. Stdlib only: forms use it too."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

AUTO = "auto"


@dataclass(frozen=True)
class TrainConfig:
    """Every choice of a training run. `from_mapping` is the only door for values from outside.

    Raises:
        ValueError: naming the field, the value and the limit.
    """

    preset: str = "default"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.1
    # "auto" = the architecture's attention query and value projections, verified against the model.
    target_modules: tuple[str, ...] | str = AUTO
    # Share of the encoder's layers, from the top, that get an adapter. What those below make of a
    # pair never changes, and is computed once for all epochs and fits.
    layer_share: float = 1.0
    learning_rate: float = 2e-3
    # Upper limit; fewer are used where that is clearly better out of fold.
    epochs: int = 3
    batch_size: int = 16
    # Share of all steps over which the rate climbs: a fixed 100 steps never ends on 100 rows.
    warmup_share: float = 0.1
    weight_decay: float = 0.0
    max_length: int = 256  # tokens per pair; only the premise is cut
    # Weight of KL(base ‖ adapter) on anchor pairs, which keeps general ability (Li & Hoiem 2016).
    # This, the next two and the rate were chosen by benchmarks/learning.py, see docs/recipe.md.
    anchor_weight: float = 8.0
    # Anchor pairs in every step, as a share of the batch.
    anchor_share: float = 0.75
    # Learnt change is scaled by this before release: 1 = as learnt, 0 = the base (WiSE-FT,
    # Wortsman et al. 2022).
    interpolation: float = 0.9
    label_smoothing: float = 0.0
    # Share τ of the labels' log frequencies that is added to the logits in training only: what is
    # learnt is then not their mix but what tells them apart (Menon et al. 2021).
    logit_adjustment: float = 0.0
    # Confirmations count for those that people did not bother to send; see `reporting`.
    reporting_weights: bool = True
    # Optimiser steps an epoch count is stretched to reach on little data (Mosbach et al. 2021).
    min_steps: int = 120
    seed: int = 42
    precision: str = AUTO  # auto = bf16 where the hardware multiplies it natively, else fp32
    # Activations are computed again in the backward pass instead of kept: less memory, more time.
    gradient_checkpointing: bool = False
    # Filters of the documents: train only on rows the model was this sure of / only on corrections.
    min_confidence: float = 0.0
    corrections_only: bool = False

    @property
    def anchors_in_step(self) -> int:
        """Anchor pairs in every optimiser step."""
        return max(1, round(self.batch_size * self.anchor_share))

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise ValueError(f"{name}: {value} is not between {low:g} and {high:g}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if self.target_modules != AUTO and (
            isinstance(self.target_modules, str) or not self.target_modules
        ):
            raise ValueError('target_modules: give "auto" or at least one module name')

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Build a config from text or JSON values: a preset, and fields that differ from it.

        Raises:
            ValueError: naming the unknown key, or the field whose value cannot be right.
        """
        preset = values.get("preset", "default")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"preset: {preset!r} is not one of {', '.join(PRESETS)}")
        known = {field.name: field for field in fields(cls)}
        changes: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                raise ValueError(f"{key}: unknown; known are {', '.join(known)}")
            changes[key] = _coerce(key, value, getattr(PRESETS[preset], key))
        return replace(PRESETS[preset], **changes)

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-ready; `from_mapping` of it is equal to this config."""
        values = asdict(self)
        if isinstance(self.target_modules, tuple):
            values["target_modules"] = list(self.target_modules)
        return values


PRECISIONS = (AUTO, "bf16", "fp32")

RANGES: dict[str, tuple[float, float]] = {
    "rank": (1, 256),
    "alpha": (0.1, 1024),
    "dropout": (0, 0.9),
    "layer_share": (0.01, 1),
    "learning_rate": (1e-7, 0.1),
    "epochs": (1, 100),
    "batch_size": (1, 512),
    "warmup_share": (0, 1),
    "weight_decay": (0, 1),
    "max_length": (16, 8192),
    "anchor_weight": (0, 100),
    "anchor_share": (0, 4),
    "interpolation": (0.01, 1),
    "label_smoothing": (0, 0.5),
    "logit_adjustment": (0, 2),
    "min_steps": (0, 100_000),
    "seed": (0, 2**32 - 1),
    "min_confidence": (0, 1),
}

PRESETS: dict[str, TrainConfig] = {
    "default": TrainConfig(),
    # The documents' recipe: r 8, alpha 16, dropout 0.1, 2e-4, 3 epochs, batch 8. Its 100 steps of
    # warm-up would not end on 100 verdicts; here a tenth of the steps is.
    "seed": TrainConfig(
        preset="seed",
        learning_rate=2e-4,
        epochs=3,
        batch_size=8,
        weight_decay=0.0,
        anchor_weight=0.0,
        interpolation=1.0,
        min_steps=0,
        reporting_weights=False,
    ),
}

CHOICES: dict[str, tuple[str, ...]] = {"preset": tuple(PRESETS), "precision": PRECISIONS}

_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


def _coerce(key: str, value: Any, like: Any) -> Any:
    """`value` in the type of the preset's value; text comes from forms and `--set key=value`."""
    if key == "target_modules":
        if isinstance(value, str):
            names = tuple(part.strip() for part in value.split(",") if part.strip())
            return AUTO if names in {(), (AUTO,)} else names
        if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            return tuple(value)
        raise ValueError('target_modules: give "auto" or module names separated by commas')
    if isinstance(like, bool):
        if isinstance(value, bool):
            return value
        text = str(value).strip().lower()
        if text in _TRUE | _FALSE:
            return text in _TRUE
        raise ValueError(f"{key}: {value!r} is not true or false")
    if isinstance(like, str):
        if isinstance(value, str):
            return value
        raise ValueError(f"{key}: {value!r} is not text")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{key}: {value!r} is not a number")
    try:
        number = float(value)
    except ValueError as error:
        raise ValueError(f"{key}: {value!r} is not a number") from error
    except OverflowError as error:  # a whole number of more than 308 digits
        raise ValueError(f"{key}: the number is too large") from error
    if isinstance(like, int):
        if number != number or number in {float("inf"), float("-inf")} or number != int(number):
            raise ValueError(f"{key}: {value!r} is not a whole number")
        return int(number)
    return number
