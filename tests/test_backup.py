"""backup and restore: the real commands on real homes, and tars that no backup made."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage

from lyra_site.archive import Writer
from tests.conftest import ROOT, Manage

DIGEST = "ab" * 32
ARTIFACT = f"artifacts/{DIGEST}/adapter_model.safetensors"
MARKS = ("", "-0123abcd")  # that end a snapshot's name


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an empty database, to copy."""
    path = tmp_path_factory.mktemp("migrated")
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity=0"],
        cwd=ROOT,
        env=os.environ | {"LYRA_HOME": str(path)},
        check=True,
    )
    return path


@pytest.fixture
def filled(migrated: Path, home: Path) -> Path:
    """A migrated home with one user and one artifact."""
    shutil.copytree(migrated, home, dirs_exist_ok=True)
    _add_user(home, "before")
    FileSystemStorage(home / "artifacts").save(ARTIFACT, ContentFile(b"tensors"))
    return home


@pytest.fixture
def backup(filled: Path, manage: Manage, tmp_path: Path) -> Path:
    path = tmp_path / "backup.tar"
    done = manage("backup", str(path), "--with-secret-key")
    assert done.returncode == 0, done.stderr
    return path


def test_a_restored_home_is_the_one_backed_up(
    backup: Path, filled: Path, manage: Manage, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    done = manage("restore", str(backup), LYRA_HOME=str(other))
    assert done.returncode == 0, done.stderr
    assert _users(other) == _users(filled)
    assert (other / "artifacts" / ARTIFACT).read_bytes() == b"tensors"
    assert (other / "secret_key").read_text() == (filled / "secret_key").read_text()
    assert (other / "secret_key").stat().st_mode & 0o777 == 0o600
    assert manage("migrate", "--check", LYRA_HOME=str(other)).returncode == 0


def test_the_file_is_its_owners_and_tells_what_it_holds(backup: Path) -> None:
    assert backup.stat().st_mode & 0o777 == 0o600
    with tarfile.open(backup) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))
    assert set(manifest["members"]) == {"database.sqlite3", f"artifacts/{ARTIFACT}", "secret_key"}


def test_the_secret_key_stays_unless_asked_for(
    filled: Path, manage: Manage, tmp_path: Path
) -> None:
    path = tmp_path / "plain.tar"
    assert manage("backup", str(path)).returncode == 0
    with tarfile.open(path) as tar:
        assert "secret_key" not in tar.getnames()


def test_what_others_have_put_beside_artifacts_is_left_out_and_named(
    filled: Path, manage: Manage, tmp_path: Path
) -> None:
    foreign = [
        "notes for ops.txt",
        "plain.txt",
        "lost+found/old.safetensors",
        "artifacts/readme.md",
        f"artifacts/{DIGEST}/my notes.txt",
        f"artifacts/{DIGEST}/deeper/a.json",
        "artifacts/older/adapter_model.safetensors",
        "snapshots/copy of a snapshot.jsonl",
        "zip.zip",
        ".git/config",
        f"artifacts/{DIGEST}/.writing-1",
    ]
    store, snapshots = filled / "artifacts", [f"snapshots/{DIGEST}{end}.jsonl" for end in MARKS]
    for name in (*foreign, *snapshots):
        path = store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    (store / "no \udcff.txt").touch()
    (store / "line\nend").touch()

    done = manage("backup", str(tmp_path / "backup.tar"), "--json")

    assert done.returncode == 0, done.stderr
    left_out = json.loads(done.stdout)["left_out"]
    assert left_out == [
        f"'artifacts/{DIGEST}/deeper/'",
        f"'artifacts/{DIGEST}/my notes.txt'",
        "'artifacts/older/'",
        "'artifacts/readme.md'",
        r"'line\nend'",
        "'lost+found/'",
        r"'no \udcff.txt'",
        "'notes for ops.txt'",
        "'plain.txt'",
        "'snapshots/copy of a snapshot.jsonl'",
        "'zip.zip'",
    ]
    assert f"Left out, for Lyra has not stored it in LYRA_ARTIFACTS: {left_out[0]}" in done.stderr
    assert done.stderr.strip().endswith(f"{left_out[9]} and 1 more.")
    other = tmp_path / "other"
    restored = manage("restore", str(tmp_path / "backup.tar"), LYRA_HOME=str(other))
    assert restored.returncode == 0, restored.stderr
    found = other / "artifacts"
    assert {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()} == {
        ARTIFACT,
        *snapshots,
    }


