"""Plotly figures as plain data; nothing here draws.

A colour “--name” is a CSS variable that charts.js resolves: a figure follows light and dark.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from corrections.labels import Label

Figure = dict[str, Any]

CANDIDATE, INCUMBENT, BASE = "--lyra-candidate", "--lyra-incumbent", "--lyra-base"
GUIDE = "--body-quiet-color"  # of lines to read against; the grid's own are too faint for that
# Points drawn at most: a curve of thousands of steps is as readable and much lighter.
MAX_POINTS = 400
# The gate's line, as in nli.metrics, which a page must not import.
TOLERATED_LOSS = 0.02
SMOOTHING = 0.9  # weight of the past in the loss curve's moving average


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 12}, "standoff": 8},
        "gridcolor": "--hairline-color",
        "linecolor": "--border-color",
        "zerolinecolor": "--border-color",
        "automargin": True,
        "fixedrange": True,  # a page that scrolls must not zoom by accident
        **more,
    }


def _figure(data: list[dict[str, Any]], *, x: Mapping[str, Any], y: Mapping[str, Any]) -> Figure:
    return {
        "data": data,
        "layout": {
            "xaxis": dict(x),
            "yaxis": dict(y),
            "font": {"family": "--font-family-primary", "color": "--body-quiet-color", "size": 12},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 48, "r": 12, "t": 28, "b": 40},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "hoverlabel": {
                "bgcolor": "--lyra-card-bg",
                "bordercolor": "--border-color",
                "font": {"color": "--body-fg"},
            },
        },
    }


def thinned(points: Sequence[Any], limit: int = MAX_POINTS) -> list[Any]:
    """Every k-th of `points`, the last always among them, at most `limit` + 1."""
    stride = max(1, -(-len(points) // limit))
    kept = list(points[::stride])
    if points and kept[-1] is not points[-1]:
        kept.append(points[-1])
    return kept


def smoothed(values: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Exponential moving average, corrected for its start (Kingma & Ba 2015, §3)."""
    average, averages = 0.0, []
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        averages.append(average / (1 - weight**count))
    return averages


def loss_curve(points: Sequence[tuple[int, float]]) -> Figure | None:
    """Training loss by optimiser step, raw and smoothed; None before the first step.

    Args:
        points: [[step, training loss], …] as `TrainingRun.loss_curve` keeps them.
    """
    if not points:
        return None
    averages = smoothed([loss for _, loss in points])
    rows = thinned(
        [(step, loss, mean) for (step, loss), mean in zip(points, averages, strict=True)]
    )
    steps = [step for step, _, _ in rows]
    return _figure(
        [
            {
                "type": "scatter",
                "mode": "lines",
                "name": "each step",
                "x": steps,
                "y": [loss for _, loss, _ in rows],
                "line": {"color": BASE, "width": 1},
                "opacity": 0.6,
            },
            {
                "type": "scatter",
                "mode": "lines",
                "name": "moving average",
                "x": steps,
                "y": [mean for _, _, mean in rows],
                "line": {"color": CANDIDATE, "width": 2.5},
            },
        ],
        x=_axis("optimiser step"),
        y=_axis("training loss", rangemode="tozero"),
    )


def epochs(metrics: Mapping[str, Any]) -> Figure | None:
    """Training loss and out-of-fold log loss after each epoch; epoch 0 is the base.

    The chosen one is the last whose out-of-fold log loss is within one standard error of the
    lowest.

    Args:
        metrics: `AdapterVersion.metrics`.
    """
    rows = metrics.get("epochs", [])
    if not rows:
        return None
    chosen = metrics["chosen_epoch"]
    numbers = [row["epoch"] for row in rows]
    accuracies = [(0, metrics.get("base", {}).get("accuracy"))]
    accuracies += [(row["epoch"], row["out_of_fold"].get("accuracy")) for row in rows]
    known = [(epoch, share) for epoch, share in accuracies if share is not None]
    figure = _figure(
        [
            {
                **_line("training loss", numbers, [row["train_loss"] for row in rows], INCUMBENT),
                "hovertemplate": "epoch %{x}: %{y:.3f}<extra></extra>",
            },
            {
                **_line(
                    "log loss, out of fold",
                    numbers,
                    [row["choice_log_loss"] for row in rows],
                    BASE,
                ),
                "hovertemplate": "epoch %{x}: %{y:.3f}<extra></extra>",
            },
            {
                **_line(
                    "accuracy, out of fold", [x for x, _ in known], [y for _, y in known], CANDIDATE
                ),
                "yaxis": "y2",
                "hovertemplate": "epoch %{x}: %{y:.1%}<extra></extra>",
            },
        ],
        x=_axis("epoch (0 = the base)", dtick=1),
        y=_axis("loss", rangemode="tozero"),
    )
    figure["layout"]["yaxis2"] = _axis(
        "accuracy", overlaying="y", side="right", showgrid=False, tickformat=".0%"
    )
    figure["layout"]["margin"]["r"] = 48
    figure["layout"]["shapes"] = [_upright(chosen, "--lyra-good")]
    return figure


