"""Signs of life of one host: Django's cache in files, where what cannot be written is not kept, and
what a power cut has damaged was never there.

A training looks there every second whether its worker is to stop: a full disk must not end it, nor
a file that is cut off.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.filebased import FileBasedCache

logger = logging.getLogger(__name__)


class FileCache(FileBasedCache):
    """Keeps nothing while it cannot write, and says so in the log, once; deletes what it cannot
    read."""

    failing = False  # as of the last write

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        with self._absent_where_damaged(key, version):
            return super().get(key, default, version)
        return default

    def has_key(self, key: Any, version: int | None = None) -> bool:
        with self._absent_where_damaged(key, version):
            return super().has_key(key, version)
        return False

    def touch(
        self, key: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        with self._absent_where_damaged(key, version):
            return super().touch(key, timeout, version)
        return False

    def set(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().set(*args, **kwargs)
        except OSError as error:
            if not self.failing:
                logger.warning("The cache in LYRA_HOME cannot be written: %s", error)
            self.failing = True
        else:
            self.failing = False

    @contextlib.contextmanager
    def _absent_where_damaged(self, key: Any, version: int | None) -> Iterator[None]:
        self.make_and_validate_key(key, version)  # a key that is none is no damage
        try:
            yield
        except Exception as error:  # bytes that are no pickle raise whatever they lead to
            logger.warning("A damaged file of the cache in LYRA_HOME is deleted: %r", error)
            with contextlib.suppress(OSError):
                self.delete(key, version)
