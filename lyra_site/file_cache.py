"""Signs of life of one host: Django's cache in files, where what cannot be written is not kept.

A training looks there every second whether its worker is to stop: a full disk must not end it.
"""

import logging
from typing import Any

from django.core.cache.backends.filebased import FileBasedCache

logger = logging.getLogger(__name__)


class FileCache(FileBasedCache):
    """Keeps nothing while it cannot write, and says so in the log, once."""

    failing = False  # as of the last write

    def set(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().set(*args, **kwargs)
        except OSError as error:
            if not self.failing:
                logger.warning("The cache in LYRA_HOME cannot be written: %s", error)
            self.failing = True
        else:
            self.failing = False
