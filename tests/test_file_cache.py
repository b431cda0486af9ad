"""The cache in files: what a power cut has left of a file is no value, and no error."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from django.core.cache import cache
from django.test import Client

from adapters_app import liveness, training
from lyra_site.file_cache import FileCache

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda whole: bytes(len(whole)),
    "cut off": lambda whole: whole[: len(whole) // 2],
    "zeros at the end": lambda whole: whole[: len(whole) // 2] + bytes(len(whole) // 2),
    "empty": lambda _: b"",
    "of another file": lambda _: b'{"status": "ok"}\n' * 100,
    "another time": lambda whole: b"\x80\x05X\x01\x00\x00\x00t." + whole[:9],
}


@pytest.fixture(params=DAMAGES)
def damage(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Damages the one file of a cache, as the test is named."""

    def make(directory: Path) -> None:
        (path,) = directory.glob("*.djcache")
        path.write_bytes(DAMAGES[request.param](path.read_bytes()))

    return make


@pytest.fixture
def files(tmp_path: Path) -> FileCache:
    return FileCache(str(tmp_path), {})


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (lambda files: files.get("key", "none"), "none"),
        (lambda files: files.get_many(["key"]), {}),
        (lambda files: files.touch("key"), False),
    ],
    ids=["get", "get_many", "touch"],
)
def test_what_is_damaged_is_absent_and_deleted(files, tmp_path, damage, read, found):
    files.set("key", np.zeros((40, 3)), timeout=None)
    damage(tmp_path)
    assert read(files) == found
    assert list(tmp_path.glob("*.djcache")) == []
    files.set("key", "anew")
    assert files.get("key") == "anew"


@pytest.mark.parametrize("damaged", ["zeros", "empty", "another time"])
def test_what_ends_before_its_time_is_not_there(files, tmp_path, damaged):
    files.set("key", "value")
    (path,) = tmp_path.glob("*.djcache")
    path.write_bytes(DAMAGES[damaged](path.read_bytes()))
    assert not files.has_key("key")
    assert files.add("key", "anew")
    assert files.get("key") == "anew"


def test_wherever_a_file_is_cut_off_it_is_absent(files, tmp_path):
    files.set("key", "value", timeout=None)
    (path,) = tmp_path.glob("*.djcache")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert files.get("key") is None
        assert not path.exists()


def test_readiness_outlives_a_damaged_sign_of_life(db, damage):
    cache.clear()
    training.saw_probe("lyra")
    damage(Path(cache._dir))
    assert "lyra" in liveness.silent_workers()
    training.saw_probe("lyra")
    damage(Path(cache._dir))
    client = Client(raise_request_exception=False)
    assert client.get("/readyz").json()["status"] in ("degraded", "unavailable")
    training.saw_probe("lyra")
    assert "lyra" not in liveness.silent_workers()
