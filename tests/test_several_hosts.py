"""Hosts with homes of their own and one PostgreSQL: one secret key, and one migration at a time."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
from django_q.models import OrmQ

from adapters_app import secret_key
from lyra_site.management.commands.migrate import LOCK
from tests import postgresql
from tests.conftest import ROOT, Manage

QUEUE = "from adapters_app import training; training.probe('training')"
COUNT = "from django_q.models import OrmQ; print(OrmQ.objects.filter(key='training').count())"
NOTE = "from adapters_app import secret_key; secret_key.note()"


def test_a_host_with_another_key_is_refused_and_leaves_the_queue_alone(
    manage: Manage, postgresql_url: str, tmp_path: Path
) -> None:
    """Its worker would delete what it cannot read."""
    other = str(tmp_path / "other")

    def shell(code: str, **more: str) -> str:
        done = manage("shell", "--no-imports", "-c", code, DATABASE_URL=postgresql_url, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shell(NOTE)
    shell(QUEUE)
    for command in ("qcluster", "run"):
        refused = manage(command, DATABASE_URL=postgresql_url, LYRA_HOME=other, PORT="0")
        assert refused.returncode == 1
    refused = manage("qcluster", DATABASE_URL=postgresql_url, LYRA_HOME=other)
    assert refused.returncode == 1
    assert "LYRA_SECRET_KEY" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert shell(COUNT).strip() == "1"

    accepted = manage("accept_secret_key", DATABASE_URL=postgresql_url, LYRA_HOME=other)
    assert accepted.returncode == 0, accepted.stderr
    problem = "from adapters_app import secret_key; print(bool(secret_key.problem()))"
    assert shell(problem, LYRA_HOME=other).strip() == "False"
    assert shell(problem).strip() == "True"


def test_a_key_that_differs_is_found_and_says_what_to_do(on_postgresql, settings) -> None:
    secret_key.note()
    secret_key.note()
    (letter,) = OrmQ.objects.all()
    assert settings.SECRET_KEY not in letter.payload
    assert secret_key.problem() == ""
    settings.SECRET_KEY = "another" * 10
    assert "LYRA_SECRET_KEY" in secret_key.problem()
    secret_key.forget()
    assert secret_key.problem() == ""


def test_hosts_that_migrate_at_once_wait_for_one_another(
    postgresql_server: postgresql.Server, tmp_path: Path
) -> None:
    name = f"fresh_{tmp_path.name[:30]}"
    url = postgresql_server.create(name)
    with psycopg.connect(
        host=str(postgresql_server.directory), user=postgresql.SUPERUSER, dbname=name
    ) as holder:
        # Both are waiting when they are let go.
        holder.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        started = [
            subprocess.Popen(
                [sys.executable, "manage.py", "migrate", "--verbosity=0"],
                cwd=ROOT,
                env=os.environ | {"LYRA_HOME": str(tmp_path / host), "DATABASE_URL": url},
                stderr=subprocess.PIPE,
                text=True,
            )
            for host in ("one", "two")
        ]
        waiting = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE (query LIKE '%%pg_try_advisory%%' OR query = 'ROLLBACK') "
            "AND datname = %s AND pid != pg_backend_pid()"
        )
        while holder.execute(waiting, [name]).fetchone() != (2,):
            assert all(process.poll() is None for process in started), started[0].communicate()
            holder.rollback()
    for process in started:
        _, said = process.communicate()
        assert process.returncode == 0, said
    postgresql_server.drop(name)


def test_a_migration_leaves_nothing_in_its_session(
    postgresql_server: postgresql.Server, tmp_path: Path
) -> None:
    """A pooler of transactions hands it on: a lock would be whoever's is next, and stay."""
    name = f"fresh_{tmp_path.name[:30]}"
    url = postgresql_server.create(name)
    held = "SELECT state FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE classid = 0 AND "
    with psycopg.connect(
        host=str(postgresql_server.directory),
        user=postgresql.SUPERUSER,
        dbname=name,
        autocommit=True,
    ) as looking:
        migrating = subprocess.Popen(
            [sys.executable, "manage.py", "migrate", "--verbosity=0"],
            cwd=ROOT,
            env=os.environ | {"LYRA_HOME": str(tmp_path), "DATABASE_URL": url},
        )
        states = set()
        while migrating.poll() is None:
            states |= {*looking.execute(f"{held} locktype = 'advisory' AND granted").fetchall()}
    assert migrating.returncode == 0
    # None but of an open transaction, which takes it (active) and then waits for the migration.
    assert ("idle in transaction",) in states
    assert states <= {("active",), ("idle in transaction",)}
    postgresql_server.drop(name)


def test_a_migration_that_another_blocks_is_refused_in_a_sentence(
    manage: Manage, postgresql_server: postgresql.Server, postgresql_url: str
) -> None:
    with psycopg.connect(
        host=str(postgresql_server.directory),
        user=postgresql.SUPERUSER,
        dbname=postgresql_url.rpartition("/")[2],
    ) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        refused = manage(
            "shell",
            "--no-imports",
            "-c",
            "from django.core.management import call_command;"
            "from lyra_site.management.commands import migrate; migrate.WAIT_S = 1;"
            "call_command('migrate', verbosity=0)",
            DATABASE_URL=postgresql_url,
        )
    assert refused.returncode == 1
    assert "Another process has been migrating" in refused.stderr


def test_what_changes_its_session_does_not_go_through_a_pooler(
    manage: Manage, postgresql_url: str, tmp_path: Path
) -> None:
    """PgBouncer would hand that session, which finds no table any more, to whoever is next."""
    pooled = f"{postgresql_url}?disable_server_side_cursors=True"
    refused = manage("backup", str(tmp_path / "b.tar"), DATABASE_URL=pooled)
    assert refused.returncode == 1
    assert "set DATABASE_URL to PostgreSQL's own address" in refused.stderr
    assert not (tmp_path / "b.tar").exists()
    for url in (pooled, postgresql_url):
        checked = manage("check", "--database", "default", DATABASE_URL=url)
        assert checked.returncode == 0, checked.stderr
