"""The site's settings that cannot be right are refused at start, also where gunicorn starts it."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings as current
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured

from lyra_site.settings import _write_first
from tests.conftest import Manage


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
        ("WEB_CONCURRENCY", 0, "lyra_site.E005"),
        ("LYRA_READ_TIMEOUT_S", 0, "lyra.E025"),
        ("LYRA_DATABASE_TIMEOUT_S", 0, "lyra.E026"),
        ("LYRA_CACHE_URL", "memcached://host", "lyra_site.E007"),
        ("LYRA_CACHE_URL", "redis://", "lyra_site.E007"),
        ("LYRA_CACHE_URL", "redis://host:port", "lyra_site.E007"),
        ("LYRA_CACHE_URL", "redis://host/name", "lyra_site.E007"),
    ],
)
def test_a_bad_setting_is_refused(settings, name: str, value: object, check_id: str) -> None:
    setattr(settings, name, value)
    assert check_id in found()


@pytest.mark.parametrize("url", ["", "redis://host", "rediss://u:p@[::1]:6379/2"])
def test_a_cache_that_may_be_is_accepted(settings, url: str) -> None:
    settings.LYRA_CACHE_URL = url
    assert "lyra_site.E007" not in found()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LYRA_AUDIT_SHARE", "0.2%"),
        ("LYRA_AUDIT_SHARE", "0,5"),
        ("LYRA_AUDIT_SHARE", "nan"),
        ("LYRA_TRIGGER_MIN_DAYS", "inf"),
        ("LYRA_TRIGGER_MIN_DAYS", ""),
        ("LYRA_MAX_PAIRS", "1.5"),
        ("WEB_CONCURRENCY", "two"),
        ("LYRA_ARTIFACTS", "gs://bucket/lyra"),
        ("LYRA_ARTIFACTS", "artifacts"),
        ("LYRA_ARTIFACTS", "s3:///lyra"),
    ],
)
def test_what_is_not_of_its_type_is_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    monkeypatch.setenv("LYRA_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    with pytest.raises(ImproperlyConfigured, match=re.escape(f"{name}={value!r}")):
        runpy.run_path(str(current.BASE_DIR / "lyra_site" / "settings.py"))


def test_a_number_is_what_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LYRA_HOME", str(tmp_path))
    monkeypatch.setenv("LYRA_TRIGGER_MIN_DAYS", "1e1")
    read = runpy.run_path(str(current.BASE_DIR / "lyra_site" / "settings.py"))
    assert read["LYRA_TRIGGER_MIN_DAYS"] == 10


def test_a_misspelt_setting_is_told_with_the_name_that_was_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LYRA_MAX_PAIR", "7")
    (told,) = [message for message in run_checks() if message.id == "lyra_site.W003"]
    assert "LYRA_MAX_PAIR " in told.msg
    assert "LYRA_MAX_PAIRS" in told.hint


def test_hsts_speaks_for_this_host_name_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LYRA_HOME", str(tmp_path))
    monkeypatch.setenv("LYRA_HTTPS", "1")
    read = runpy.run_path(str(current.BASE_DIR / "lyra_site" / "settings.py"))
    assert read["SECURE_HSTS_SECONDS"]
    assert not read.get("SECURE_HSTS_INCLUDE_SUBDOMAINS")
    assert not read.get("SECURE_HSTS_PRELOAD")


def test_what_the_first_command_writes_only_its_owner_reads(tmp_path: Path, manage: Manage) -> None:
    made = tmp_path / "made"
    assert manage("migrate", "--verbosity=0", LYRA_HOME=str(made)).returncode == 0
    assert made.stat().st_mode & 0o777 == 0o700
    assert (made / "lyra.sqlite3").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LYRA_SECRET_KEY", "short", "lyra_site.E001"),
        ("LYRA_MAX_PAIRS", "0", "lyra_site.E005"),
        ("LYRA_MAX_PAIRS", "many", "LYRA_MAX_PAIRS"),
        ("LYRA_CACHE_URL", "localhost:6379", "lyra_site.E007"),
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


def test_processes_that_start_at_once_share_one_secret_key(home: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", "from lyra_site import settings; print(settings.SECRET_KEY)"],
            cwd=current.BASE_DIR,
            env=os.environ | {"LYRA_HOME": str(home)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    keys = {process.communicate()[0].strip() for process in started}
    assert keys == {(home / "secret_key").read_text()}
    assert len(keys.pop()) > 50
    assert (home / "secret_key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.iterdir()] == ["secret_key"]


def test_the_first_secret_key_stays(tmp_path: Path) -> None:
    """Whoever comes second had found none a moment ago."""
    path = tmp_path / "secret_key"
    for text in ("first", "second"):
        _write_first(path, text)
    assert path.read_text() == "first"


def test_a_secret_key_is_never_there_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed before its key is on disk leaves none behind."""

    def crash(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        _write_first(tmp_path / "secret_key", "text")
    assert not (tmp_path / "secret_key").exists()


@pytest.mark.parametrize("content", [b"", b"\n", "schlüssel".encode()])
def test_a_secret_key_that_is_none_is_refused_in_one_line(
    home: Path, manage: Manage, content: bytes
) -> None:
    (home / "secret_key").write_bytes(content)
    refused = manage("check")
    assert refused.returncode == 1
    assert "secret" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert (home / "secret_key").read_bytes() == content
