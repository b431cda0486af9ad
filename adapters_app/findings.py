"""What the fits of a study say together: means and spreads, LoRA's shares, and it in words.

Light: pages import it. Figures come from the stored rows alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import ceil
from statistics import mean, stdev
from typing import Any

from adapters_app.models import Study, StudyFit

Method, Setting, Task = StudyFit.Method, StudyFit.Setting, StudyFit.Task

# ADR-001 of the documents; its LoRA figure was taken during training, the others afterwards.
DOCUMENTS: dict[str, dict[str, float]] = {
    Method.BASELINE: {
        "spearman": -0.219,
        "margin": -0.083,
        "cohens_d": -0.419,
        "auc": 0.373,
        "best_f1": 0.698,
    },
    Method.STANDARD: {
        "spearman": 0.853,
        "margin": 0.940,
        "cohens_d": 7.727,
        "auc": 0.994,
        "best_f1": 0.991,
    },
    Method.LORA: {"spearman": 0.827},
}
DOCUMENTS_SHARE = 0.969
DOCUMENTS_PARAMETERS = "294K"
FLOAT32_BYTES = 4
# A share this much higher at the best rates puts the shortfall down to the rate.
MARKED = 0.1
# Standard errors that a gain has to exceed before anybody can have a share of it.
CERTAIN = 2

ARMS: tuple[tuple[str, str, str], ...] = (
    (Method.BASELINE, "", "Baseline"),
    (Method.STANDARD, Setting.IDENTICAL, "Standard"),
    (Method.LORA, Setting.IDENTICAL, "LoRA"),
    (Method.STANDARD, Setting.BEST, "Standard, best rate"),
    (Method.LORA, Setting.BEST, "LoRA, best rate"),
)
# The first of each task is what the best learning rate is chosen by.
MEASURES: dict[str, dict[str, str]] = {
    Task.EMBEDDING: {
        "spearman": "Spearman correlation",
        "margin": "Compatibility margin",
        "cohens_d": "Cohen's d",
        "auc": "AUC-ROC",
        "best_f1": "Best F1",
        "purity": "Cluster purity",
        "false_positive_rate": "False positives",
    },
    Task.NLI: {
        "macro_f1": "Macro-F1",
        "accuracy": "Accuracy",
        "log_loss": "Log loss",
        "brier": "Brier score",
        "ece": "ECE",
    },
}
COSTS = ("seconds", "trainable_parameters", "artifact_bytes", "idle_mb", "peak_mb")


@dataclass(frozen=True)
class Spread:
    """Values over splits and seeds; the deviation is None of a single one."""

    values: list[float]

    @property
    def mean(self) -> float | None:
        return mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def error(self) -> float:
        """Standard error of the mean; 0 where a single value does not tell."""
        return (self.deviation or 0.0) / max(len(self.values), 1) ** 0.5

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation, "n": len(self.values)}


@dataclass(frozen=True)
class Shares:
    """LoRA's part of what standard fine-tuning reaches, from means over splits and seeds.

    `of_gain` is None where standard fine-tuning gained no more than two of its standard errors over
    splits, `of_standard` where it reached no figure above 0.
    """

    baseline: float
    standard: float
    lora: float
    gain_error: float = 0.0

    @property
    def of_standard(self) -> float | None:
        return self.lora / self.standard if self.standard > 0 else None

    @property
    def of_gain(self) -> float | None:
        gain = self.standard - self.baseline
        return (self.lora - self.baseline) / gain if gain > CERTAIN * self.gain_error else None

    @property
    def of_baseline(self) -> float | None:
        """What the untouched model has of standard's figure."""
        return self.baseline / self.standard if self.standard > 0 else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "of_standard": self.of_standard,
            "of_gain": self.of_gain,
            "of_baseline": self.of_baseline,
        }


DOCUMENTS_SHARES = Shares(*(DOCUMENTS[method]["spearman"] for method in Method))


