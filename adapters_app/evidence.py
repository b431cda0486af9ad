"""A shadow evaluation as people read it: sentences and table rows made of its stored figures.

Nothing is computed anew here and nothing is decided; see `evaluation` and `nli.metrics` for that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapters_app import charts
from adapters_app.models import AdapterVersion, CalibrationEvaluation, ShadowEvaluation, name_of
from adapters_app.nli.betting import DROPPED_AT_MOST
from adapters_app.templatetags.figures import (
    confidence,
    figure,
    p_value,
    percent,
    points,
    signed,
)

Verdict = ShadowEvaluation.Verdict
PASSING = {Verdict.BETTER, Verdict.NOT_WORSE}
# Flipped pairs a page shows; the evaluation keeps more, and the API gives them all.
SHOWN_FLIPS = 100
# What evaluations meant that were stored before they said so themselves.
STATED_EFFECT = 0.05
CONFIDENCE = 0.95


@dataclass(frozen=True)
class FigureRow:
    """One figure of two models on the same rows, already written out."""

    name: str
    a: str
    b: str
    difference: str
    tone: str  # "good", "bad" or "": whether the candidate gained
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """One table: what `a` and `b` are called, on how many rows, and the rows of figures."""

    a: str
    b: str
    rows: int
    groups: int
    figures: list[FigureRow]
    gained: int
    lost: int
    mcnemar: str


@dataclass(frozen=True)
class Phenomenon:
    """One kind of general pair in the guard set: how many, and the share each model has right."""

    name: str
    n: int
    a: float
    b: float

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def tone(self) -> str:
        return _tone(self.difference)


@dataclass(frozen=True)
class Part:
    """One slice of the rows: how many, and what each model has right there."""

    kind: str
    name: str
    rows: int
    groups: int
    a: float
    b: float
    difference: float
    interval: str  # the difference's limits, or why there are none
    tone: str  # "bad" where the candidate has surely lost


@dataclass(frozen=True)
class Guard:
    """The guard set's part of an evaluation; `a` and `b` are what the two models are called."""

    a: str
    b: str
    rows: int
    sentence: str
    flips: str  # how many answers to unlabelled pairs changed, and what that bounds
    phenomena: list[Phenomenon]


@dataclass(frozen=True)
class Answerer:
    """Who answers, as the confirmation pages name it."""

    name: str
    learnt_from: str
    calibrated_by: str
    digest: str


def answerer(version: AdapterVersion | None, calibration: CalibrationEvaluation | None) -> Answerer:
    """Describe a version with its calibrator; no version is the base model."""
    return Answerer(
        name=name_of(version),
        learnt_from=f"{version.snapshot.rows} verdicts" if version else "its own training data",
        calibrated_by=(
            f"{calibration.get_method_display()} on {calibration.fitted_rows} pairs"
            if calibration
            else "nothing"
        ),
        digest=version.artifact_digest if version else "",
    )


def context(evaluation: ShadowEvaluation | None) -> dict[str, Any]:
    """Template variables that show an evaluation; without one they say so by being empty."""
    if evaluation is None:
        return {"evaluation": None, "flips": [], "flip_count": 0, "comparisons": []}
    candidate, incumbent = evaluation.candidate.name, name_of(evaluation.incumbent)
    stored = {incumbent: evaluation.figures.get("against_incumbent")}
    if evaluation.incumbent is not None:
        stored["the base"] = evaluation.figures.get("against_base")
    known = {name: figures for name, figures in stored.items() if figures}
    return {
        "evaluation": evaluation,
        "against": incumbent,
        "headline": headline(evaluation),
        "explanation": explanation(evaluation),
        "comparisons": [
            comparison(figures, a=name, b=candidate) for name, figures in known.items()
        ],
        "difference_figure": charts.differences(
            [(f"against {name}", figures["accuracy"]) for name, figures in known.items()]
        ),
        "difference_about": _about({name: each["accuracy"] for name, each in known.items()}),
        "parts": parts(evaluation),
        "labels": [{"label": name, **row} for name, row in evaluation.per_label.items()],
        "guard": guard(evaluation),
        "guard_figure": charts.guard(
            evaluation.guard.get("phenomena", {}), a=incumbent, b=candidate
        ),
        "flips": evaluation.flips[:SHOWN_FLIPS],
        "flip_count": len(evaluation.flips),
        "later": evaluation.later if evaluation.later.get("n") else None,
        "confirmation": confirmation(evaluation),
    }


