"""Every setting of the system, by environment variable, in this one file.

Each `env(...)` line below is the documentation of its variable. Values not of their type are
refused right here, those that cannot be right by the system checks in `adapters_app.checks` and
`lyra_site.checks`: the server does not start on either.
"""

import contextlib
import logging
import math
import os
import re
import secrets
import sys
import tempfile
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured
from whitenoise.compress import Compressor

BASE_DIR = Path(__file__).resolve().parent.parent


class _Environment(environ.Env):
    """Names the variable whose value is not of its type: a misspelt “ture” is not False, and “0.2%”
    is no number. Knows the name of every setting."""

    WORDS_FOR_FALSE = ("false", "off", "n", "no", "0", "")

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get_value(self, var: str, cast: Any = None, **kwargs: Any) -> Any:
        self.names.add(var)
        text = os.environ.get(var)
        words = (*self.BOOLEAN_TRUE_STRINGS, *self.WORDS_FOR_FALSE)
        if cast is bool and text is not None and text.lower().strip() not in words:
            raise ImproperlyConfigured(f"{var}={text!r} is neither true nor false.")
        if cast in (int, float) and text is not None:
            return _number(var, text, cast)
        try:
            return super().get_value(var, cast=cast, **kwargs)
        except ValueError as error:
            raise ImproperlyConfigured(f"{var}={text!r} cannot be used: {error}") from None


def _number(var: str, text: str, kind: type[int] | type[float]) -> int | float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        form = "a whole number, such as 8" if kind is int else "a number, such as 0.02"
        raise ImproperlyConfigured(f"{var}={text!r} is not {form}.")
    return value


env = _Environment()

# --- Where everything the running system writes lives: database, artifacts, logs, secrets ---------
LYRA_HOME = Path(env.str("LYRA_HOME", default=str(BASE_DIR / "var"))).expanduser().resolve()
try:
    LYRA_HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
except OSError as error:
    raise ImproperlyConfigured(
        f"LYRA_HOME={LYRA_HOME} cannot be created: {error.strerror}"
    ) from error
# What people said is nobody else's to read, whichever command writes it.
os.umask(0o077)