class TaskFindings:
    """One task of a study: its fits by arm."""

    def __init__(self, task: str, fits: Iterable[StudyFit], config: Mapping[str, Any]) -> None:
        self.task = task
        self._config = config
        self.measures = MEASURES[task]
        self.chosen_by = next(iter(self.measures))
        self._fits: dict[tuple[str, str], list[StudyFit]] = {
            (method, setting): [] for method, setting, _ in ARMS
        }
        for fit in fits:
            if fit.task == task:
                self._fits[fit.method, fit.setting].append(fit)

    def arm(self, method: str, setting: str) -> list[StudyFit]:
        return self._fits[method, setting]

    def spread(self, method: str, setting: str, measure: str) -> Spread:
        return Spread([fit.measures[measure] for fit in self.arm(method, setting)])

    def _cost(self, method: str, setting: str, name: str) -> Spread:
        costs = [getattr(fit, name) for fit in self.arm(method, setting)]
        return Spread([cost for cost in costs if cost is not None])

    def shares(self, setting: str) -> Shares:
        """Of the first measure."""
        return Shares(
            mean(self.spread(Method.BASELINE, "", self.chosen_by).values),
            mean(self.spread(Method.STANDARD, setting, self.chosen_by).values),
            mean(self.spread(Method.LORA, setting, self.chosen_by).values),
            self._gain(setting).error,
        )

    def _gain(self, setting: str) -> Spread:
        """Standard fine-tuning less the baseline in the first measure, a value for each split."""
        standard = self.arm(Method.STANDARD, setting)
        return Spread(
            [
                mean(
                    fit.measures[self.chosen_by] - untouched.measures[self.chosen_by]
                    for fit in standard
                    if fit.split == untouched.split
                )
                for untouched in self.arm(Method.BASELINE, "")
            ]
        )

    def difference(self, setting: str) -> Spread:
        """LoRA less standard in the first measure, paired by split and seed."""
        standard = {
            (fit.split, fit.seed): fit.measures[self.chosen_by]
            for fit in self.arm(Method.STANDARD, setting)
        }
        return Spread(
            [
                fit.measures[self.chosen_by] - standard[fit.split, fit.seed]
                for fit in self.arm(Method.LORA, setting)
            ]
        )

    @property
    def identical_difference(self) -> Spread:
        return self.difference(Setting.IDENTICAL)

    @property
    def best_difference(self) -> Spread:
        return self.difference(Setting.BEST)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A line for each measure: a spread for each arm, and what the documents have."""
        return [
            {
                "name": name,
                "cells": [self.spread(method, setting, measure) for method, setting, _ in ARMS],
                "documents": [DOCUMENTS[method].get(measure) for method in Method],
            }
            for measure, name in self.measures.items()
        ]

    @property
    def category_table(self) -> list[dict[str, Any]]:
        """A line for each category: the baseline's and every arm's AUC and margin."""
        return [
            {
                "name": category,
                "rows": round(self._category(Method.BASELINE, "", category, "n").mean or 0),
                "cells": [
                    (
                        self._category(method, setting, category, "auc"),
                        self._category(method, setting, category, "margin"),
                    )
                    for method, setting, _ in ARMS
                ],
            }
            for category in self._categories
        ]

    @property
    def costs(self) -> list[dict[str, Any]]:
        """A line for each arm that trains: its learning rates and what it took."""
        return [
            {
                "name": name,
                "rates": sorted({f"{fit.learning_rate:g}" for fit in self.arm(method, setting)}),
                **{cost: self._cost(method, setting, cost) for cost in COSTS},
            }
            for method, setting, name in ARMS
            if method != Method.BASELINE
        ]

    def rates(self, method: str) -> list[tuple[float, Spread]]:
        """(learning rate, what it was chosen by on the training groups' part), over the splits."""
        first = [fit for fit in self.arm(method, Setting.BEST) if fit.seed == 0]
        tried = sorted({row["learning_rate"] for fit in first for row in fit.search})
        return [
            (
                rate,
                Spread(
                    [
                        row["value"]
                        for fit in first
                        for row in fit.search
                        if row["learning_rate"] == rate and row["value"] is not None
                    ]
                ),
            )
            for rate in tried
        ]

    @property
    def at_the_edge(self) -> bool:
        """Whether some best rate was the highest tried: a higher one may be better still."""
        return any(
            fit.learning_rate == max(row["learning_rate"] for row in fit.search)
            for method in (Method.STANDARD, Method.LORA)
            for fit in self.arm(method, Setting.BEST)
            if fit.search
        )

    @property
    def _categories(self) -> list[str]:
        fits = self.arm(Method.BASELINE, "")
        return list(dict.fromkeys(name for fit in fits for name in fit.measures["categories"]))

    def _category(self, method: str, setting: str, name: str, measure: str) -> Spread:
        return Spread(
            [
                fit.measures["categories"][name][measure]
                for fit in self.arm(method, setting)
                if name in fit.measures["categories"]
            ]
        )

    @property
    def learnt(self) -> int:
        """Rows that a fit learnt from, on average."""
        return round(mean(fit.learnt for fit in self.arm(Method.STANDARD, Setting.IDENTICAL)))

    @property
    def steps(self) -> int:
        """Optimiser steps of a fit."""
        per_epoch = ceil(self.learnt / self._config["batch_size"])
        return int(self._config["epochs"] * per_epoch)

    @property
    def measured(self) -> int:
        """Rows measured on, of all splits together."""
        return sum(fit.measured for fit in self.arm(Method.BASELINE, ""))

    def to_dict(self) -> dict[str, Any]:
        return {
            "arms": {
                name: {
                    measure: self.spread(method, setting, measure).to_dict()
                    for measure in self.measures
                }
                for method, setting, name in ARMS
            },
            "shares": {setting.value: self.shares(setting).to_dict() for setting in Setting},
            "lora_less_standard": {
                setting.value: self.difference(setting).to_dict() for setting in Setting
            },
        }


class Findings:
    """All that is said of one study."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.fits: Sequence[StudyFit] = list(study.fits.all())

    @cached_property
    def embedding(self) -> TaskFindings:
        return TaskFindings(Task.EMBEDDING, self.fits, self.study.config)

    @cached_property
    def nli(self) -> TaskFindings:
        return TaskFindings(Task.NLI, self.fits, self.study.config)

    @property
    def f1_of_all(self) -> Spread:
        """Where nothing is known: every pair is called compatible."""
        return self.embedding.spread(Method.BASELINE, "", "f1_of_all")

    @property
    def purity_of_one(self) -> Spread:
        """Where nothing is known: all pairs are one cluster."""
        return self.embedding.spread(Method.BASELINE, "", "purity_of_one")

    @property
    def sentences(self) -> list[str]:
        identical, best = (self.embedding.shares(setting) for setting in Setting)
        return [
            shares_in_words(identical, best),
            explanation(identical, best),
            parameters_in_words(self._adapter_parameters),
        ]

    @property
    def _adapter_parameters(self) -> int:
        return self.embedding.arm(Method.LORA, Setting.IDENTICAL)[0].trainable_parameters


def shares_in_words(identical: Shares, best: Shares) -> str:
    """LoRA's shares beside the documents'."""
    return (
        f"With identical hyper-parameters LoRA reached {_percent(identical.of_standard)} of "
        f"standard fine-tuning's Spearman and {_percent(identical.of_gain)} of its gain over the "
        f"baseline; with each way's best learning rate {_percent(best.of_standard)} and "
        f"{_percent(best.of_gain)}. The documents: {_percent(DOCUMENTS_SHARE)} and "
        f"{_percent(DOCUMENTS_SHARES.of_gain)}."
    )


def explanation(identical: Shares, best: Shares) -> str:
    """Why the share differs from the documents': one sentence, and no more than is known."""
    start = (
        f"The documents' baseline was inverted ({_signed(DOCUMENTS_SHARES.baseline)}), so that "
        "nearly all of either way's Spearman was learnt and both shares are alike there; here "
    )
    if identical.of_gain is None:
        return start + (
            f"standard fine-tuning gained nothing certain over the baseline "
            f"({_signed(identical.baseline)} → {_signed(identical.standard)}), so that there is no "
            "gain to have a share of, and the share of Spearman is the baseline's own."
        )
    if identical.baseline > 0:
        start += (
            f"the untouched baseline alone has {_percent(identical.of_baseline)} of standard's "
            "Spearman, so that the share of Spearman flatters"
        )
    else:
        start += "too the baseline has none of it, so that the share of Spearman can be compared"
    return start + _cause(identical, best)


def _cause(identical: Shares, best: Shares) -> str:
    if best.of_gain is None or identical.of_gain is None:
        return "."
    if identical.of_gain < 1 - MARKED and best.of_gain >= identical.of_gain + MARKED:
        return (
            f", and what LoRA lacks of the gain ({_percent(1 - identical.of_gain)}) is in part the "
            f"learning rate: with the best ones it lacks {_percent(max(0.0, 1 - best.of_gain))}."
        )
    return ", and the share of the gain is what LoRA itself was worth."


def parameters_in_words(count: int) -> str:
    """How many parameters r = 8 on query and value has, beside what the documents say."""
    said = f"The adapter has {count:,} trained parameters; the documents say {DOCUMENTS_PARAMETERS}"
    size = count * FLOAT32_BYTES
    if f"{size // 1000}K" == DOCUMENTS_PARAMETERS:
        return f"{said}, which is its size in bytes ({count:,} × {FLOAT32_BYTES} = {size:,})."
    return f"{said} of theirs."


def export(study: Study) -> dict[str, Any]:
    """A study as JSON: what it was, what it says once it is finished, and every fit."""
    found = Findings(study)
    return {
        "study": study.pk,
        "data": study.data,
        "data_digest": study.data_digest,
        "rows": study.rows,
        "groups": study.groups,
        "base": study.base_name,
        "base_fingerprint": study.base_fingerprint,
        "config": study.config,
        "seconds": study.seconds,
        "finished": study.finished,
        "created_at": study.created_at.isoformat(),
        "created_by": study.created_by.username,
        "sentences": found.sentences if study.finished else [],
        "documents": {method.value: DOCUMENTS[method] for method in Method}
        | {"lora_of_standard": DOCUMENTS_SHARE, "lora_of_gain": DOCUMENTS_SHARES.of_gain},
        "embedding": found.embedding.to_dict() if study.finished else None,
        "nli": found.nli.to_dict() if study.finished else None,
        "fits": [_fit(fit) for fit in found.fits],
    }


def _fit(fit: StudyFit) -> dict[str, Any]:
    hidden = {"id", "study"}
    return {
        field.name: getattr(fit, field.name)
        for field in StudyFit._meta.concrete_fields
        if field.name not in hidden
    }


def _percent(share: float | None) -> str:
    return "no telling how much" if share is None else f"{100 * share:.1f} %"


def _signed(figure: float) -> str:
    return f"{'−' if figure < 0 else ''}{abs(figure):.3f}"
