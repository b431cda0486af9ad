"""What `run` collects for pages: again where something changed, and not otherwise."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.contrib.staticfiles.finders import get_finder
from django.contrib.staticfiles.storage import staticfiles_storage
from whitenoise.storage import CompressedManifestStaticFilesStorage

from lyra_site import static_files

FINDER = "django.contrib.staticfiles.finders.FileSystemFinder"


@pytest.fixture
def source(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The one directory that is collected, into a home of its own."""
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "page.css").write_text("a { color: red }\n" * 100)
    settings.LYRA_HOME = tmp_path
    settings.STATIC_ROOT = tmp_path / "static"
    settings.STATICFILES_DIRS = [directory]
    settings.STATICFILES_FINDERS = [FINDER]
    get_finder.cache_clear()
    # The process has one storage for all its life; this test is another process to it.
    storage = CompressedManifestStaticFilesStorage(location=settings.STATIC_ROOT)
    monkeypatch.setattr(staticfiles_storage, "_wrapped", storage)
    yield directory
    get_finder.cache_clear()


def _collected(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_pages_get_what_was_collected_compressed_and_by_its_hashed_name(
    source: Path, tmp_path: Path
) -> None:
    static_files.collect()
    collected = set(_collected(tmp_path / "static"))
    (name,) = staticfiles_storage.load_manifest()[0].values()
    assert collected == {name, f"{name}.gz", "staticfiles.json"}


def test_nothing_is_done_where_nothing_changed(source: Path, tmp_path: Path) -> None:
    static_files.collect()
    before = _collected(tmp_path / "static")
    static_files.collect()
    assert _collected(tmp_path / "static") == before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda s, t: (s / "page.css").write_text("b {}\n"), id="another text"),
        pytest.param(lambda s, t: (s / "new.css").write_text("c {}\n"), id="one more file"),
        pytest.param(
            lambda s, t: next(t.glob("page.*.css")).unlink(), id="a collected file is deleted"
        ),
        pytest.param(
            lambda s, t: next(t.glob("page.*.css")).write_text(""), id="a collected file is emptied"
        ),
        pytest.param(lambda s, t: (t / "staticfiles.json").unlink(), id="the list is deleted"),
        pytest.param(
            lambda s, t: (t / "staticfiles.json").write_text(""), id="the list is emptied"
        ),
    ],
)
def test_what_changed_or_was_lost_is_collected_again(
    source: Path, tmp_path: Path, change: Callable[[Path, Path], object]
) -> None:
    static_files.collect()
    change(source, tmp_path / "static")
    static_files.collect()
    names = staticfiles_storage.load_manifest()[0]
    assert set(names) == {path.name for path in source.iterdir()}
    for name, collected in names.items():
        assert (tmp_path / "static" / collected).read_text() == (source / name).read_text()


def test_a_collection_that_was_cut_off_is_done_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    static_files.collect()
    (source / "page.css").write_text("b {}\n")
    with monkeypatch.context() as patched:
        patched.setattr(CompressedManifestStaticFilesStorage, "save_manifest", full)
        with pytest.raises(OSError, match="No space"):
            static_files.collect()
    static_files.collect()
    (name,) = staticfiles_storage.load_manifest()[0].values()
    assert (tmp_path / "static" / name).read_text() == "b {}\n"
