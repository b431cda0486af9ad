"""Signs of life that cross hosts: Django's Redis cache, where a Redis that is away is an empty one.

Beside them it keeps answers to general pairs, which a training then asks for again. Without it
nobody is seen, which /readyz and the dashboard tell; but answers, trainings and promotions go on.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from django.core.cache import caches
from django.core.cache.backends.redis import RedisCache
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError, TimeoutError
from redis.retry import Retry

TIMEOUT_S = 1.0  # a training looks every second
# So long after it did not answer in time nobody waits for it: a page looks several times.
PAUSE_S = 10.0

logger = logging.getLogger(__name__)


class SharedCache(RedisCache):
    """Reads nothing and writes nothing while Redis is away, and says so in the log, once."""

    away = ""  # why it could not be reached the last time
    _asked_from = 0.0  # by time.monotonic(), of all threads

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        patience = {
            "socket_timeout": TIMEOUT_S,
            "socket_connect_timeout": TIMEOUT_S,
            # The connection may be one from before a restart.
            "retry": Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        }
        super().__init__(server, params | {"OPTIONS": patience | params.get("OPTIONS", {})})

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        if self._is_asked():
            with self._forgiving():
                return super().get(key, default, version)
        return default

    def set(self, *args: Any, **kwargs: Any) -> None:
        if self._is_asked():
            with self._forgiving():
                super().set(*args, **kwargs)

    def _is_asked(self) -> bool:
        asked = time.monotonic() >= SharedCache._asked_from
        if not asked:
            self.away = self.away or "it did not answer in time"
        return asked

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            if not self.away:
                logger.warning("The Redis of LYRA_CACHE_URL cannot be reached: %s", error)
            self.away = str(error)
            if isinstance(error, TimeoutError):
                SharedCache._asked_from = time.monotonic() + PAUSE_S
        else:
            self.away = ""


def problem() -> str:
    """Why signs of life cannot be seen just now; empty where they can."""
    away = getattr(caches["default"], "away", "")
    return f"The Redis of LYRA_CACHE_URL cannot be reached: {away}" if away else ""
