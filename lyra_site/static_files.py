"""Collects the static files into LYRA_HOME, where whitenoise serves them from: where they changed.

Hashing and compressing them takes a second of every start otherwise.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.management import call_command

from corrections.files import text_beside


def collect() -> None:
    """Collect them, unless all that was collected is there and nothing to collect has changed."""
    # Not among them: whatever lies there is served. It says from what they were collected, and is
    # there once they all are.
    mark = settings.LYRA_HOME / "static.collected"
    found = _fingerprint()
    if mark.exists() and mark.read_text() == found and _all_there():
        return
    mark.unlink(missing_ok=True)
    call_command("collectstatic", interactive=False, verbosity=0)
    with text_beside(mark) as file:
        file.write(found)


def _fingerprint() -> str:
    """Of how files are stored, and of each one's name, size and time of its last change."""
    digest = hashlib.sha256(json.dumps(settings.STORAGES["staticfiles"]).encode())
    for line in sorted(_sources()):
        digest.update(line.encode())
    return digest.hexdigest()


def _sources() -> Iterator[str]:
    for finder in get_finders():
        for name, storage in finder.list([]):
            path = Path(storage.path(name))
            about = path.stat()
            yield f"{path}\0{about.st_size}\0{about.st_mtime_ns}\n"


def _all_there() -> bool:
    """Whether nobody has deleted what was collected."""
    collected, _ = staticfiles_storage.load_manifest()  # type: ignore[attr-defined]
    files = [Path(staticfiles_storage.path(name)) for name in collected.values()]
    return bool(files) and all(file.exists() for file in files)