def test_no_member_is_written_that_a_restore_would_refuse(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "backup.tar", "w") as tar:
        for name in ("artifacts/a b", "artifacts/../a", "/a", "artifacts//a", "artifacts/.a", ""):
            with pytest.raises(ValueError, match="cannot be the name"):
                Writer(tar).add(name, io.BytesIO())
        assert tar.getnames() == []


def test_a_backup_is_consistent_while_somebody_writes(
    filled: Path, manage: Manage, tmp_path: Path
) -> None:
    """A writer always adds users in pairs; every copy holds whole pairs."""
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            _add_user(filled, f"left{number}", f"right{number}")
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert manage("backup", str(tmp_path / "busy.tar")).returncode == 0
    finally:
        done.set()
        writer.join()
    other = tmp_path / "other"
    assert manage("restore", str(tmp_path / "busy.tar"), LYRA_HOME=str(other)).returncode == 0
    users = _users(other)
    lefts = {name.removeprefix("left") for name in users if name.startswith("left")}
    rights = {name.removeprefix("right") for name in users if name.startswith("right")}
    assert lefts
    assert lefts == rights


def test_a_home_that_holds_something_is_left_alone(
    backup: Path, filled: Path, manage: Manage
) -> None:
    _add_user(filled, "after")
    refused = manage("restore", str(backup))
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert "after" in _users(filled)

    forced = manage("restore", str(backup), "--force")
    assert forced.returncode == 0, forced.stderr
    assert _users(filled) == ["before", "system"]


def test_a_damaged_home_can_be_restored(backup: Path, filled: Path, manage: Manage) -> None:
    (filled / "lyra.sqlite3").write_bytes(b"not a database at all" * 100)
    (filled / "artifacts" / ARTIFACT).write_bytes(b"rotten!")
    assert manage("restore", str(backup)).returncode == 1
    forced = manage("restore", str(backup), "--force")
    assert forced.returncode == 0, forced.stderr
    assert _users(filled) == ["before", "system"]
    assert (filled / "artifacts" / ARTIFACT).read_bytes() == b"tensors"


