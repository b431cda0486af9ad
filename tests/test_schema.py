"""A command on a database without our tables says what to do, in one line."""

import json

import pytest

from tests.conftest import Manage
from tests.postgresql import Server

COMMANDS = {
    "an acting command": ["adapters"],
    "one of Django's": ["createsuperuser", "--noinput", "--username=a", "--email=a@example.org"],
    "a worker": ["qcluster"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_database_never_migrated(manage: Manage, arguments: list[str]) -> None:
    done = manage(*arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("Run manage.py migrate.")
    assert "Traceback" not in done.stderr


def test_a_database_of_an_older_version(manage: Manage) -> None:
    assert manage("migrate", "auth", "--verbosity=0").returncode == 0
    assert manage("migrate", "corrections", "0001", "--verbosity=0").returncode == 0
    done = manage("export_corrections", "/dev/null", "--json")
    assert done.returncode == 1
    assert "Run manage.py migrate." in json.loads(done.stdout.splitlines()[-1])["error"]


def test_a_postgresql_database_never_migrated(postgresql_server: Server, manage: Manage) -> None:
    url = postgresql_server.create("never_migrated")
    done = manage("adapters", "--json", DATABASE_URL=url)
    postgresql_server.drop("never_migrated")
    assert done.returncode == 1
    assert "Run manage.py migrate." in json.loads(done.stdout.splitlines()[-1])["error"]
    assert "Traceback" not in done.stderr


def test_other_errors_of_a_migrated_database_are_not_explained_away(manage: Manage) -> None:
    assert manage("migrate", "--verbosity=0").returncode == 0
    query = "from django.db import connection; connection.cursor().execute('SELECT nonsense')"
    done = manage("shell", "--no-imports", "-c", query)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "migrate" not in done.stderr
