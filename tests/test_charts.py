"""Figures as data: what they show, and that plotly accepts them."""

import json
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest
from django.contrib.staticfiles import finders

from adapters_app import charts
from corrections.labels import LABELS

BINS = [
    {"low": 0.0, "high": 0.5, "count": 0},
    {"low": 0.5, "high": 0.9, "count": 30, "accuracy": 0.6, "confidence": 0.72, "gap": -0.12},
    {"low": 0.9, "high": 1.0, "count": 12, "accuracy": 0.95, "confidence": 0.96, "gap": -0.01},
]
METRICS = {
    "base": {"n": 200, "accuracy": 0.5},
    "chosen_epoch": 2,
    "epochs": [
        {
            "epoch": epoch,
            "train_loss": 1.0 / epoch,
            "choice_log_loss": 0.9 - 0.1 * epoch,
            "choice_rows": 200,
            "out_of_fold": {"n": 200, "accuracy": 0.5 + 0.1 * epoch},
        }
        for epoch in (1, 2)
    ],
}
PHENOMENA = {
    "negation": {"n": 50, "candidate": 0.7, "incumbent": 0.72, "base": 0.72},
    "role_swap": {"n": 50, "candidate": 0.64, "incumbent": 0.6, "base": 0.6},
}
POINTS = [
    {"verdicts": 0, "accuracy": {"value": 0.4, "error": 0.03}},
    {"verdicts": 80, "accuracy": {"value": 0.5, "error": 0.02}},
]
PROJECTION = {
    "target": 0.6,
    "ahead": [
        {"verdicts": 0, "median": 0.4, "low": 0.38, "high": 0.42},
        {"verdicts": 400, "median": 0.58, "low": 0.5, "high": 0.66},
    ],
}
ARMS = charts.arms([("Baseline", [0.3]), ("LoRA", [0.4, 0.6]), ("none", [])], measure="AUC-ROC")
RATES = charts.learning_rates(
    [("Standard", [(2e-5, 0.3), (2e-4, None)]), ("LoRA", [(2e-4, 0.4)])], measure="AUC-ROC"
)
CURVE = charts.learning_curve(POINTS, PROJECTION, measure="accuracy", now=100)
DIFFERENCE = {"estimate": 0.05, "low": 0.01, "high": 0.09}


def accepted_by_plotly(figure):
    """Validate as the page would draw it: a CSS variable stands for some colour."""
    text = json.dumps(figure)
    for name in ("candidate", "incumbent", "base", "good", "bad"):
        text = text.replace(f'"--lyra-{name}"', '"#123456"')
    for name in ("hairline-color", "border-color", "body-quiet-color", "body-fg"):
        text = text.replace(f'"--{name}"', '"#123456"')
    text = text.replace('"--lyra-busy-bg"', '"#123456"')
    text = text.replace('"--lyra-card-bg"', '"#123456"').replace('"--font-family-primary"', '"f"')
    assert '"--' not in text
    return go.Figure(json.loads(text))


@pytest.mark.parametrize(
    "figure",
    [
        charts.loss_curve([[1, 1.1], [2, 0.9], [3, 0.8]]),
        charts.epochs(METRICS),
        charts.reliability(BINS, BINS),
        charts.label_reliability({label.value: BINS for label in LABELS}),
        charts.differences([("against v1", DIFFERENCE)]),
        charts.guard(PHENOMENA, a="v1", b="v2"),
        CURVE,
        ARMS,
        RATES,
    ],
    ids=[
        "loss",
        "epochs",
        "reliability",
        "labels",
        "differences",
        "guard",
        "curve",
        "arms",
        "rates",
    ],
)
def test_plotly_accepts_every_figure(figure):
    assert accepted_by_plotly(figure).data