def parts(evaluation: ShadowEvaluation) -> list[Part]:
    """Every slice of the rows compared; none where they were stored before there were slices."""
    return [
        Part(
            kind=kind.capitalize(),
            name=each["name"],
            rows=each["rows"],
            groups=each["groups"],
            a=each["a"],
            b=each["b"],
            difference=each["difference"]["estimate"],
            interval=_between(each["difference"]) if each["enough"] else "too few to tell",
            tone="bad" if each["lost"] else "",
        )
        for kind, some in evaluation.figures.get("slices", {}).items()
        for each in some
    ]


def guard(evaluation: ShadowEvaluation) -> Guard | None:
    """The guard set's figures; None where it was not run."""
    stored = evaluation.guard
    if not stored.get("n"):
        return None
    candidate, incumbent = evaluation.candidate.name, name_of(evaluation.incumbent)
    judgement = "a loss that blocks it" if stored["fails"] else "no evidence of a loss"
    return Guard(
        a=incumbent,
        b=candidate,
        rows=stored["n"],
        sentence=(
            f"Guard set: on {stored['n']} general pairs {incumbent} has "
            f"{percent(stored['incumbent_accuracy'])} right and {candidate} "
            f"{percent(stored['candidate_accuracy'])}; {stored['gained']} gained, "
            f"{stored['lost']} lost, {judgement} (one-sided p {p_value(stored['p_loss'])})."
        ),
        flips=flips(evaluation),
        phenomena=[
            Phenomenon(name.replace("_", " "), row["n"], row["incumbent"], row["candidate"])
            for name, row in stored["phenomena"].items()
        ],
    )


def flips(evaluation: ShadowEvaluation) -> str:
    """How often unlabelled general pairs are answered otherwise than by the base; or nothing."""
    stored = evaluation.guard.get("unlabelled")
    if not stored:
        return ""
    return (
        f"On {stored['n']} general pairs without labels {evaluation.candidate.name} answers "
        f"{percent(stored['flipped'])} otherwise than the base, so on pairs like these it has lost "
        f"at most {100 * stored['loss_at_most']:.1f} points of the base's accuracy (95 % bound)."
    )


def headline(evaluation: ShadowEvaluation) -> str:
    """The verdict as one sentence."""
    candidate, incumbent = evaluation.candidate.name, name_of(evaluation.incumbent)
    if evaluation.verdict == Verdict.BETTER:
        return f"{candidate} is better than {incumbent}."
    if evaluation.verdict == Verdict.NOT_WORSE:
        return f"{candidate} is not worse than {incumbent}: a loss over 2 points is excluded."
    if evaluation.verdict == Verdict.WORSE:
        return f"{candidate} is worse than {incumbent}."
    return f"It cannot be told whether {candidate} is better or worse than {incumbent}."


def explanation(evaluation: ShadowEvaluation) -> str:
    """The figures behind the verdict, with their n, in words."""
    candidate, incumbent = evaluation.candidate.name, name_of(evaluation.incumbent)
    stored = evaluation.figures.get("against_incumbent") or {}
    if not stored:
        return "There are no rows of known probability to compare on."
    difference = stored["accuracy"]
    accuracies = (
        f"Out of fold, on {stored['rows']} pairs from {_sources(stored)}, {incumbent} has "
        f"{percent(stored['a']['accuracy'])} right and {candidate} "
        f"{percent(stored['b']['accuracy'])}: {points(difference['estimate'])}, "
        f"{interval(difference)}."
    )
    discordant = (
        f"{stored['gained']} pairs only {candidate} has right, {stored['lost']} only {incumbent}."
    )
    sentences = [accuracies, discordant]
    found_worse = evaluation.verdict == Verdict.WORSE and (difference.get("high_95") or 0) < 0
    if found_worse and difference["high"] >= 0:
        sentences.append(
            f"A loss is judged by the {confidence(CONFIDENCE)} interval, however many comparisons "
            f"there were; that ends at {points(difference['high_95'])}."
        )
    if evaluation.verdict == Verdict.INCONCLUSIVE and evaluation.needed_pairs:
        sentences.append(needed(evaluation))
    return " ".join(sentences)


def _sources(stored: Mapping[str, Any]) -> str:
    """How many sources, and of how few claims where claims are fewer: those then count."""
    claims = stored.get("claims", stored["groups"])
    few = f" on {claims} claims" if claims < stored["groups"] else ""
    return f"{stored['groups']} sources{few}"


