"""Collects the static files into LYRA_HOME, where whitenoise serves them from: where they changed.

Hashing and compressing them takes a second of every start otherwise.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.core.management import call_command

from corrections.files import text_beside


def collect() -> None:
    """Collect them, unless neither they nor what was collected has changed since."""
    # Not among them: whatever lies there is served.
    mark = settings.LYRA_HOME / "static.collected"
    if mark.exists() and mark.read_text() == _fingerprint():
        return
    mark.unlink(missing_ok=True)
    # Django would read the list of a collection that was cut off, and refuses half of one.
    shutil.rmtree(settings.STATIC_ROOT, ignore_errors=True)
    call_command("collectstatic", interactive=False, verbosity=0)
    with text_beside(mark) as file:
        file.write(_fingerprint())


def _fingerprint() -> str:
    """Of how files are stored, of each one's name, size and time of its last change, and of the
    names and sizes of all that was collected: a power cut leaves files empty."""
    digest = hashlib.sha256(json.dumps(settings.STORAGES["staticfiles"]).encode())
    for line in (*sorted(_sources()), *sorted(_collected())):
        digest.update(line.encode())
    return digest.hexdigest()


def _sources() -> Iterator[str]:
    for finder in get_finders():
        for name, storage in finder.list([]):
            path = Path(storage.path(name))
            about = path.stat()
            yield f"{path}\0{about.st_size}\0{about.st_mtime_ns}\n"


def _collected() -> Iterator[str]:
    for path in Path(settings.STATIC_ROOT).rglob("*"):
        if path.is_file():
            yield f"{path}\0{path.stat().st_size}\n"
