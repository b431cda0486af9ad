"""backup and restore: the real commands on real homes, and tars that no backup made."""

import contextlib
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

from tests.conftest import ROOT, Manage

DIGEST = "ab" * 32
ARTIFACT = f"artifacts/{DIGEST}/adapter_model.safetensors"


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


def test_a_database_in_use_is_not_replaced(backup: Path, filled: Path, manage: Manage) -> None:
    with contextlib.closing(sqlite3.connect(filled / "lyra.sqlite3")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM auth_user").fetchone()
        _add_user(filled, "after")
        refused = manage("restore", str(backup), "--force")
    assert refused.returncode == 1
    assert "uses" in refused.stderr
    assert "after" in _users(filled)


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (lambda name, data: (name, data[:-1] + b"x"), "damaged"),
        (lambda name, data: (f"../../{name}", data), "exactly"),
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