# --- Web ------------------------------------------------------------------------------------------
DEBUG = env.bool("LYRA_DEBUG", default=False)
# Where `manage.py run` and lyra_site/gunicorn_conf.py listen.
LYRA_HOST = env.str("LYRA_HOST", default="127.0.0.1")
LYRA_PORT = env.int("PORT", default=8000)
# Web processes; gunicorn reads this variable itself.
WEB_CONCURRENCY = env.int("WEB_CONCURRENCY", default=1)
# Host names this server answers to, comma-separated.
ALLOWED_HOSTS = env.list("LYRA_ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
# Origins for admin forms when behind another host name, e.g. https://lyra.example.org
CSRF_TRUSTED_ORIGINS = env.list("LYRA_TRUSTED_ORIGINS", default=[])
# Behind a TLS-terminating proxy: cookies are Secure, HTTP is redirected, and browsers are told to
# use nothing but HTTPS for this host name (not for others below it) for a year (HSTS).
HTTPS = env.bool("LYRA_HTTPS", default=False)
# How many proxies stand in front, each of which adds to X-Forwarded-For the address it was asked
# from. Wrong passwords are counted by that address; with 0 by the one that connects, which is the
# proxy's if there is one: then whoever guesses locks the account's owner out with them.
LYRA_PROXIES = env.int("LYRA_PROXIES", default=0)


def _secret_key() -> str:
    """LYRA_SECRET_KEY, else a key generated once and kept in LYRA_HOME, readable by its owner."""
    given = env.str("LYRA_SECRET_KEY", default="")
    if given:
        return given
    path = LYRA_HOME / "secret_key"
    try:
        if not path.exists():
            _write_first(path, secrets.token_urlsafe(64))
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(
            f"The secret key of LYRA_HOME={LYRA_HOME} can be neither read nor made: {error}"
        ) from error
    if not key:
        raise ImproperlyConfigured(
            f"{path} is empty. Put the key back from a backup; or delete the file: then a new one "
            "is made, and everybody has to sign in again."
        )
    return key


def _write_first(path: Path, text: str) -> None:
    """Write `path`, whole and on disk, unless another process was first; then its text stays."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".secret_key-") as beside:  # 0600
        beside.write(text)
        beside.flush()
        os.fsync(beside.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(beside.name, path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


SECRET_KEY = _secret_key()

INSTALLED_APPS = [
    "lyra_site.apps.LyraSiteConfig",
    "lyra_site.apps.LyraAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "rest_framework",
    "knox",
    "axes",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_q",
    "corrections.apps.CorrectionsConfig",
    "adapters_app.apps.AdaptersConfig",
    "inference.apps.InferenceConfig",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "lyra_site.middleware.RequestLimits",
    "lyra_site.middleware.Unavailable",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "lyra_site.urls"
WSGI_APPLICATION = "lyra_site.wsgi.application"
APPEND_SLASH = False  # upstream's client follows no redirects; every path is exact
LOGIN_URL = "admin:login"
CSRF_FAILURE_VIEW = "lyra_site.errors.csrf_failure"
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",  # first: lets nobody try who has tried too often
    "lyra_site.authentication.Accounts",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LANGUAGE_CODE = "en"
FORMAT_MODULE_PATH = "lyra_site.formats"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = LYRA_HOME / "static"
# Pages name files by their hashed names: the others would be compressed and kept for nobody.
WHITENOISE_KEEP_ONLY_HASHED_FILES = True
# Source maps, half of all, are asked for by developers' tools only.
WHITENOISE_SKIP_COMPRESS_EXTENSIONS = (*Compressor.SKIP_COMPRESS_EXTENSIONS, "map")
STATICFILES_FINDERS = [
    "django.contrib.staticfiles.finders.AppDirectoriesFinder",
    "adapters_app.finders.PlotlyFinder",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True
# What programs ask for that follow no redirects: probes, and upstream's client.
SECURE_REDIRECT_EXEMPT = [
    r"^(livez|readyz)$",
    r"^(ml/)?(health|warmup|embed|nli(/adapter/(load|unload|status))?)$",
]
if HTTPS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SECURE_HSTS_SECONDS = 31_536_000
# `check --deploy` asks for HSTS of subdomains and for browsers' built-in lists: whoever runs this
# server need not own what else is below its name, and a name leaves those lists after months.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

# --- Database -------------------------------------------------------------------------------------
# DATABASE_URL=postgres://user:password@host/name; default: SQLite in LYRA_HOME.
DATABASES = {"default": env.db("DATABASE_URL", default=f"sqlite:///{LYRA_HOME / 'lyra.sqlite3'}")}
SQLITE_BUSY_TIMEOUT_S = 15
# PostgreSQL: seconds that any process waits for a connection, and a web request for one statement.
# One that finds the database hanging is refused (503) a second later.
LYRA_DATABASE_TIMEOUT_S = env.float("LYRA_DATABASE_TIMEOUT_S", default=10.0)
_database = DATABASES["default"]
if _database.get("ENGINE") not in {
    "django.db.backends.sqlite3",
    "django.db.backends.postgresql",
}:
    raise ImproperlyConfigured(
        "DATABASE_URL is neither sqlite:///path nor postgres://user:password@host/name."
    )
if _database["ENGINE"] == "django.db.backends.sqlite3":
    _database["OPTIONS"] = {
        "timeout": SQLITE_BUSY_TIMEOUT_S,
        # A deferred transaction that turns into a writer fails at once instead of waiting.
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
    }
    # A test with a second process or thread needs a file; a database in memory has neither.
    _database["TEST"] = {"NAME": str(LYRA_HOME / "test.sqlite3")}
else:
    _database["CONN_MAX_AGE"] = 60
    _database["CONN_HEALTH_CHECKS"] = True
    # What DATABASE_URL says of these (?connect_timeout=3) wins.
    _database["OPTIONS"] = {
        "connect_timeout": round(LYRA_DATABASE_TIMEOUT_S),
        # A peer or a network that is gone is noticed within a minute, in a long statement too.
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    } | _database.get("OPTIONS", {})

# --- Storage --------------------------------------------------------------------------------------
# Where artifacts and snapshots go: an absolute path. What is open to a group in a directory that is
# there before (chmod 2770) stays so in all below it. Several hosts: s3://bucket/prefix (needs
# django-storages[s3]).
LYRA_ARTIFACTS = env.str("LYRA_ARTIFACTS", default=str(LYRA_HOME / "artifacts"))
if not re.match(r"/|s3://[^/]", LYRA_ARTIFACTS):
    raise ImproperlyConfigured(
        f"LYRA_ARTIFACTS={LYRA_ARTIFACTS!r} is neither an absolute path nor s3://bucket/prefix."
    )
if LYRA_ARTIFACTS.startswith("s3://"):
    if find_spec("storages") is None or find_spec("boto3") is None:
        raise ImproperlyConfigured(
            f"LYRA_ARTIFACTS={LYRA_ARTIFACTS} needs django-storages: "
            "pip install 'django-storages[s3]'"
        )
    _bucket, _, _prefix = LYRA_ARTIFACTS.removeprefix("s3://").partition("/")
    _artifacts = {
        "BACKEND": "adapters_app.s3.S3ArtifactStorage",
        "OPTIONS": {"bucket_name": _bucket, "location": _prefix, "file_overwrite": False},
    }
else:
    _artifacts = {
        "BACKEND": "adapters_app.storage.DurableFileSystemStorage",
        "OPTIONS": {"location": LYRA_ARTIFACTS, "file_permissions_mode": 0o640},
    }
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
    "artifacts": _artifacts,
}
# Verified local copies of what this host serves; safe to delete.
LYRA_ARTIFACT_CACHE = LYRA_HOME / "artifact-cache"
# What torch answered for bases other than the bundled one; other engines are held to it. Safe to
# delete: made anew when needed.
LYRA_REFERENCES = LYRA_HOME / "references"

# --- Queue: rings a doorbell, see DJANGO_Q2 in the design -----------------------------------------
# Where workers leave signs of life for /readyz and the dashboard. Unset: files in LYRA_HOME, which
# only this host sees (a database cache would lock SQLite twice a second). Several hosts:
# redis://[user:password@]host[:port][/number], rediss:// with TLS; a number for each system, and
# access for nobody else: what is read from it is unpickled.
LYRA_CACHE_URL = env.str("LYRA_CACHE_URL", default="")
if LYRA_CACHE_URL:
    _cache = {"BACKEND": "lyra_site.shared_cache.SharedCache", "LOCATION": LYRA_CACHE_URL}
else:
    _cache = {
        "BACKEND": "lyra_site.file_cache.FileCache",
        "LOCATION": str(LYRA_HOME / "cache"),
    }
CACHES = {"default": _cache}
# Longest a training run may take, in seconds.
LYRA_TRAINING_TIMEOUT_S = env.int("LYRA_TRAINING_TIMEOUT_S", default=6 * 3600)
# A worker that stops renewing its lease for this long has lost its run.
LYRA_LEASE_S = env.int("LYRA_LEASE_S", default=90)
Q_CLUSTER = {
    "name": "lyra",
    "orm": "default",
    "workers": 1,
    "timeout": 300,
    "retry": 1200,
    "max_attempts": 3,
    "ack_failures": True,
    "save_limit": 250,
    "catch_up": False,
    "queue_limit": 10,
    "bulk": 1,
    "poll": 1,
    "label": "Queue",
    "ALT_CLUSTERS": {
        # Started with Q_CLUSTER_NAME=training (not -n, which ignores ALT_CLUSTERS' queue).
        "training": {
            "workers": 1,
            "timeout": LYRA_TRAINING_TIMEOUT_S + 600,
            "retry": 4 * (LYRA_TRAINING_TIMEOUT_S + 600),
            "max_attempts": 1,
            "ack_failures": True,
            "catch_up": False,
            "queue_limit": 1,
            "bulk": 1,
            "poll": 1,
        }
    },
}
# The cluster that trains; the other one runs schedules and shadow bookkeeping.
TRAINING_CLUSTER = "training"

# --- The base model -------------------------------------------------------------------------------
# "minilm-nli" (bundled), or any Hugging Face sequence-classification checkpoint: name or directory.
LYRA_BASE_MODEL = env.str("LYRA_BASE_MODEL", default="minilm-nli")
# Revision of a hub checkpoint: a commit hash pins it.
LYRA_BASE_REVISION = env.str("LYRA_BASE_REVISION", default="")
# The hub is contacted only if this is set; otherwise the checkpoint must be on this machine.
LYRA_BASE_ALLOW_DOWNLOAD = env.bool("LYRA_BASE_ALLOW_DOWNLOAD", default=False)
# auto = CUDA where there is one, else the CPU; or cpu, cuda, cuda:1 …
LYRA_DEVICE = env.str("LYRA_DEVICE", default="auto")
# Who computes the answers: auto = openvino where it runs and knows the base's architecture, else
# torch; or openvino, torch. An engine that fails its check against torch's stored answers is not
# used: torch answers, and the log and /readyz say why.
LYRA_ENGINE = env.str("LYRA_ENGINE", default="auto")
# Threads the engine may use in one process; 0 = it decides.
LYRA_TORCH_THREADS = env.int("LYRA_TORCH_THREADS", default=0)

# --- Serving --------------------------------------------------------------------------------------
LYRA_MAX_PAIRS = env.int("LYRA_MAX_PAIRS", default=256)  # pairs per request
# Threads of each web process: requests it works on at once, and its connections to the database.
LYRA_THREADS = env.int("LYRA_THREADS", default=40)
# Those that no prediction gets: they refuse what is too much (503 with Retry-After) as soon as it
# comes, and answer everything else meanwhile, probes too.
LYRA_SPARE_THREADS = env.int("LYRA_SPARE_THREADS", default=max(1, LYRA_THREADS // 8))
# Pairs that may wait for the model in one process (or texts for its sentence encoder); what comes
# on top is refused likewise. Two full passes unless said otherwise.
LYRA_MAX_WAITING_PAIRS = env.int("LYRA_MAX_WAITING_PAIRS", default=2 * LYRA_MAX_PAIRS)
LYRA_MAX_CHARS = env.int("LYRA_MAX_CHARS", default=10_000)  # characters per text
LYRA_MAX_BODY_BYTES = env.int("LYRA_MAX_BODY_BYTES", default=8 * 1024 * 1024)
DATA_UPLOAD_MAX_MEMORY_SIZE = LYRA_MAX_BODY_BYTES
# A file of verdicts that is sent to be imported: its bytes, and its rows, so that other writers do
# not wait for it too long. `manage.py import_corrections` takes any number.
LYRA_MAX_IMPORT_BYTES = env.int("LYRA_MAX_IMPORT_BYTES", default=64 * 1024 * 1024)
LYRA_MAX_IMPORT_ROWS = env.int("LYRA_MAX_IMPORT_ROWS", default=5_000)
FILE_UPLOAD_HANDLERS = [
    "django.core.files.uploadhandler.MemoryFileUploadHandler",
    "lyra_site.uploads.TemporaryFiles",
]
# Seconds a web thread waits for a client to send its request, and one more for every 16 KiB of it.
LYRA_READ_TIMEOUT_S = env.float("LYRA_READ_TIMEOUT_S", default=30.0)
# Adapter versions kept folded in memory beside the one that serves.
LYRA_RESIDENT_ADAPTERS = env.int("LYRA_RESIDENT_ADAPTERS", default=4)
# Upstream's paths (/nli, /ml/nli, …) without a token. Only for a loopback server: refused when a
# forwarding header (X-Forwarded-For, Forwarded, Via …) shows that a proxy stands in front. A proxy
# on this host that adds no such header cannot be detected: all its clients look like this host.
# Leave this off behind one.
LYRA_COMPAT_OPEN = env.bool("LYRA_COMPAT_OPEN", default=False)

# --- Audit: live answers drawn at random for people to judge, see corrections.audits --------------
# Share of live answers that is drawn, 0 or 1e-6 to 1: what live accuracy is estimated from. Off by
# default, since it stores what callers send. Draw no more than curators answer.
LYRA_AUDIT_SHARE = env.float("LYRA_AUDIT_SHARE", default=0.0)
# Share of those live answers that is drawn besides on which the newest candidate disagrees, 0 to 1;
# needs audits as well, since they stand for the rest. Such verdicts tell most of whether the
# candidate is better, and little of live accuracy, whose interval audits alone narrow. That share
# of all live answers is stored for minutes, while the candidate answers it in the background.
LYRA_DISAGREEMENT_SHARE = env.float("LYRA_DISAGREEMENT_SHARE", default=0.0)
# Days after which the texts of a drawn answer that nobody judged are removed.
LYRA_AUDIT_DAYS = env.int("LYRA_AUDIT_DAYS", default=30)
# Most that wait at a time, for people or first for the candidate; while the queue is full what is
# drawn is counted and not kept.
LYRA_AUDIT_WAITING = env.int("LYRA_AUDIT_WAITING", default=1000)

# --- Training policy ------------------------------------------------------------------------------
LYRA_TRIGGER_MIN_CORRECTED = env.int("LYRA_TRIGGER_MIN_CORRECTED", default=100)
LYRA_TRIGGER_MIN_RATE = env.float("LYRA_TRIGGER_MIN_RATE", default=0.05)
LYRA_TRIGGER_MIN_DAYS = env.float("LYRA_TRIGGER_MIN_DAYS", default=7)
# Start a run by itself when the conditions hold.
LYRA_AUTO_TRAIN = env.bool("LYRA_AUTO_TRAIN", default=False)
# Below this many accepted verdicts nothing is trained, whoever asks.
LYRA_TRAINING_FLOOR = env.int("LYRA_TRAINING_FLOOR", default=60)
# Free disk space a run needs, in MiB.
LYRA_MIN_FREE_MIB = env.int("LYRA_MIN_FREE_MIB", default=1024)

# --- People ---------------------------------------------------------------------------------------
# Who a command acts as without --as; the built-in user cannot sign in.
LYRA_COMMAND_USER = env.str("LYRA_COMMAND_USER", default="system")
# Releasers may not promote a version whose training they requested themselves.
LYRA_FOUR_EYES = env.bool("LYRA_FOUR_EYES", default=False)
# Days a new API token lives unless its maker says otherwise.
LYRA_TOKEN_DAYS = env.int("LYRA_TOKEN_DAYS", default=90)

# So many wrong passwords in a row for one user name from one address, and that name is refused from
# there, whatever the password, until the time is over, be it to sign in or to change the password.
# From elsewhere its owner still signs in, and trying on prolongs nothing. Tokens are too long to be
# guessed, and are not counted.
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
# Of the forms it counts by, axes keeps what was sent: but not what is named here, nor `password`.
AXES_SENSITIVE_PARAMETERS = [
    "username",
    "ip_address",
    "old_password",
    "new_password1",
    "new_password2",
]
AXES_RESET_ON_SUCCESS = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_USERNAME_CALLABLE = "lyra_site.authentication.tried_name"
AXES_CLIENT_IP_CALLABLE = "lyra_site.authentication.client_address"
AXES_LOCKOUT_CALLABLE = "lyra_site.errors.too_many_sign_ins"
AXES_DISABLE_ACCESS_LOG = True  # who was here when is nobody's business
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "lyra_site.authentication.Token",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["lyra_site.permissions.HasPermission"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["lyra_site.parsers.StrictJSONParser"],
    "DEFAULT_FILTER_BACKENDS": ["lyra_site.filters.QueryFilter"],
    "DEFAULT_PAGINATION_CLASS": "lyra_site.pagination.Pages",
    "PAGE_SIZE": 50,
    "DEFAULT_SCHEMA_CLASS": "lyra_site.schema.OperationSchema",
    "EXCEPTION_HANDLER": "lyra_site.errors.handle",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
REST_KNOX = {"AUTO_REFRESH": False, "TOKEN_LIMIT_PER_USER": None}
API_INTRODUCTION = """\
Predict, correct, train, shadow-evaluate, promote, roll back.

**Signing in.** A program sends a token in every request, in the header `Authorization`: the word
`Token`, a space, and the token. Make one [on the page for tokens](/tokens), or by
`manage.py tokens issue USER`; it may do what the roles of its user allow. To try the operations on
this page you need none: it asks as you.

    curl http://127.0.0.1:8000/api/v1/nli \\
         -H "Authorization: Token $token" \\
         -H 'Content-Type: application/json' \\
         -d '{"pairs": [{"premise": "No increase in falls was seen.",
                         "hypothesis": "The drug made falls more common."}]}'

