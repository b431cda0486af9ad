"""Serves plotly.js out of the installed plotly package: no chart asks another host for it."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.contrib.staticfiles.finders import BaseFinder
from django.core.checks import CheckMessage
from django.core.files.storage import FileSystemStorage

PREFIX, FILE = "plotly", "plotly.min.js"


class PlotlyFinder(BaseFinder):
    """Finds one static file, “plotly/plotly.min.js”; the package is located, not imported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        spec = find_spec("plotly")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("plotly is not installed; install requirements.txt")
        self.storage = FileSystemStorage(location=Path(spec.origin).parent / "package_data")
        self.storage.prefix = PREFIX  # type: ignore[attr-defined]  # where collectstatic puts it

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        return []

    def find(self, path: str, find_all: bool = False, **kwargs: Any) -> Any:
        """Absolute path of the file, as a list where `find_all`; empty for any other path."""
        if path != f"{PREFIX}/{FILE}":
            return []
        return [self.storage.path(FILE)] if find_all else self.storage.path(FILE)

    def list(self, ignore_patterns: Iterable[str] | None) -> Iterator[tuple[str, Any]]:
        yield FILE, self.storage
