"""The artifact store: one directory per digest of the tensor file, never overwritten, verified.

Works on any Django storage named "artifacts"; a host reads through a verified local copy.
"""

import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path, PurePosixPath

from django.conf import settings
from django.core.files.base import ContentFile, File
from django.core.files.storage import FileSystemStorage, Storage, storages
from django.utils import timezone

from adapters_app.models import AdapterVersion, Snapshot, TrainingRun
from corrections.files import sync_directory

ARTIFACTS = "artifacts"
TENSORS = "adapter_model.safetensors"
# Lists every file with its SHA-256; stored last, so that an artifact without it is not there yet.
SUMS = "SHA256SUMS"
# All that is ever stored: the files of artifacts, and snapshots as their rows name them.
OURS = re.compile(
    rf"{ARTIFACTS}/[0-9a-f]{{64}}/[A-Za-z0-9_][A-Za-z0-9._-]*"
    r"|snapshots/[0-9a-f]{64}(-[0-9a-f]{8})?\.jsonl"
)
OUR_DIRECTORIES = re.compile(rf"snapshots/|{ARTIFACTS}/([0-9a-f]{{64}}/)?")
# An artifact is stored minutes before the version that names it is committed.
ORPHAN_AGE = timedelta(hours=1)
OWNER_AND_GROUP = stat.S_ISGID | stat.S_IRWXU | stat.S_IRWXG
# Names begin with these until what they name is whole, or is gone.
WRITING, FETCHING, DAMAGED = ".writing-", ".fetching-", ".damaged-"


class ArtifactMissing(LookupError):
    """The store has no complete artifact of this digest."""


class ArtifactCorrupt(ValueError):
    """Stored bytes are not the ones that were stored under this digest."""


class StoreUnavailable(OSError):
    """The store cannot be reached, or refuses: what a disk says with an OSError of its own."""


@contextmanager
def reaching_store() -> Iterator[None]:
    """In this block, or a function this decorates, a store that is away is StoreUnavailable.

    Django's own storages raise OSError then, which is passed on. Others name what they raise in
    `faults`, as S3ArtifactStorage does: boto's errors are no OSErrors.
    """
    faults: tuple[type[Exception], ...] = getattr(storages[ARTIFACTS], "faults", ())
    try:
        yield
    except faults as error:
        raise StoreUnavailable(f"The artifact store cannot be used: {error}") from error


class DurableFileSystemStorage(FileSystemStorage):
    """Files that are whole or absent, also after a power cut, and never replaced.

    A name here says what the content is, so saving under a taken name does nothing.
    """

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        return name

    def _save(self, name: str, content: File) -> str:
        target = Path(self.path(name))
        self._make(target.parent)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=WRITING) as beside:
            for chunk in content.chunks():
                beside.write(chunk)
            beside.flush()
            os.fsync(beside.fileno())
            if self.file_permissions_mode is not None:
                os.chmod(beside.name, self.file_permissions_mode)
            try:
                os.link(beside.name, target)
            except FileExistsError:
                return name
        sync_directory(target.parent)
        return name

    def _make(self, directory: Path) -> None:
        """Make what is missing of it, as open to the group as the operator made our location: the
        process's umask would shut out other users of that group."""
        if directory == Path(self.location):
            directory.mkdir(parents=True, exist_ok=True)
        elif not directory.is_dir():
            self._make(directory.parent)
            with suppress(FileExistsError):
                directory.mkdir()
                directory.chmod(directory.parent.stat().st_mode & OWNER_AND_GROUP)


@reaching_store()
def put(directory: Path) -> str:
    """Store the files of an artifact directory; returns the digest of its tensor file.

    Raises:
        OSError: the store cannot be written (for example, the disk is full, or S3 is away).
    """
    store = storages[ARTIFACTS]
    sums = {path.name: _sha256(path) for path in sorted(directory.iterdir())}
    digest = sums[TENSORS]
    if store.exists(_key(digest, SUMS)):
        return digest
    for name in sums:
        if not store.exists(_key(digest, name)):
            with (directory / name).open("rb") as file:
                store.save(_key(digest, name), File(file))
    # Summed from the store: after a crash part of it may be an earlier writer's, with the same
    # tensors and another card.
    stored = {name: _sha256_stored(store, _key(digest, name)) for name in sums}
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(stored.items()))
    store.save(_key(digest, SUMS), ContentFile(lines.encode()))
    return digest