**The loop.** `POST /api/v1/nli` answers; `POST /api/v1/corrections` says where it was wrong, or
right; curators review, and `GET /api/v1/corrections` tells you what they decided;
`POST /api/v1/training-runs` makes a version of what they accepted; its shadow evaluation says
whether it is better; `POST /api/v1/adapters/{version}/promote` lets it answer.

**Refusals** say why in `detail`, or field by field where the body or a filter is at fault; so do
fields and filters that are not known here, which somebody may have misspelt. 503 comes with
`Retry-After` where waiting helps. A body needs a `Content-Length`: one that comes in chunks
(`Transfer-Encoding`) is refused with 411.

**Versions** are numbers in every answer, and null is the base model. Wherever you name one, 7 is as
good as “v7”, except in `adapter`, which takes the latter.

**Lists** come in pages of 50, or of `page_size` up to 200. `next` is the address of the page
behind, and stays right while you change what you read: to review all that waits, follow it to the
end.
"""
SPECTACULAR_SETTINGS = {
    "TITLE": "Lyra's correction loop",
    "DESCRIPTION": API_INTRODUCTION,
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": r"/api/v1",
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
    "COMPONENT_SPLIT_REQUEST": True,
    "COMPONENT_SPLIT_PATCH": False,  # what a PATCH requires is required
    "ENUM_NAME_OVERRIDES": {
        "Label": "corrections.models.Correction.LABEL_CHOICES",
        "CorrectionSampling": "corrections.models.Correction.Sampling",
        "CorrectionStatus": "corrections.models.Correction.Status",
        "CorrectionVerdict": "corrections.models.Correction.Verdict",
        "Lot": "corrections.models.AuditSample.LOTS",
        "RunStatus": "adapters_app.models.TrainingRun.Status",
        "ShadowVerdict": "adapters_app.models.ShadowEvaluation.Verdict",
    },
}

# --- Logs -----------------------------------------------------------------------------------------
LYRA_LOG_LEVEL = env.str("LYRA_LOG_LEVEL", default="INFO").upper()
if LYRA_LOG_LEVEL not in logging.getLevelNamesMapping():
    raise ImproperlyConfigured(f"LYRA_LOG_LEVEL={LYRA_LOG_LEVEL} is no level of Python's logging.")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": LYRA_LOG_LEVEL},
    # lyra_site.authentication tells who was refused.
    "loggers": {"axes": {"level": "ERROR"}},
}

# What this file asked for; `lyra_site.checks` finds misspelt names by it.
LYRA_NAMES = frozenset(env.names)

# True while pytest runs; lets the tests choose cheaper password hashing and nothing else.
if "pytest" in sys.modules:
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