def luminance(colour):
    """Relative luminance of “#rrggbb” (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def colours(theme):
    """{--name: #rrggbb} of a theme of the pages."""
    css = Path(finders.find("adapters_app/lyra.css")).read_text()
    block = re.search(rf'html\[data-theme="{theme}"\].*?{{(.*?)}}', css, flags=re.S)[1]
    return dict(re.findall(r"(--[\w-]+): (#\w{6});", block))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_line_can_be_seen(theme):
    """Non-text contrast, WCAG 2.2, 1.4.11: at least 3:1."""
    figures = [
        charts.reliability(BINS, BINS),
        charts.label_reliability({label.value: BINS for label in LABELS}),
        charts.differences([("against v1", DIFFERENCE)]),
        charts.epochs(METRICS),
        CURVE,
    ]
    drawn = [
        each
        for figure in figures
        for each in [*figure["data"], *figure["layout"].get("shapes", [])]
    ]
    named = {each["line"]["color"] for each in drawn if "color" in each.get("line", {})}
    known = colours(theme)
    faint = {
        name: contrast(known[name], known["--lyra-card-bg"])
        for name in named
        if contrast(known[name], known["--lyra-card-bg"]) < 3
    }
    assert not faint


@pytest.mark.parametrize(
    "nothing",
    [
        charts.loss_curve([]),
        charts.epochs({}),
        charts.reliability([], []),
        charts.label_reliability({}),
        charts.differences([("against v1", {"estimate": 0.1, "low": None, "high": None})]),
        charts.guard({}, a="v1", b="v2"),
    ],
)
def test_without_data_there_is_no_figure(nothing):
    assert nothing is None


def test_a_long_loss_curve_is_thinned_and_keeps_its_last_step():
    figure = charts.loss_curve([[step, 1.0 / step] for step in range(1, 5001)])
    steps = figure["data"][0]["x"]
    assert len(steps) <= charts.MAX_POINTS + 1
    assert (steps[0], steps[-1]) == (1, 5000)


def test_the_moving_average_starts_at_the_first_value():
    assert charts.smoothed([4.0, 4.0, 4.0]) == pytest.approx([4.0, 4.0, 4.0])
    assert charts.smoothed([1.0, 0.0])[1] == pytest.approx(0.9 / 1.9)


def test_epoch_zero_is_the_base_and_the_chosen_epoch_is_marked():
    figure = charts.epochs(METRICS)
    accuracy = next(line for line in figure["data"] if line["name"].startswith("accuracy"))
    assert list(zip(accuracy["x"], accuracy["y"], strict=True)) == [(0, 0.5), (1, 0.6), (2, 0.7)]
    assert figure["layout"]["shapes"][0]["x0"] == 2


def test_empty_bins_are_not_drawn_and_each_point_has_its_n():
    before = charts.reliability(BINS, BINS)["data"][1]
    assert before["x"] == [0.72, 0.96]
    assert before["customdata"] == [30, 12]


def test_differences_are_in_points_with_both_ends_of_the_interval():
    line = charts.differences([("against v1", DIFFERENCE)])["data"][0]
    assert line["x"] == pytest.approx([5.0])
    assert line["error_x"]["array"] == pytest.approx([4.0])
    assert line["error_x"]["arrayminus"] == pytest.approx([4.0])


def test_a_curve_shows_what_was_measured_what_is_expected_now_and_the_target():
    lines = {line["name"]: line for line in CURVE["data"] if "name" in line}
    assert lines["measured"]["y"] == [0.4, 0.5]
    assert lines["measured"]["error_y"]["array"] == [0.03, 0.02]
    assert lines["expected"]["x"] == [0, 400]
    assert lines["80 % interval"]["y"] == [0.42, 0.66]
    now, target = CURVE["layout"]["shapes"]
    assert (now["x0"], target["y0"], target["y1"]) == (100, 0.6, 0.6)


def test_every_fit_of_an_arm_is_a_dot_and_their_mean_a_diamond():
    dots, means = ARMS["data"]
    assert list(zip(dots["x"], dots["y"], strict=True)) == [
        (0.3, "Baseline"),
        (0.4, "LoRA"),
        (0.6, "LoRA"),
    ]
    assert list(zip(means["x"], means["y"], strict=True)) == [(0.3, "Baseline"), (0.5, "LoRA")]


def test_a_rate_that_diverged_is_not_drawn():
    assert [line["x"] for line in RATES["data"]] == [[2e-5], [2e-4]]


def test_plotly_js_is_one_of_our_own_static_files():
    assert finders.find("plotly/plotly.min.js").endswith("package_data/plotly.min.js")
    assert finders.find("plotly/widgetbundle.js") is None
    listed = [
        f"{storage.prefix}/{name}"
        for finder in finders.get_finders()
        for name, storage in finder.list([])
        if getattr(storage, "prefix", None) == "plotly"
    ]
    assert listed == ["plotly/plotly.min.js"]