def needed(evaluation: ShadowEvaluation) -> str:
    """What “about N more” means: the gain it speaks of, and how likely N pairs are to show it."""
    effect = evaluation.figures.get("stated_effect", STATED_EFFECT)
    return (
        f"If {evaluation.candidate.name} really is {100 * effect:.0f} points better, about "
        f"{evaluation.needed_pairs} more reviewed pairs, from other sources and on other claims, "
        "would show it four times in five."
    )


def confirmation(evaluation: ShadowEvaluation) -> str:
    """Whether verdicts given after the snapshot confirm the released adapter; empty without any."""
    bet = evaluation.later.get("confirmation")
    if not bet or not bet["rows"]:
        return ""
    candidate, incumbent = evaluation.candidate.name, name_of(evaluation.incumbent)
    on = (
        f"{bet['rows']} of them, from {bet['pages']} sources and about claims that are new to both "
        "models"
    )
    if bet["confirmed"]:
        return (
            f"Confirmed: on {on}, {candidate} itself gains on {incumbent} (e-value "
            f"{bet['peak']:.3g}; 20 is enough, however often one looks)."
        )
    # Evaluations stored before this was measured do not say it.
    dropped = bet.get("dropped", 0.0)
    if dropped > DROPPED_AT_MOST:
        return (
            f"Whether they confirm {candidate} is not said: {percent(dropped)} of what it answers "
            f"otherwise than {incumbent} could not count, because verdicts on pages or claims that "
            "were already counted came in between others; reviewing page by page lets more of them "
            "count."
        )
    return (
        f"Not confirmed so far: on {on}, a bet that {candidate} itself gains on {incumbent} stands "
        f"at an e-value of {bet['wealth']:.3g}. At 20 it is confirmed, however often one looks."
    )


def interval(difference: Mapping[str, Any]) -> str:
    """A stored difference's interval in points, with its confidence."""
    return f"{_confidence(difference)} interval {_between(difference)} points"


def _between(difference: Mapping[str, Any]) -> str:
    low, high = (points(difference[end]).removesuffix(" points") for end in ("low", "high"))
    return f"{low} to {high}"


def _confidence(difference: Mapping[str, Any]) -> str:
    return confidence(difference.get("confidence", CONFIDENCE))


def _about(differences: Mapping[str, Mapping[str, Any]]) -> str:
    """What the chart of differences from the models of these names shows."""
    sure = {name: _confidence(difference) for name, difference in differences.items()}
    alike = set(sure.values())
    said = alike if len(alike) == 1 else (f"{each} against {name}" for name, each in sure.items())
    return (
        f"Points, with intervals over sources and claims ({', '.join(said)}). Dotted: a loss of 2 "
        "points, which “not worse” excludes."
    )


def comparison(stored: Mapping[str, Any], *, a: str, b: str) -> Comparison:
    """A stored `metrics.Comparison` as a table."""
    return Comparison(
        a=a,
        b=b,
        rows=stored["rows"],
        groups=stored["groups"],
        figures=figure_rows(stored),
        gained=stored["gained"],
        lost=stored["lost"],
        mcnemar=p_value(stored["mcnemar_p"]),
    )


def figure_rows(stored: Mapping[str, Any]) -> list[FigureRow]:
    """Accuracy, macro-F1, Brier score, ECE and log loss of both models, and what changed."""
    accuracy, *others = beside(stored["a"], stored["b"])
    return [replace(accuracy, note=interval(stored["accuracy"])), *others]


def beside(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[FigureRow]:
    """The same rows of two models' figures on the same verdicts; dashes for what is absent."""
    rows = []
    for key, name in (("accuracy", "Accuracy"), ("macro_f1", "Macro-F1")):
        had, has = a.get(key), b.get(key)
        gain = _change(had, has)
        rows.append(FigureRow(name, percent(had), percent(has), points(gain), _tone(gain)))
    for key, name in (("brier", "Brier score"), ("ece", "ECE"), ("log_loss", "Log loss")):
        had, has = a.get(key), b.get(key)
        change, tone = signed(_change(had, has)), _tone(_change(has, had))
        rows.append(FigureRow(name, figure(had), figure(has), change, tone, "lower is better"))
    return rows


def _change(had: float | None, has: float | None) -> float | None:
    return None if had is None or has is None else has - had


def _tone(gain: float | None) -> str:
    if gain is None or abs(gain) < 5e-4:
        return ""
    return "good" if gain > 0 else "bad"
