"""Our PostgreSQL database out and in again, by its own programs pg_dump and psql."""

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

from django.apps import apps
from django.db import connection
from django.db.backends.postgresql.client import DatabaseClient

from lyra_site.database import is_said_to_be_pooled

# Other clients are waited for this long, then it is refused.
LOCK_TIMEOUT_S = 10
SERVER_LOST = 2  # psql's exit status: whether the transaction was committed cannot be known
# Where the rows of that table begin in a dump.
MIGRATIONS = re.compile(r"COPY (\S+\.)?django_migrations \((?P<columns>.*)\)")
# Functions of our triggers are named after the app whose migration made them.
TRIGGER_FUNCTIONS = """
    SELECT oid::regprocedure::text FROM pg_proc
    WHERE pg_function_is_visible(oid) AND prorettype = 'trigger'::regtype AND proname ~ %s
"""


class Failed(RuntimeError):
    """The program failed, and the database is as it was."""


def dump(path: Path) -> None:
    """Write the database as SQL to `path`; raises Failed, FileNotFoundError without pg_dump."""
    flags = ["--clean", "--if-exists", "--no-owner", "--no-privileges"]
    done = _run("pg_dump", *flags, "--file", str(path))
    if done.returncode:
        raise Failed(f"pg_dump failed: {done.stderr.strip()}")


def load(path: Path) -> None:
    """Replace the database by the SQL in `path`, in one transaction.

    Raises:
        Failed: nothing was changed.
        ConnectionError: the server was lost; it may have been replaced or not.
    """
    drop = _drop_ours()
    connection.close()
    flags = ["--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1"]
    done = _run("psql", *flags, f"--command={drop}", f"--file={path}")
    if done.returncode == SERVER_LOST:
        raise ConnectionError(f"psql lost the server: {done.stderr.strip()}")
    if done.returncode:
        raise Failed(f"psql failed: {done.stderr.strip()}")


def migrations_in(path: Path) -> set[tuple[str, str]]:
    """(app, name) of the migrations a dump holds: a line each, columns separated by tabs."""
    with path.open(encoding="utf-8") as lines:
        header = next((match for line in lines if (match := MIGRATIONS.match(line))), None)
        if header is None:
            return set()
        columns = header["columns"].split(", ")
        rows = itertools.takewhile(lambda line: line != "\\.\n", lines)
        named = [dict(zip(columns, row.rstrip("\n").split("\t"), strict=True)) for row in rows]
    return {(row["app"], row["name"]) for row in named}


def program(name: str) -> str:
    """Path of one of PostgreSQL's client programs; raises FileNotFoundError."""
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is missing: apt-get install postgresql-client")
    return found


def _drop_ours() -> str:
    """SQL that drops the tables of our models and the functions of our triggers.

    The dump drops what it holds itself; what newer migrations have made would stay.
    """
    labels = "|".join(app.label for app in apps.get_app_configs())
    with connection.cursor() as cursor:
        known = connection.introspection.django_table_names(include_views=False)
        cursor.execute(TRIGGER_FUNCTIONS, [f"^({labels})_"])
        functions = [name for (name,) in cursor]
    tables = ", ".join(connection.ops.quote_name(name) for name in [*known, "django_migrations"])
    dropped = [f"DROP FUNCTION {name} CASCADE" for name in functions]
    return "; ".join([f"DROP TABLE IF EXISTS {tables} CASCADE", *dropped])


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program on our database; the password goes by environment, never by argument.

    Raises:
        Failed: the session that it would change is not its own.
    """
    if is_said_to_be_pooled():
        raise Failed(
            f"{name} cannot go through a pooler of transactions: it would leave its session in "
            "disorder for others. For this command set DATABASE_URL to PostgreSQL's own address"
        )
    given, environment = DatabaseClient.settings_to_cmd_args_env(connection.settings_dict, [])
    # libpq's own programs all take psql's connection flags; the database is the last of them.
    *flags, database = given[1:]
    options = f"{os.environ.get('PGOPTIONS', '')} -c lock_timeout={LOCK_TIMEOUT_S}s"
    return subprocess.run(
        [program(name), *flags, *arguments, f"--dbname={database}"],
        env=os.environ | (environment or {}) | {"PGOPTIONS": options.strip()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