def test_a_database_in_use_is_not_replaced_nor_anything_else(
    backup: Path, filled: Path, manage: Manage
) -> None:
    """Used by something that knows nothing of this home, and its lock."""
    (filled / "secret_key").write_text("another key, as good as that in the backup " * 2)
    (filled / "artifacts" / ARTIFACT).write_bytes(b"rotten!")
    before = _files(filled)
    with contextlib.closing(sqlite3.connect(filled / "lyra.sqlite3")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM auth_user").fetchone()
        _add_user(filled, "after")
        refused = manage("restore", str(backup), "--force")
    assert refused.returncode == 1
    assert "uses" in refused.stderr
    assert "after" in _users(filled)
    assert _files(filled) == before
    assert manage("adapters").returncode == 0


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (lambda name, data: (name, data[:-1] + b"x"), "damaged"),
        (lambda name, data: (f"../../{name}", data), "no backup has"),
        (lambda name, data: (name, None), "exactly"),
    ],
    ids=["changed", "renamed", "left out"],
)
def test_a_backup_tampered_with_changes_nothing(
    backup: Path,
    manage: Manage,
    tmp_path: Path,
    tamper: Callable[[str, bytes], tuple[str, bytes | None]],
    reason: str,
) -> None:
    forged = _rewritten(backup, tmp_path, lambda n, d: tamper(n, d) if "tensors" in n else (n, d))
    other = tmp_path / "other"
    refused = manage("restore", str(forged), LYRA_HOME=str(other))
    assert refused.returncode == 1
    assert reason in refused.stderr
    assert not (other / "artifacts").exists()
    assert _tables(other) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("INSERT INTO django_migrations (app, name, applied) VALUES ('corrections', '0999_x', 0)",
         "corrections.0999_x"),
        ("DROP TABLE django_migrations", "none of this system"),
        ("DELETE FROM django_migrations", "none of this system"),
        (None, "damaged"),
    ],
    ids=["newer", "another's", "never migrated", "damaged"],
)  # fmt: skip
def test_a_database_that_cannot_be_ours_is_refused_before_anything_is_replaced(
    backup: Path, filled: Path, manage: Manage, tmp_path: Path, change: str | None, reason: str
) -> None:
    """Its digest is right; what is in it is not."""
    forged = _with_database(backup, tmp_path, change)
    (filled / "secret_key").write_text("another key, as good as that in the backup " * 2)
    (filled / "artifacts" / ARTIFACT).unlink()
    before = _files(filled)
    refused = manage("restore", str(forged), "--force")
    assert refused.returncode == 1
    assert reason in refused.stderr
    assert "restore again" in refused.stderr or "Choose another backup" in refused.stderr
    assert _files(filled) == before
    assert manage("adapters").returncode == 0


def test_a_full_disk_is_noticed_before_anything_is_written(
    backup: Path, filled: Path, tmp_path: Path
) -> None:
    before = _files(filled)
    refused = _restore(filled, backup, "shutil.disk_usage = lambda _: usage(100, 99, 1)")
    assert refused.returncode == 1
    assert "Free some space" in refused.stderr
    assert _files(filled) == before


@pytest.mark.parametrize("step", ["_load", "_replace_artifacts", "_replace_secret_key"])
def test_a_restore_cut_off_is_told_to_everybody_until_it_is_run_again(
    backup: Path, filled: Path, manage: Manage, step: str
) -> None:
    _add_user(filled, "after")
    (filled / "secret_key").write_text("another key, as good as that in the backup " * 2)
    (filled / "artifacts" / ARTIFACT).write_bytes(b"rotten!")
    killed = _restore(filled, backup, f"restore.{step} = lambda *_: os.kill(os.getpid(), 9)")
    assert killed.returncode == -9
    refused = manage("adapters")
    assert refused.returncode == 1
    (told,) = refused.stderr.splitlines()
    assert "cut off halfway" in told

    again = told.partition("manage.py ")[2].split()
    done = manage(*again)
    assert done.returncode == 0, done.stderr
    assert _users(filled) == ["before", "system"]
    assert (filled / "artifacts" / ARTIFACT).read_bytes() == b"tensors"
    assert "another key" not in (filled / "secret_key").read_text()
    assert manage("adapters").returncode == 0
    assert [path.name for path in filled.iterdir() if path.name.startswith(".")] == []


def test_an_error_after_the_database_says_to_run_it_again(
    backup: Path, filled: Path, manage: Manage
) -> None:
    fail = "def fail(*_): raise PermissionError('no')\nrestore._replace_secret_key = fail"
    cut_off = _restore(filled, backup, fail)
    assert cut_off.returncode == 1
    assert f"manage.py restore --force {backup}" in cut_off.stderr
    assert manage("adapters").returncode == 1


