"""The predict command: predictions in order, figures where there are labels, honest refusals."""

import io
import json

import pytest
from django.core.management import call_command

from corrections.acting import Refused, WrongUsage
from tests.versions import PAIR

pytest_plugins = ("tests.serving",)


@pytest.fixture
def rows(on_tiny, cast, tmp_path):
    """A function that writes rows to a file and predicts it; returns the JSON result."""

    def predict(*rows, arguments=()) -> dict:
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        out = io.StringIO()
        command = ["predict", str(file), "--json", *arguments]
        call_command(*command, stdout=out, stderr=io.StringIO())
        return json.loads(out.getvalue().splitlines()[-1])

    return predict


def test_predictions_keep_the_order_of_the_file(rows, tmp_path, make_version):
    make_version()
    out = tmp_path / "out.jsonl"
    texts = [f"rain {n}" for n in range(70)]
    given = [PAIR | {"premise": text} for text in texts]
    summary = rows(*given, arguments=["--adapter", "v1", "--out", str(out)])
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["premise"] for row in told] == texts
    assert set(told[0]["probabilities"]) == {"supports", "refutes", "neutral"}
    assert told[0]["predicted_confidence"] == max(told[0]["probabilities"].values())
    assert (summary["adapter"], summary["pairs"], summary["labelled"]) == ("v1", 70, 0)
    assert "accuracy" not in summary


def test_labelled_rows_give_figures(rows):
    labelled = PAIR | {"label": "supports"}
    upstream = {
        "premise": "rain",
        "nli_hypothesis": "water",
        "correct_label": "neutral",
    }
    summary = rows(labelled, upstream, PAIR)
    assert (summary["pairs"], summary["labelled"]) == (3, 2)
    assert 0 <= summary["accuracy"] <= 1
    assert {"macro_f1", "log_loss", "brier", "ece"} <= set(summary)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "rows.jsonl:1: not JSON"),
        ("[" * 100_000, "not JSON"),
        ("5", "not a JSON object"),
        ({"premise": "a"}, "must be text"),
        ({"premise": "a", "hypothesis": 5}, "must be text"),
        (PAIR | {"label": "maybe"}, "'maybe' is not one of"),
        (PAIR | {"label": []}, "is not one of"),
        ("", "holds no rows"),
    ],
)
def test_what_cannot_be_predicted_is_refused_with_its_line(rows, row, says):
    with pytest.raises(Refused, match=says):
        rows(row)


def test_an_unknown_version_and_a_missing_file(rows, on_tiny):
    with pytest.raises(Refused, match="v99"):
        rows(PAIR, arguments=["--adapter", "v99"])
    with pytest.raises(WrongUsage):
        call_command("predict", str(on_tiny / "nothing"))


def test_it_needs_the_permission(rows):
    assert rows(PAIR, arguments=["--as", "alice"])["ok"] is True
    with pytest.raises(Refused, match=r"adapters_app\.predict"):
        rows(PAIR, arguments=["--as", "eve"])
