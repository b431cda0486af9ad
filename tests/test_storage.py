"""The artifact store: whole or absent, never overwritten, verified before use."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings as current
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.db import connection
from django.utils import timezone

from adapters_app import snapshots, storage
from adapters_app.models import Snapshot, TrainingRun
from adapters_app.storage import ArtifactCorrupt, ArtifactMissing, StoreUnavailable
from corrections.acting import system_user
from tests.verdicts import accept

pytest_plugins = ("tests.s3",)


@pytest.fixture(autouse=True)
def store(settings, tmp_path: Path) -> Path:
    settings.LYRA_ARTIFACT_CACHE = tmp_path / "cache"
    place = tmp_path / "store"
    settings.STORAGES = settings.STORAGES | {
        "artifacts": settings.STORAGES["artifacts"] | {"OPTIONS": {"location": str(place)}}
    }
    return place


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """An artifact directory on its way to the store; the store never looks inside the files."""
    directory = tmp_path / "written"
    directory.mkdir()
    (directory / storage.TENSORS).write_bytes(b"tensors")
    (directory / "manifest.json").write_text("{}")
    (directory / "README.md").write_text("# card")
    return directory


def stored(store: Path, digest: str, name: str) -> Path:
    return store / "artifacts" / digest / name


def test_an_artifact_is_stored_under_its_tensors_digest_and_fetched_back(written):
    digest = storage.put(written)
    assert digest == hashlib.sha256(b"tensors").hexdigest()
    copy = storage.fetch(digest)
    assert (copy / storage.TENSORS).read_bytes() == b"tensors"
    assert (copy / "README.md").read_text() == "# card"
    storage.verify(digest)


@pytest.mark.parametrize(
    ("given", "below"), [(0o2770, 0o2770), (0o2750, 0o2750), (0o700, 0o700), (None, 0o700)]
)
def test_a_store_that_a_group_shares_stays_open_to_it(
    written, store: Path, settings, given: int | None, below: int
):
    """Workers and web servers may be different users; by default they are not."""
    options = {"location": str(store), "file_permissions_mode": 0o640}
    artifacts = settings.STORAGES["artifacts"] | {"OPTIONS": options}
    settings.STORAGES = settings.STORAGES | {"artifacts": artifacts}
    if given:
        store.mkdir()
        store.chmod(given)
    digest = storage.put(written)
    found = [path for path in store.rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o7777 for path in found} == {below}
    assert stored(store, digest, "README.md").stat().st_mode & 0o777 == 0o640


def test_storing_again_changes_nothing(written, store):
    digest = storage.put(written)
    (written / "README.md").write_text("# another card")
    assert storage.put(written) == digest
    assert stored(store, digest, "README.md").read_text() == "# card"


def test_a_taken_name_is_never_overwritten(store):
    disk = storages["artifacts"]
    assert disk.save("a/b", ContentFile(b"first")) == "a/b"
    assert disk.save("a/b", ContentFile(b"second")) == "a/b"
    assert (store / "a/b").read_bytes() == b"first"
    assert os.listdir(store / "a") == ["b"]


def test_half_an_artifact_is_not_there_and_can_be_completed(written, store):
    digest = storage.put(written)
    stored(store, digest, storage.SUMS).unlink()  # as if the process had died before the last file
    assert not storage.holds(digest)
    with pytest.raises(ArtifactMissing):
        storage.fetch(digest)
    assert storage.put(written) == digest
    storage.fetch(digest)


@pytest.mark.parametrize("name", [storage.TENSORS, "manifest.json"])
def test_an_altered_file_is_refused(written, store, name):
    digest = storage.put(written)
    path = stored(store, digest, name)
    path.chmod(0o600)
    path.write_bytes(b"forged")
    with pytest.raises(ArtifactCorrupt, match=name):
        storage.fetch(digest)
    with pytest.raises(ArtifactCorrupt, match=name):
        storage.verify(digest)


def test_a_lost_file_is_named(written, store):
    digest = storage.put(written)
    stored(store, digest, "manifest.json").unlink()
    with pytest.raises(ArtifactMissing, match=r"manifest\.json"):
        storage.fetch(digest)


def test_tensors_of_another_digest_are_refused(written, store):
    digest = storage.put(written)
    other = "0" * 64
    stored(store, digest, "").rename(store / "artifacts" / other)
    with pytest.raises(ArtifactCorrupt):
        storage.fetch(other)


def test_sums_cannot_lead_out_of_the_directory(written, store):
    digest = storage.put(written)
    path = stored(store, digest, storage.SUMS)
    path.chmod(0o600)
    path.write_text(f"{digest}  ../../etc/passwd\n")
    with pytest.raises(ArtifactCorrupt):
        storage.fetch(digest)


def test_a_damaged_local_copy_is_replaced(written):
    digest = storage.put(written)
    copy = storage.fetch(digest)
    (copy / storage.TENSORS).write_bytes(b"bit rot")
    assert (storage.fetch(digest) / storage.TENSORS).read_bytes() == b"tensors"
    assert os.listdir(copy.parent) == [digest]


# --- S3 -------------------------------------------------------------------------------------------


def test_an_artifact_goes_to_s3_and_back(written, s3):
    digest = storage.put(written)
    assert storage.put(written) == digest
    assert f"lyra/artifacts/{digest}/{storage.SUMS}" in s3.objects
    assert storage.holds(digest)
    storage.verify(digest)
    assert (storage.fetch(digest) / storage.TENSORS).read_bytes() == b"tensors"
    assert storage.size(digest) == sum(map(len, s3.objects.values()))


def test_what_s3_does_not_have_is_missing_and_what_it_altered_is_corrupt(written, s3):
    with pytest.raises(ArtifactMissing):
        storage.fetch("0" * 64)
    digest = storage.put(written)
    s3.objects[f"lyra/artifacts/{digest}/manifest.json"] = b"forged"
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.json"):
        storage.verify(digest)


@pytest.mark.django_db
def test_orphans_in_s3_are_pruned(written, s3, monkeypatch):
    digest = storage.put(written)
    monkeypatch.setattr(storage, "ORPHAN_AGE", timedelta(seconds=-5))
    assert storage.prune_orphans() == [f"artifacts/{digest}"]
    assert not s3.objects


FAULTS = {
    "gone": lambda s3: s3.go_away(),
    "forbidding": lambda s3: setattr(s3, "refuses", 403),
    "overloaded": lambda s3: setattr(s3, "refuses", 503),
}
USES: list[Callable[[str, Path], object]] = [
    lambda _, written: storage.put(written),
    lambda digest, _: storage.fetch(digest),
    lambda digest, _: storage.holds(digest),
    lambda digest, _: storage.verify(digest),
    lambda digest, _: storage.size(digest),
    lambda *_: storage.prune_orphans(),
    lambda *_: snapshots.freeze(),
    lambda *_: snapshots.load(Snapshot(digest="5" * 64)),
]


@pytest.mark.django_db
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_s3_that_cannot_be_used_is_said_in_one_way(written, s3, fault):
    digest = storage.put(written)
    fault(s3)
    for use in USES:
        with pytest.raises(StoreUnavailable, match="The artifact store cannot be used: "):
            use(digest, written)


def test_a_download_that_breaks_off_is_no_damage(written, s3):
    digest = storage.put(written)
    s3.breaks_off = True
    for use in (storage.fetch, storage.verify):
        with pytest.raises(StoreUnavailable):
            use(digest)
    s3.breaks_off = False
    storage.verify(digest)
    storage.fetch(digest)


def test_s3_without_its_package_is_refused_by_name_before_anything_starts():
    program = (
        "import importlib.util as util, sys; find = util.find_spec; "
        "util.find_spec = lambda name: None if name == 'boto3' else find(name); "
        "import lyra_site.settings"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"LYRA_ARTIFACTS": "s3://bucket/lyra"},
        cwd=current.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "LYRA_ARTIFACTS=s3://bucket/lyra needs django-storages" in done.stderr


# --- pruning --------------------------------------------------------------------------------------


def make_old(store: Path) -> None:
    then = (timezone.now() - 2 * storage.ORPHAN_AGE).timestamp()
    for path in store.rglob("*"):
        os.utime(path, (then, then))


@pytest.mark.django_db
def test_orphans_are_pruned_once_they_are_old(written, store):
    digest = storage.put(written)
    storage.fetch(digest)
    storages["artifacts"].save("snapshots/abc.jsonl", ContentFile(b""))
    assert storage.prune_orphans() == []
    make_old(store)
    expected = [f"artifacts/{digest}", "snapshots/abc.jsonl"]
    assert storage.prune_orphans(dry_run=True) == expected
    assert storage.holds(digest)
    assert storage.prune_orphans() == expected
    assert not storage.holds(digest)
    assert not (store / "artifacts" / digest).exists()
    assert storage.prune_orphans() == []


@pytest.mark.django_db
def test_what_a_killed_process_left_half_written_goes_too(written, store, settings):
    digest = storage.put(written)
    copy = storage.fetch(digest)
    cache = Path(settings.LYRA_ARTIFACT_CACHE)
    (store / "artifacts" / digest / ".writing-a").write_bytes(b"ten")
    for name in (".fetching-b", ".damaged-c"):
        (cache / name).mkdir()
        (cache / name / storage.TENSORS).write_bytes(b"ten")
    assert storage.prune_orphans() == []
    make_old(cache)
    make_old(store)
    left = {".writing-a", ".fetching-b", ".damaged-c"}
    assert left < set(storage.prune_orphans(dry_run=True))
    assert left < set(storage.prune_orphans())
    assert not left & {path.name for place in (store, cache) for path in place.rglob("*")}
    assert not copy.exists()


@pytest.mark.django_db
def test_nothing_is_pruned_while_a_run_may_be_about_to_name_it(written, store):
    storage.put(written)
    make_old(store)
    now = timezone.now()
    run = TrainingRun.objects.create(
        requested_by=system_user(),
        status="running",
        device="here:cpu",
        started_at=now,
        lease_expires_at=now + timedelta(minutes=1),
    )
    assert storage.prune_orphans() == []
    TrainingRun.objects.filter(pk=run.pk).update(status="cancelled")
    assert len(storage.prune_orphans()) == 1


def frozen_and_pruned_at_once() -> None:
    """A worker freezes the verdicts that a failed run left, while somebody prunes."""
    accept(6)
    for _ in range(15):
        snapshots.freeze()
        Snapshot.objects.update(frozen_at=timezone.now() - 2 * storage.ORPHAN_AGE)
        gate = threading.Barrier(2)

        def at_once(act: Callable[[], object], gate: threading.Barrier = gate) -> object:
            gate.wait()
            try:
                return act()
            finally:
                connection.close()

        with ThreadPoolExecutor(2) as pool:
            frozen, _ = pool.map(at_once, (snapshots.freeze, snapshots.prune))
        assert Snapshot.objects.get() == frozen
        assert len(snapshots.load(frozen)) == 6


def test_what_is_frozen_while_it_is_pruned_is_there_on_postgresql(on_postgresql):
    frozen_and_pruned_at_once()


@pytest.mark.django_db(transaction=True)
def test_what_is_frozen_while_it_is_pruned_is_there_on_sqlite():
    frozen_and_pruned_at_once()