def test_sums_of_an_artifact_are_stored_after_its_files(
    backup: Path, filled: Path, manage: Manage, tmp_path: Path
) -> None:
    """With them an artifact counts as there: cut off before the tensors, it must not."""
    FileSystemStorage(filled / "artifacts").save(
        f"artifacts/{DIGEST}/SHA256SUMS", ContentFile(b"sums")
    )
    path = tmp_path / "with-sums.tar"
    assert manage("backup", str(path)).returncode == 0
    other = tmp_path / "other"
    kill = (
        "def save(archive, name):\n"
        "    if name.endswith('.safetensors'): os.kill(os.getpid(), 9)\n"
        "    stored(archive, name)\n"
        "stored, restore._save = restore._save, save"
    )
    assert _restore(other, path, kill).returncode == -9
    assert not (other / "artifacts" / "artifacts" / DIGEST / "SHA256SUMS").exists()
    assert manage("restore", str(path), LYRA_HOME=str(other)).returncode == 0


def test_a_path_out_of_the_home_is_refused_though_the_manifest_lists_it(
    backup: Path, manage: Manage, tmp_path: Path
) -> None:
    def climb(name: str, data: bytes) -> tuple[str, bytes]:
        if name == "manifest.json":
            return name, data.replace(b'"artifacts/artifacts', b'"artifacts/../../../artifacts')
        return name.replace("artifacts/artifacts", "artifacts/../../../artifacts"), data

    other = tmp_path / "deep" / "other"
    refused = manage("restore", str(_rewritten(backup, tmp_path, climb)), LYRA_HOME=str(other))
    assert refused.returncode == 1
    assert "no backup has" in refused.stderr
    written = set(tmp_path.glob("**/adapter_model.safetensors"))
    assert written == {tmp_path / "home" / "artifacts" / ARTIFACT}


def test_a_link_is_refused(backup: Path, manage: Manage, tmp_path: Path) -> None:
    with tarfile.open(backup, "a") as tar:
        link = tarfile.TarInfo("secret_key")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    refused = manage("restore", str(backup), LYRA_HOME=str(tmp_path / "other"))
    assert refused.returncode == 1