def _line(name: str, x: Sequence[float], y: Sequence[float], color: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"color": color, "width": 2.5},
    }


def _upright(x: float, color: str) -> dict[str, Any]:
    """A dotted line from the bottom to the top of a figure."""
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "line": {"color": color, "width": 1, "dash": "dot"},
    }


def reliability(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> Figure | None:
    """Share of right answers by stated confidence, before and after calibration.

    Args:
        before, after: bins as `nli.metrics.ece` gives them; empty bins are not drawn.
    """
    if not any(row["count"] for row in after):
        return None
    return _figure(
        [
            _diagonal(),
            _bins("before", before, color=INCUMBENT, symbol="circle-open"),
            _bins("after", after, color=CANDIDATE, symbol="circle"),
        ],
        x=_axis("stated confidence", range=[0.25, 1.02], tickformat=".0%"),
        y=_axis("share that is right", range=[0, 1.02], tickformat=".0%"),
    )


def label_reliability(labels: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """For each label, how often it is the right one by the probability it was given.

    Args:
        labels: {label: bins} as `nli.metrics.label_reliability` gives them.
    """
    if not labels:
        return None
    lines = [
        _bins(label, labels[label], color=color, symbol=symbol)
        for label, color, symbol in (
            (Label.SUPPORTS, "--lyra-good", "triangle-up"),
            (Label.REFUTES, "--lyra-bad", "triangle-down"),
            (Label.NEUTRAL, BASE, "diamond"),
        )
    ]
    for line in lines:
        line["hovertemplate"] = "given %{x:.0%}, so in %{y:.0%}, n = %{customdata}<extra></extra>"
    return _figure(
        [_diagonal(), *lines],
        x=_axis("probability given to the label", range=[-0.02, 1.02], tickformat=".0%"),
        y=_axis("share that has the label", range=[-0.02, 1.02], tickformat=".0%"),
    )


def _diagonal() -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "perfect",
        "x": [0, 1],
        "y": [0, 1],
        "line": {"color": GUIDE, "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
    }


def _bins(
    name: str, bins: Sequence[Mapping[str, Any]], *, color: str, symbol: str
) -> dict[str, Any]:
    filled = [row for row in bins if row["count"]]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [row["confidence"] for row in filled],
        "y": [row["accuracy"] for row in filled],
        "customdata": [row["count"] for row in filled],
        "line": {"color": color, "width": 2},
        "marker": {"symbol": symbol, "size": 9},
        "hovertemplate": "said %{x:.0%}, right %{y:.0%}, n = %{customdata}<extra></extra>",
    }


def learning_curve(
    points: Sequence[Mapping[str, Any]], projection: Mapping[str, Any], *, measure: str, now: int
) -> Figure:
    """A figure by the number of verdicts learnt from, and what more of them would bring.

    Args:
        points, projection: as `LearningCurve` keeps them; `projection` of this measure.
        measure: “accuracy” or “macro_f1”.
        now: how many verdicts there are; a dotted line.
    """
    ahead = projection["ahead"]
    sizes = [row["verdicts"] for row in ahead]
    invisible = {"type": "scatter", "mode": "lines", "x": sizes, "line": {"width": 0}}
    figure = _figure(
        [
            {
                **invisible,
                "y": [row["low"] for row in ahead],
                "showlegend": False,
                "hoverinfo": "skip",
            },
            {
                **invisible,
                "y": [row["high"] for row in ahead],
                "name": "80 % interval",
                "fill": "tonexty",
                "fillcolor": "--lyra-busy-bg",
                "hoverinfo": "skip",
            },
            {
                **_line("expected", sizes, [row["median"] for row in ahead], CANDIDATE),
                "mode": "lines",
                "hovertemplate": "%{x} verdicts: %{y:.1%}<extra></extra>",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "measured",
                "x": [point["verdicts"] for point in points],
                "y": [point[measure]["value"] for point in points],
                "error_y": {
                    "type": "data",
                    "array": [point[measure]["error"] for point in points],
                    "color": INCUMBENT,
                },
                "marker": {"color": INCUMBENT, "size": 9},
                "hovertemplate": "%{x} verdicts: %{y:.1%}<extra></extra>",
            },
        ],
        x=_axis("verdicts learnt from", rangemode="tozero"),
        y=_axis("", tickformat=".0%"),
    )
    target = projection["target"]
    level = {**_upright(0, "--lyra-good"), "xref": "paper", "yref": "y"}
    figure["layout"]["shapes"] = [
        _upright(now, GUIDE),
        {**level, "x0": 0, "x1": 1, "y0": target, "y1": target},
    ]
    return figure


def arms(rows: Sequence[tuple[str, Sequence[float]]], *, measure: str) -> Figure:
    """A measure of each arm of a study: every split and seed a dot, their mean a diamond.

    Args:
        rows: (arm, values over splits and seeds); arms without any are left out.
    """
    filled = [(name, values) for name, values in rows if values]
    hover = "%{y}: %{x:.3f}<extra></extra>"
    return _figure(
        [
            {
                "type": "scatter",
                "mode": "markers",
                "name": "each split and seed",
                "x": [value for _, values in filled for value in values],
                "y": [name for name, values in filled for _ in values],
                "marker": {"color": INCUMBENT, "size": 8, "symbol": "circle-open"},
                "hovertemplate": hover,
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "mean",
                "x": [sum(values) / len(values) for _, values in filled],
                "y": [name for name, _ in filled],
                "marker": {"color": CANDIDATE, "size": 12, "symbol": "diamond"},
                "hovertemplate": hover,
            },
        ],
        x=_axis(measure),
        y=_axis("", autorange="reversed"),
    )


def learning_rates(
    rows: Sequence[tuple[str, Sequence[tuple[float, float | None]]]], *, measure: str
) -> Figure:
    """What each learning rate showed where the best was chosen, a line for each way of training.

    Args:
        rows: (way, [(learning rate, mean over the splits; None where all diverged), …]).
    """
    lines = [
        {
            **_line(
                name,
                [rate for rate, value in points if value is not None],
                [value for _, value in points if value is not None],
                color,
            ),
            "hovertemplate": "%{x:g}: %{y:.3f}<extra></extra>",
        }
        for (name, points), color in zip(rows, (INCUMBENT, CANDIDATE), strict=True)
    ]
    rates = sorted({rate for _, points in rows for rate, _ in points})
    ticks = {"tickvals": rates, "ticktext": [f"{rate:g}" for rate in rates]}
    return _figure(lines, x=_axis("learning rate", type="log", **ticks), y=_axis(measure))


def differences(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure | None:
    """Accuracy differences with their intervals, one line each; left of 0 is a loss.

    Args:
        rows: (name, stored difference: estimate, low, high as shares).
    """
    known = [(name, d) for name, d in rows if d and all(_finite(d[k]) for k in ("low", "high"))]
    if not known:
        return None
    figure = _figure(
        [
            {
                "type": "scatter",
                "mode": "markers",
                "x": [100 * d["estimate"] for _, d in known],
                "y": [name for name, _ in known],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * (d["high"] - d["estimate"]) for _, d in known],
                    "arrayminus": [100 * (d["estimate"] - d["low"]) for _, d in known],
                    "color": CANDIDATE,
                    "thickness": 2.5,
                    "width": 7,
                },
                "marker": {"color": CANDIDATE, "size": 11},
                "hovertemplate": "%{y}: %{x:+.1f} points<extra></extra>",
            }
        ],
        x=_axis("difference in accuracy, points", zeroline=True, zerolinewidth=2),
        y=_axis("", autorange="reversed"),
    )
    figure["layout"]["shapes"] = [_upright(-100 * TOLERATED_LOSS, "--lyra-bad")]
    figure["layout"]["showlegend"] = False
    return figure


def guard(phenomena: Mapping[str, Mapping[str, Any]], *, a: str, b: str) -> Figure | None:
    """Share of right answers per phenomenon of the guard set, incumbent `a` and candidate `b`.

    Args:
        phenomena: `ShadowEvaluation.guard["phenomena"]`.
    """
    if not phenomena:
        return None
    names = [name.replace("_", " ") for name in phenomena]
    rows = list(phenomena.values())
    marks = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": title,
            "x": [row[key] for row in rows],
            "y": names,
            "marker": {"color": color, "size": 9, "symbol": symbol, "line": {"width": 2}},
            "customdata": [row["n"] for row in rows],
            "hovertemplate": "%{y}: %{x:.0%}, n = %{customdata}<extra></extra>",
        }
        for title, key, color, symbol in (
            (a, "incumbent", INCUMBENT, "circle-open"),
            (b, "candidate", CANDIDATE, "circle"),
        )
    ]
    return _figure(
        marks,
        x=_axis("right answers", tickformat=".0%", range=[0, 1.03]),
        y=_axis("", autorange="reversed", dtick=1),
    )


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
