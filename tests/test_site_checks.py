"""The site's settings that cannot be right are refused at start, also where gunicorn starts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings as current
from django.core.checks import run_checks


def found() -> set[str]:
    return {message.id for message in run_checks()}


@pytest.mark.parametrize(
    ("name", "value", "check_id"),
    [
        ("SECRET_KEY", "short", "lyra_site.E001"),
        ("SECRET_KEY", "django-insecure-" + "abcdefghijklmnop" * 4, "lyra_site.E001"),
        ("ALLOWED_HOSTS", [], "lyra_site.E002"),
        ("ALLOWED_HOSTS", ["https://lyra.example.org"], "lyra_site.E003"),
        ("ALLOWED_HOSTS", ["*"], "lyra_site.W001"),
        ("LYRA_MAX_PAIRS", 0, "lyra_site.E005"),
        ("LYRA_PORT", 70_000, "lyra_site.E006"),
    ],
)
def test_a_bad_setting_is_refused(settings, name: str, value: object, check_id: str) -> None:
    setattr(settings, name, value)
    assert check_id in found()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LYRA_SECRET_KEY", "short", "lyra_site.E001"),
        ("LYRA_MAX_PAIRS", "0", "lyra_site.E005"),
        ("LYRA_MAX_PAIRS", "many", "LYRA_MAX_PAIRS"),
    ],
)
def test_gunicorn_does_not_start_with_it(tmp_path: Path, name: str, value: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "lyra_site.wsgi", f"--bind=unix:{tmp_path / 'socket'}"],
        cwd=current.BASE_DIR,
        env=os.environ | {"LYRA_HOME": str(tmp_path / "home"), name: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert said in done.stderr