@pytest.mark.parametrize("content", [b"", b"no tar"], ids=["empty", "text"])
def test_what_is_no_backup_is_refused(manage: Manage, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.tar"
    path.write_bytes(content)
    refused = manage("restore", str(path))
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr


def test_postgresql_takes_back_what_older_code_made(
    postgresql_url: str, postgresql_server: object, manage: Manage, tmp_path: Path
) -> None:
    """Tables and functions of migrations the backup does not know are gone: migrate makes them."""
    path = tmp_path / "older.tar"
    at = {"DATABASE_URL": postgresql_url}
    assert manage("migrate", "adapters_app", "0002", **at).returncode == 0
    saved = manage("backup", str(path), **at)
    assert saved.returncode == 0, saved.stderr
    assert manage("migrate", **at).returncode == 0
    forced = manage("restore", str(path), "--force", **at)
    assert forced.returncode == 0, forced.stderr
    assert "Only processes of this LYRA_HOME and web processes that answer" in forced.stderr
    migrated = manage("migrate", **at)
    assert migrated.returncode == 0, migrated.stderr
    assert manage("adapters", **at).returncode == 0


def test_postgresql_round_trip(
    postgresql_url: str, postgresql_server: object, manage: Manage, tmp_path: Path
) -> None:
    path = tmp_path / "backup.tar"
    shell = "from django.contrib.auth.models import User; "
    make = shell + "User.objects.create(username='kept')"
    count = shell + "print(sorted(User.objects.values_list('username', flat=True)))"
    assert manage("shell", "-c", make, DATABASE_URL=postgresql_url).returncode == 0
    saved = manage("backup", str(path), DATABASE_URL=postgresql_url)
    assert saved.returncode == 0, saved.stderr
    drop = shell + "User.objects.all().delete(); User.objects.create(username='later')"
    assert manage("shell", "-c", drop, DATABASE_URL=postgresql_url).returncode == 0

    assert manage("restore", str(path), DATABASE_URL=postgresql_url).returncode == 1
    seen = (
        "from adapters_app import liveness; "
        "liveness.saw_server('far:7', base_name='b', base_fingerprint='f')"
    )
    assert manage("shell", "-c", seen, DATABASE_URL=postgresql_url).returncode == 0
    served = manage("restore", str(path), "--force", DATABASE_URL=postgresql_url)
    assert served.returncode == 1
    assert "Web processes answer from this database: far:7." in served.stderr
    ended = "from adapters_app import liveness; liveness.server_ended('far:7')"
    assert manage("shell", "-c", ended, DATABASE_URL=postgresql_url).returncode == 0
    forced = manage("restore", str(path), "--force", DATABASE_URL=postgresql_url)
    assert forced.returncode == 0, forced.stderr
    assert "['kept', 'system']" in manage("shell", "-c", count, DATABASE_URL=postgresql_url).stdout

    elsewhere = manage("restore", str(path), LYRA_HOME=str(tmp_path / "sqlite"))
    assert elsewhere.returncode == 1
    assert "postgresql" in elsewhere.stderr


def _add_user(home: Path, *names: str) -> None:
    path = home / "lyra.sqlite3"
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as database, database:
        database.executemany(
            "INSERT INTO auth_user (username, password, is_superuser, is_staff, is_active,"
            " first_name, last_name, email, date_joined)"
            " VALUES (?, '', 0, 0, 1, '', '', '', '2026-01-01')",
            [(name,) for name in names],
        )


def _users(home: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(home / "lyra.sqlite3")) as database:
        return [name for (name,) in database.execute("SELECT username FROM auth_user ORDER BY 1")]


def _tables(home: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(home / "lyra.sqlite3")) as database:
        return [name for (name,) in database.execute("SELECT name FROM sqlite_master")]


def _rewritten(
    backup: Path, directory: Path, change: Callable[[str, bytes], tuple[str, bytes | None]]
) -> Path:
    """A copy of `backup` whose members went through `change(name, data)`; None leaves one out."""
    forged = directory / "forged.tar"
    with tarfile.open(backup) as source, tarfile.open(forged, "w") as target:
        for header in source:
            name, data = change(header.name, source.extractfile(header).read())
            if data is not None:
                changed = tarfile.TarInfo(name)
                changed.size = len(data)
                target.addfile(changed, io.BytesIO(data))
    return forged


def _files(home: Path) -> dict[Path, bytes]:
    """Everything in `home` but what a process at work makes: logs, locks, its cache."""
    passing = (".lock", "-wal", "-shm", ".sqlite3")
    return {
        path: path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and not path.name.endswith(passing) and "cache" not in path.parts
    }


def _restore(home: Path, backup: Path, prepare: str) -> subprocess.CompletedProcess[str]:
    """`manage.py restore --force BACKUP` in a process that runs the statements `prepare` first."""
    program = (
        "import os, shutil, sys, django; django.setup()\n"
        "from shutil import _ntuple_diskusage as usage\n"
        "from django.core.management import execute_from_command_line\n"
        "from lyra_site import restore\n"
        f"{prepare}\n"
        "execute_from_command_line(sys.argv)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, "restore", "--force", str(backup)],
        cwd=ROOT,
        env=os.environ | {"LYRA_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def _with_database(backup: Path, directory: Path, statement: str | None) -> Path:
    """A copy of `backup` whose database was changed, and whose manifest says so; None = garbage."""
    database = directory / "changed.sqlite3"
    with tarfile.open(backup) as tar:
        database.write_bytes(tar.extractfile("database.sqlite3").read())
        manifest = json.load(tar.extractfile("manifest.json"))
    if statement is None:
        content = database.read_bytes()
        database.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
    else:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(statement)
            connection.execute("PRAGMA journal_mode=DELETE")
    content = database.read_bytes()
    manifest["members"]["database.sqlite3"] = {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    changed = {"database.sqlite3": content, "manifest.json": json.dumps(manifest).encode()}
    return _rewritten(backup, directory, lambda name, data: (name, changed.get(name, data)))
