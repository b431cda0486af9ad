"""benchmarks/growth.py: pairs of exact lengths, its arithmetic, and a trial of it."""

import json
import subprocess
import sys
from pathlib import Path

from adapters_app.nli.checkpoint import BUNDLED
from benchmarks import growth
from benchmarks.adapters import known_base
from benchmarks.growth import ADAPTERS, BATCH, BATCHES, CALLERS, CLIENTS, LENGTH, MIXED, Point
from tests.tiny import tiny_base

ROOT = Path(__file__).resolve().parent.parent


def test_pairs_are_as_long_as_they_should_be_and_none_is_asked_twice(tmp_path: Path):
    encoder = known_base(BUNDLED, tmp_path).encoder
    sized = growth.Sized(encoder, seed=1)
    for tokens in growth.TOKENS:
        pairs = sized.pairs(tokens, 50)
        assert {len(each) for each in encoder.encode(pairs)} == {tokens}
        assert len(set(pairs)) == 50


def test_pairs_longer_than_the_window_are_left_out():
    found = growth.points([LENGTH], longest=64)
    assert {(point.tokens, point.batch) for point in found} == {
        (tokens, batch) for tokens in (16, 32, 64) for batch in (1, 32)
    }


def rounds(*rates: float) -> list[dict[str, float]]:
    return [{"pairs_per_s": rate, "p50_ms": 1.0} for rate in rates]


def test_growth_is_the_median_of_the_rounds_own_ratios_to_the_first_point_of_the_line():
    met = {
        Point(BATCH, 1, 1): rounds(100, 200, 60),
        Point(BATCH, 8, 8): rounds(200, 400, 40),
        Point(ADAPTERS, 1, 32, adapters=1): rounds(80, 80, 80),
        Point(ADAPTERS, 8, 32, adapters=8): rounds(40, 40, 20),
    }
    tables, figures = growth.engine_tables(met)
    assert [each["growth"] for each in figures] == [1, 0.5, 1, 2]
    assert [len(table.rows) for table in tables] == [2, 2]


def test_a_trial_of_the_program_goes_through_all_points_and_callers(tmp_path: Path):
    model = tiny_base(tmp_path / "deberta", "deberta-v2")
    out = tmp_path / "growth.json"
    options = [f"--model={model}", f"--out={out}", "--rounds=1", "--pairs=4"]
    done = subprocess.run(
        [sys.executable, "benchmarks/growth.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for title in ("Tokens in a pair, 32 at a time", "Pairs at a time", "Callers of single pairs"):
        assert title in done.stdout
    figures = json.loads(out.read_text())["figures"]
    at = {
        series: sorted({point["at"] for point in figures["points"] if point["series"] == series})
        for series in (LENGTH, BATCH, ADAPTERS)
    }
    # A tiny base has room for 128 tokens.
    assert at == {LENGTH: [16, 32, 64, 128], BATCH: list(BATCHES), ADAPTERS: list(MIXED)}
    assert all(point["pairs_per_s"] > 0 for point in figures["points"])
    assert list(figures[CLIENTS]) == [str(callers) for callers in CALLERS]
    assert all(met[0]["statuses"]["200"] > 0 for met in figures[CLIENTS].values())
