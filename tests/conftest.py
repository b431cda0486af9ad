"""What several test modules need: the cast, the real programs, homes and commands of their own."""

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import environ
import pytest
from django.contrib.auth.models import Group, User
from django.db import connections
from playwright.sync_api import Browser, sync_playwright

from tests import orphans
from tests import postgresql as postgres
from tests.programs import find_chromium

ROOT = Path(__file__).resolve().parent.parent
Manage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_tests() -> None:
    """A cluster or a training of a test whose pytest was killed would compute on."""
    if sys.platform == "linux":
        orphans.watch()


@pytest.fixture(autouse=True)
def no_counts_of_other_tests() -> None:
    """Predictions that another test counted are of versions that are gone."""
    if tallies := sys.modules.get("inference.tallies"):
        tallies._counts.clear()


# --- The cast: Carla calls, Curt curates, Tina trains, Rita releases, Ada administers -------------


@pytest.fixture
def caller(db: None) -> User:
    return _member("carla", "caller")


@pytest.fixture
def curator(db: None) -> User:
    return _member("curt", "curator")


@pytest.fixture
def trainer(db: None) -> User:
    return _member("tina", "trainer")


@pytest.fixture
def releaser(db: None) -> User:
    return _member("rita", "releaser")


@pytest.fixture
def administrator(db: None) -> User:
    return User.objects.create_superuser("ada", password="correct horse")


def _member(username: str, role: str) -> User:
    user = User.objects.create_user(username, password="correct horse")
    user.groups.add(Group.objects.get(name=role))
    return user


# --- Systems of their own -------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty LYRA_HOME: a system of its own, beside the one of the test process."""
    path = tmp_path / "home"
    path.mkdir()
    return path


def demo_is_made(home: Path) -> bool:
    """Whether a server in this home has made the demo's accounts and corrections."""
    return "exited: demo (exit status 0" in (home / "logs" / "supervisord.log").read_text()


@pytest.fixture
def manage(home: Path) -> Manage:
    """Run manage.py as a process in `home`: manage("migrate", LYRA_DEVICE="cpu") → its result."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=os.environ | {"LYRA_HOME": str(home)} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


# --- PostgreSQL -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgres.Server]:
    """A PostgreSQL server with one migrated database, `postgres.TEMPLATE`, to make copies of."""
    with postgres.running_server() as server:
        url = server.create(postgres.TEMPLATE)
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--verbosity=0"],
            cwd=ROOT,
            env=os.environ | {"DATABASE_URL": url},
            check=True,
        )
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: postgres.Server) -> Iterator[str]:
    """DATABASE_URL of a fresh, migrated PostgreSQL database, for processes of their own."""
    name = f"test_{uuid.uuid4().hex}"
    yield postgresql_server.create(name, template=postgres.TEMPLATE)
    postgresql_server.drop(name)


@pytest.fixture
def on_postgresql(postgresql_url: str, django_db_blocker: Any) -> Iterator[None]:
    """The default database of this process, in all its threads, is a fresh PostgreSQL one.

    Instead of the `django_db` mark, never with it: what the test commits is committed.
    """
    with django_db_blocker.unblock(), default_database(postgresql_url):
        yield


@contextlib.contextmanager
def default_database(url: str) -> Iterator[None]:
    """The default database of this process, in all its threads, is another one."""
    kept = connections.settings["default"]
    connections["default"].close()
    del connections["default"]
    connections.settings["default"] = connections.configure_settings(
        {"default": environ.Env.db_url_config(url)}
    )["default"]
    try:
        yield
    finally:
        connections["default"].close()
        del connections["default"]
        connections.settings["default"] = kept


# --- A browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless, driven by Playwright."""
    with sync_playwright() as playwright:
        # As root Chromium starts only without its sandbox; it sees nothing but our own pages.
        launched = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox"]
        )
        yield launched
        launched.close()
