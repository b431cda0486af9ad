"""System checks of the site's settings: bad ones are refused at start, under gunicorn too.

Those of training and serving are in `adapters_app.checks`; a value that is not even of its type is
refused while the settings load.
"""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connection

from lyra_site import database

SHORTEST_SECRET = 50  # what get_random_secret_key() makes
FEWEST_CHARACTERS = 10  # different ones
# Parts of keys that stand in documentation and examples.
WELL_KNOWN = ("django-insecure", "change-me", "changeme", "change_me", "your-secret", "secret-key")
LIMITS = (
    "LYRA_MAX_PAIRS",
    "LYRA_MAX_CHARS",
    "LYRA_MAX_BODY_BYTES",
    "LYRA_MAX_IMPORT_BYTES",
    "LYRA_MAX_IMPORT_ROWS",
    "LYRA_RESIDENT_ADAPTERS",
    "LYRA_TOKEN_DAYS",
    "WEB_CONCURRENCY",
)
# No settings: what programs of this project tell one another.
INTERNAL = {"LYRA_PYTHON"}
LOOPBACK = {"localhost", "127.0.0.1", "[::1]", "::1"}


@register(Tags.security)
def secret_key(**_: Any) -> list[CheckMessage]:
    """The queue's payloads are pickles signed with this key: who knows it runs code here."""
    key = settings.SECRET_KEY
    if settings.DEBUG:
        return []
    if len(key) < SHORTEST_SECRET or len(set(key)) < FEWEST_CHARACTERS:
        problem = "is too short or too regular"
    elif any(part in key.lower() for part in WELL_KNOWN):
        problem = "is one that stands in examples"
    else:
        return []
    return [
        Error(
            f"LYRA_SECRET_KEY {problem}.",
            hint=f"At least {SHORTEST_SECRET} random characters; unset, one is generated and kept.",
            id="lyra_site.E001",
        )
    ]


@register(Tags.security)
def allowed_hosts(**_: Any) -> Iterator[CheckMessage]:
    hosts: Sequence[str] = settings.ALLOWED_HOSTS
    if not hosts and not settings.DEBUG:
        yield Error(
            "LYRA_ALLOWED_HOSTS is empty: no request would be answered.", id="lyra_site.E002"
        )
    for host in hosts:
        if not host or "/" in host or " " in host or (":" in host and not host.startswith("[")):
            yield Error(
                f"LYRA_ALLOWED_HOSTS: “{host}” is not a host name.",
                hint="Names without scheme, port or path: lyra.example.org,localhost",
                id="lyra_site.E003",
            )
    if "*" in hosts:
        yield Warning(
            "LYRA_ALLOWED_HOSTS=* lets anyone make this server build links to their own host.",
            hint="Name the hosts it answers to.",
            id="lyra_site.W001",
        )


@register(Tags.security)
def open_paths(**_: Any) -> list[CheckMessage]:
    """Upstream's paths ask for no token; that is for a server nobody else can reach."""
    reachable = set(settings.ALLOWED_HOSTS) | {settings.LYRA_HOST}
    if not settings.LYRA_COMPAT_OPEN or reachable <= LOOPBACK:
        return []
    return [
        Warning(
            "LYRA_COMPAT_OPEN=1 on a server that others can reach: anyone there may ask for "
            "predictions.",
            hint="Unset it and give each client a token, or listen on 127.0.0.1 only.",
            id="lyra_site.W002",
        )
    ]


@register(Tags.security)
def addresses_are_clients(**_: Any) -> list[CheckMessage]:
    """With LYRA_HTTPS a proxy stands in front: all requests come from its address."""
    if settings.LYRA_PROXIES < 0:
        return [Error(f"LYRA_PROXIES={settings.LYRA_PROXIES} is negative.", id="lyra_site.E008")]
    if settings.LYRA_PROXIES or not settings.HTTPS:
        return []
    return [
        Warning(
            "LYRA_HTTPS=1 says that a proxy stands in front, and LYRA_PROXIES=0 that none does: "
            "whoever guesses a password locks the account's owner out with them.",
            hint="LYRA_PROXIES=1, once the proxy adds the client's address to X-Forwarded-For.",
            id="lyra_site.W004",
        )
    ]


@register(Tags.database)
def pooling_is_declared(*, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """What `iterator()` reads by a cursor of the session is lost between two transactions, and the
    session that a dump has changed is handed to others. `migrate` runs this check."""
    if DEFAULT_DB_ALIAS not in (databases or ()) or connection.vendor != "postgresql":
        return []
    try:
        undeclared = not database.is_said_to_be_pooled() and database.is_seen_to_be_pooled()
    except DatabaseError:
        return []  # it is away, which is no matter of settings
    if not undeclared:
        return []
    return [
        Error(
            "DATABASE_URL leads to a pooler that gives each transaction another session of "
            "PostgreSQL's (PgBouncer: pool_mode = transaction), and does not say so.",
            hint="Append ?disable_server_side_cursors=True to it; or let the pooler pool sessions.",
            id="lyra_site.E009",
        )
    ]


@register()
def home_is_writable(**_: Any) -> list[CheckMessage]:
    if os.access(settings.LYRA_HOME, os.W_OK | os.X_OK):
        return []
    return [
        Error(
            f"LYRA_HOME={settings.LYRA_HOME} cannot be written to.",
            hint="Database, artifacts and logs go there; give it to the user the server runs as.",
            id="lyra_site.E004",
        )
    ]


@register()
def limits_are_positive(**_: Any) -> list[CheckMessage]:
    return [
        Error(f"{name}={getattr(settings, name)} must be 1 or more.", id="lyra_site.E005")
        for name in LIMITS
        if getattr(settings, name) < 1
    ]


@register()
def names_are_known(**_: Any) -> Iterator[CheckMessage]:
    for name in sorted(os.environ):
        if name.startswith("LYRA_") and name not in settings.LYRA_NAMES | INTERNAL:
            nearest = difflib.get_close_matches(name, settings.LYRA_NAMES, n=1)
            yield Warning(
                f"{name} is set, and is the name of no setting.",
                hint=f"Is {nearest[0]} meant?" if nearest else "All are in lyra_site/settings.py.",
                id="lyra_site.W003",
            )


@register()
def cache_is_redis(**_: Any) -> list[CheckMessage]:
    """Whether it can be reached is no matter of settings: it may be started after us."""
    if not settings.LYRA_CACHE_URL or _is_redis(settings.LYRA_CACHE_URL):
        return []
    return [
        Error(
            "LYRA_CACHE_URL is not redis://host, rediss://host, or the like.",
            hint="redis://[user:password@]host[:port][/number]; unset for one host.",
            id="lyra_site.E007",
        )
    ]


def _is_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises ValueError where it is none
    except ValueError:
        return False
    return bool(
        parts.scheme in {"redis", "rediss"}
        and parts.hostname
        and re.fullmatch(r"(/\d*)?", parts.path)
        and not (parts.query or parts.fragment)
    )


@register()
def port_exists(**_: Any) -> list[CheckMessage]:
    if 1 <= settings.LYRA_PORT <= 65535:
        return []
    return [Error(f"PORT={settings.LYRA_PORT} is not between 1 and 65535.", id="lyra_site.E006")]
