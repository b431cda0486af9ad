"""What loading a model prints: warnings, and nothing else."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.tiny import tiny_base

LOAD = """
import sys
from adapters_app.nli.base_model import load_base
from adapters_app.nli.embedding import SentenceEncoder
load_base(sys.argv[1])
SentenceEncoder()
from transformers.utils import logging
logging.get_logger("transformers").warning("something is odd")
"""


def test_loading_shows_no_progress_bars_but_warnings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tiny_base(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if "something is odd" not in line] == []
    assert "something is odd" in done.stderr