def fetch(digest: str) -> Path:
    """Directory on this host with a verified copy of an artifact.

    Raises:
        ArtifactMissing: the store does not have it.
        ArtifactCorrupt: what the store has is not what was stored.
        OSError: the store cannot be read, or the local copy not be written.
    """
    cached = Path(settings.LYRA_ARTIFACT_CACHE) / digest
    if cached.is_dir() and not _wrong_with(cached, digest):
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=cached.parent, prefix=FETCHING))
    try:
        _download(digest, beside)
        fault = _wrong_with(beside, digest)
        if fault:
            raise ArtifactCorrupt(f"Artifact {digest[:12]} is damaged in storage: {fault}.")
        _swap_in(beside, cached, digest)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return cached


@reaching_store()
def holds(digest: str) -> bool:
    """Whether the store has a complete artifact of this digest (its bytes are not looked at)."""
    return storages[ARTIFACTS].exists(_key(digest, SUMS))


@reaching_store()
def verify(digest: str) -> None:
    """Check the artifact in the store itself, whatever local copy this host has.

    Raises:
        ArtifactMissing, ArtifactCorrupt, OSError: as `fetch`.
    """
    store = storages[ARTIFACTS]
    for name, expected in _sums(digest).items():
        try:
            found = _sha256_stored(store, _key(digest, name))
        except FileNotFoundError:
            raise ArtifactMissing(f"Artifact {digest[:12]} lacks {name} in storage.") from None
        if found != expected or (name == TENSORS and found != digest):
            raise ArtifactCorrupt(f"Artifact {digest[:12]}: {name} was altered in storage.")


@reaching_store()
def size(digest: str) -> int:
    """Bytes the artifact takes in the store."""
    store = storages[ARTIFACTS]
    return sum(store.size(_key(digest, name)) for name in (*_sums(digest), SUMS))


@reaching_store()
def stored() -> tuple[list[str], list[str]]:
    """Storage names of what was stored here, and of what somebody else has put beside it.

    A directory that holds nothing of ours is named once, with a slash at its end, and not entered:
    it may be closed to us. What is hidden, or still being written, is in neither.
    """
    ours: list[str] = []
    foreign: list[str] = []
    open_directories = [""]
    while open_directories:
        where = open_directories.pop()
        directories, files = _listed(storages[ARTIFACTS], where)
        for name in (f"{where}{name}" for name in files if not name.startswith(".")):
            (ours if OURS.fullmatch(name) else foreign).append(name)
        for name in (f"{where}{name}/" for name in directories if not name.startswith(".")):
            (open_directories if OUR_DIRECTORIES.fullmatch(name) else foreign).append(name)
    return sorted(ours), sorted(foreign)


@reaching_store()
def prune_orphans(*, dry_run: bool = False) -> list[str]:
    """Delete stored artifacts and snapshot files that no row names; returns their storage names.

    What a killed process left half-written goes with them, in the store and in this host's cache;
    of these the last part of the path is returned. Nothing is deleted while a run is running: it
    may be about to name what looks like an orphan.
    """
    if TrainingRun.objects.filter(status=TrainingRun.Status.RUNNING).exists():
        return []
    store = storages[ARTIFACTS]
    named = _named_digests()
    orphans = [
        f"{ARTIFACTS}/{digest}"
        for digest in _listed(store, ARTIFACTS)[0]
        if digest not in named and _is_old(store, _files_of(store, digest))
    ]
    snapshots = {snapshot.storage_name for snapshot in Snapshot.objects.only("digest", "file_mark")}
    orphans += [
        name
        for name in (f"snapshots/{file}" for file in _listed(store, "snapshots")[1])
        if name not in snapshots and _is_old(store, [name])
    ]
    unfinished = _unfinished(store)
    if not dry_run:
        for orphan in orphans:
            _delete(store, orphan)
        for path in unfinished:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return orphans + [path.name for path in unfinished]


def _unfinished(store: Storage) -> list[Path]:
    """What only a killed process leaves: everything else removes it, whole or not."""
    cache = Path(settings.LYRA_ARTIFACT_CACHE)
    found = [*cache.glob(f"{FETCHING}*"), *cache.glob(f"{DAMAGED}*")]
    if isinstance(store, FileSystemStorage):
        found += Path(store.location).rglob(f"{WRITING}*")
    return [path for path in sorted(found) if _is_left(path)]


