"""A PostgreSQL server of the test session's own: no TCP port, thrown away at the end."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
from django.db import connection

from tests.programs import find

SUPERUSER = "postgres"
TEMPLATE = "lyra_template"


class Server:
    """A running server; `url(name)` is what DATABASE_URL takes, `create()` makes a database."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def url(self, database: str) -> str:
        return f"postgres://{SUPERUSER}@/{self.directory}/{database}"

    def create(self, name: str, *, template: str = "template1") -> str:
        """Create database `name` as a copy of `template`; return its URL."""
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, name: str) -> None:
        """Drop database `name`, closing whatever is still connected to it."""
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        with psycopg.connect(
            host=str(self.directory), user=SUPERUSER, dbname="postgres", autocommit=True
        ) as server:
            server.execute(statement)


@contextlib.contextmanager
def read_only() -> Iterator[None]:
    """The default database answers and takes no writes, as a standby that a failover has led to."""
    name, setting = connection.settings_dict["NAME"], "default_transaction_read_only"
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{name}" SET {setting} = on')
    connection.close()  # it counts for new sessions
    try:
        yield
    finally:
        connection.close()
        with connection.cursor() as cursor:
            cursor.execute(f"SET {setting} = off")
            cursor.execute(f'ALTER DATABASE "{name}" RESET {setting}')
        connection.close()


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """Start a server in a temporary directory; stop and remove it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="lyra-postgresql-"))
    as_user = _as_unprivileged(directory)
    data = str(directory / "data")
    # No fsync: nothing in it has to outlive this session.
    options = f"-c listen_addresses= -c fsync=off -k {directory}"
    try:
        _run(*as_user, find("initdb"), "-D", data, "-U", SUPERUSER, "-A", "trust", "--no-sync")
        log = str(directory / "log")
        _run(*as_user, find("pg_ctl"), "-D", data, "-o", options, "-l", log, "-w", "start")
        yield Server(directory)
    finally:
        if Path(data, "postmaster.pid").exists():
            _run(*as_user, find("pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(directory)


def _as_unprivileged(directory: Path) -> list[str]:
    """PostgreSQL refuses to run as root: then it runs as the package's own user."""
    if os.geteuid() != 0:
        return []
    shutil.chown(directory, SUPERUSER)
    return ["runuser", "-u", SUPERUSER, "--"]


def _run(*command: str) -> None:
    # Not captured by pipe: the server would inherit it and keep it open.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(command, cwd="/", stdout=output, stderr=output, check=False)
        output.seek(0)
        if done.returncode:
            raise RuntimeError(f"{command} failed:\n{output.read()}")
