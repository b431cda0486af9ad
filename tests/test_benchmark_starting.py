"""benchmarks/starting.py: what it says of starts, and a real one of everything, gone afterwards."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks import starting
from tests.conftest import ROOT

MEMORY = {"rss": 500.0, "pss": 400.0, "private_dirty": 300.0}


def start(first: float, again: float, worker_mb: float, *, torch: bool = False) -> dict:
    """What `starting.measure` says of two starts in a home."""
    then = {"master": MEMORY, "worker": {**MEMORY, "rss": worker_mb}, "torch": torch}
    waits = {starting.EMPTY: first, starting.AGAIN: again}
    found = {name: {"livez_s": 1.0, "answer_s": seconds} for name, seconds in waits.items()}
    return {**found, "before": then, "after": then, "load": {"pairs": 40}}


def test_waits_are_held_to_in_the_median_and_memory_at_its_worst():
    found = {
        "openvino": [start(4, 9, 550), start(4.5, 3, 590), start(30, 4, 601)],
        "torch": [start(14, 16, 2000, torch=True)],
    }
    report = starting.report_of(found)
    kept = {claim.what: (claim.value, claim.kept) for claim in report.claims}
    assert kept == {
        "openvino, an empty home: first answer, s": (4.5, True),
        "openvino, the same home again: first answer, s": (4, True),
        "torch, an empty home: first answer, s": (14, True),
        "torch, the same home again: first answer, s": (16, False),
        "openvino: the web process after the load, MB": (601, False),
        "openvino: starts that loaded torch": (0, True),
    }
    waits, memory = report.tables
    assert list(waits.columns[5].cells) == ["30.0", "9.0", "14.0", "16.0"]
    assert list(memory.columns[4].cells)[3] == "601"


def test_the_allocator_is_as_the_system_has_it():
    given = {"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "x", "LD_PRELOAD": "y", "PATH": "/bin"}
    assert starting.plain(given) == {"PATH": "/bin"}


@pytest.fixture
def brief() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's address in it; pytest's are too long."""
    with tempfile.TemporaryDirectory(prefix="lyra-") as path:
        yield Path(path)


def test_a_trial_of_the_program_starts_answers_measures_and_leaves_nothing(brief: Path):
    out = brief / "starting.json"
    options = ["--arms=openvino", "--starts=1", "--pairs=40", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "benchmarks/starting.py", *options],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(brief)},
        capture_output=True,
        text=True,
        check=False,
    )
    # Broken limits are no failure here: they are those of a quiet machine.
    assert out.exists(), done.stderr
    assert "until the first 200" in done.stdout
    (found,) = json.loads(out.read_text())["figures"]["starts"]["openvino"]
    for name in starting.STARTS:
        assert 0 < found[name]["livez_s"] < found[name]["answer_s"]
    assert found["load"]["statuses"] == {"200": 1 + 8}  # 32 pairs at once, 8 alone
    assert found["after"]["worker"]["rss"] > found["after"]["master"]["rss"] > 0
    assert not found["after"]["torch"]
    assert not [left for left in psutil.process_iter() if _lives_in(left, brief)]


def _lives_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return process.environ().get("LYRA_HOME", "").startswith(str(directory))
    except psutil.Error:
        return False