def _is_left(path: Path) -> bool:
    """Whether nobody can still be writing it; one that has just been finished has gone."""
    try:
        return path.stat().st_mtime < (timezone.now() - ORPHAN_AGE).timestamp()
    except FileNotFoundError:
        return False


def _named_digests() -> set[str]:
    named: set[str] = set()
    for released, siblings in AdapterVersion.objects.values_list(
        "artifact_digest", "sibling_digests"
    ):
        named |= {released, *siblings}
    return named


def _delete(store: Storage, orphan: str) -> None:
    if not orphan.startswith(f"{ARTIFACTS}/"):
        store.delete(orphan)
        return
    digest = PurePosixPath(orphan).name
    store.delete(_key(digest, SUMS))  # first: half an artifact must not look whole
    for name in _files_of(store, digest):
        store.delete(name)
    if isinstance(store, FileSystemStorage):
        store.delete(orphan)  # the empty directory; object stores have none
    shutil.rmtree(Path(settings.LYRA_ARTIFACT_CACHE) / digest, ignore_errors=True)


def _is_old(store: Storage, names: Iterable[str]) -> bool:
    before = timezone.now() - ORPHAN_AGE
    return all(store.get_modified_time(name) < before for name in names)


def _listed(store: Storage, where: str) -> tuple[list[str], list[str]]:
    try:
        return store.listdir(where)
    except FileNotFoundError:
        return [], []


def _files_of(store: Storage, digest: str) -> list[str]:
    return [_key(digest, name) for name in _listed(store, f"{ARTIFACTS}/{digest}")[1]]


@reaching_store()
def _download(digest: str, into: Path) -> None:
    store = storages[ARTIFACTS]
    for name in (*_sums(digest), SUMS):
        try:
            with store.open(_key(digest, name)) as file, (into / name).open("wb") as copy:
                shutil.copyfileobj(file, copy)
        except FileNotFoundError:
            raise ArtifactMissing(f"Artifact {digest[:12]} lacks {name} in storage.") from None


def _swap_in(beside: Path, cached: Path, digest: str) -> None:
    """Put a verified copy in place of none, or of a damaged one; somebody else may be faster."""
    beside.chmod(0o750)
    for _ in range(2):
        try:
            beside.rename(cached)
            return
        except OSError:
            if cached.is_dir() and not _wrong_with(cached, digest):
                return
            damaged = Path(tempfile.mkdtemp(dir=cached.parent, prefix=DAMAGED))
            cached.rename(damaged)
            shutil.rmtree(damaged)
    raise ArtifactCorrupt(f"The local copy {cached} cannot be replaced.")


def _sums(digest: str) -> dict[str, str]:
    """{file name: SHA-256} of a stored artifact."""
    try:
        with storages[ARTIFACTS].open(_key(digest, SUMS)) as file:
            return _parse(file.read().decode())
    except FileNotFoundError:
        raise ArtifactMissing(f"Artifact {digest[:12]} is not in storage.") from None
    except ValueError as error:
        raise ArtifactCorrupt(f"Artifact {digest[:12]}: {SUMS} is unreadable.") from error


def _parse(text: str) -> dict[str, str]:
    """Lines of `sha256sum`; names are plain file names, so that none leads out of the directory."""
    sums = {}
    for line in text.splitlines():
        value, _, name = line.partition("  ")
        if not name or PurePosixPath(name).name != name or name.startswith("."):
            raise ValueError(f"line {line!r}")
        sums[name] = value
    return sums


def _wrong_with(directory: Path, digest: str) -> str:
    """What is wrong with a local copy, in words; empty where nothing is."""
    try:
        sums = _parse((directory / SUMS).read_text())
        if TENSORS not in sums or sums[TENSORS] != digest:
            return f"{SUMS} belongs to other tensors"
        for name, expected in sums.items():
            if _sha256(directory / name) != expected:
                return f"{name} was altered"
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _key(digest: str, name: str) -> str:
    return f"{ARTIFACTS}/{digest}/{name}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_stored(store: Storage, name: str) -> str:
    with store.open(name) as file:
        digest = hashlib.sha256()
        for chunk in file.chunks():
            digest.update(chunk)
        return digest.hexdigest()
