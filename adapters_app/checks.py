"""System checks of serving and training settings: what cannot be right is refused at start."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from corrections.models import MIN_PROBABILITY

ENGINES = ("auto", "openvino", "torch")
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def _at_least(minimum: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value >= minimum, f"at least {minimum:g}"


def _between(low: float, high: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: low <= value <= high, f"between {low:g} and {high:g}"


def _chance() -> tuple[Callable[[Any], bool], str]:
    """Recorded with every answer that is drawn, which then stands for 1/p of them."""
    least = MIN_PROBABILITY
    return lambda value: value == 0 or least <= value <= 1, f"0, or between {least:g} and 1"


# id → (setting, what it must be)
LIMITS: dict[str, tuple[str, tuple[Callable[[Any], bool], str]]] = {
    "lyra.E001": ("LYRA_TRAINING_TIMEOUT_S", _at_least(60)),
    "lyra.E002": ("LYRA_TRAINING_FLOOR", _at_least(3)),
    "lyra.E003": ("LYRA_MIN_FREE_MIB", _at_least(0)),
    "lyra.E004": ("LYRA_TRIGGER_MIN_CORRECTED", _at_least(1)),
    "lyra.E005": ("LYRA_TRIGGER_MIN_RATE", _between(0, 1)),
    "lyra.E006": ("LYRA_TRIGGER_MIN_DAYS", _at_least(0)),
    "lyra.E007": ("LYRA_MAX_PAIRS", _at_least(1)),
    "lyra.E008": ("LYRA_MAX_CHARS", _between(1, 1_000_000)),
    "lyra.E009": ("LYRA_MAX_BODY_BYTES", _at_least(1024)),
    "lyra.E010": ("LYRA_RESIDENT_ADAPTERS", _at_least(1)),
    "lyra.E011": ("LYRA_TORCH_THREADS", _at_least(0)),
    "lyra.E017": ("LYRA_AUDIT_SHARE", _chance()),
    "lyra.E018": ("LYRA_AUDIT_DAYS", _between(1, 3650)),
    "lyra.E019": ("LYRA_AUDIT_WAITING", _between(1, 100_000)),
    "lyra.E024": ("LYRA_MAX_WAITING_PAIRS", _at_least(1)),
    "lyra.E022": ("LYRA_DISAGREEMENT_SHARE", _chance()),
    "lyra.E025": ("LYRA_READ_TIMEOUT_S", _between(1, 3600)),
    "lyra.E026": ("LYRA_DATABASE_TIMEOUT_S", _between(2, 3600)),
}


@register()
def check_limits(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """lyra.E001–E011, E017–E019, E022, E024–E026: numbers inside their limits (NaN is outside)."""
    return [
        Error(f"{name}={getattr(settings, name)} must be {words}.", id=check_id)
        for check_id, (name, (holds, words)) in LIMITS.items()
        if not holds(getattr(settings, name))
    ]


@register()
def check_threads(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """lyra.E020: some threads of a process predict, and some are left to refuse."""
    if 1 <= settings.LYRA_SPARE_THREADS < settings.LYRA_THREADS:
        return []
    return [
        Error(
            f"LYRA_SPARE_THREADS={settings.LYRA_SPARE_THREADS} must be between 1 and "
            f"{settings.LYRA_THREADS - 1}, less than LYRA_THREADS={settings.LYRA_THREADS}: some "
            "threads predict, the others say when there is too much to do.",
            id="lyra.E020",
        )
    ]


@register()
def check_disagreements(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """lyra.E023: where only disagreements are drawn, nothing stands for all other answers."""
    if settings.LYRA_AUDIT_SHARE or not settings.LYRA_DISAGREEMENT_SHARE:
        return []
    return [
        Error(
            f"LYRA_DISAGREEMENT_SHARE={settings.LYRA_DISAGREEMENT_SHARE} needs audits beside it: "
            "without LYRA_AUDIT_SHARE no answer on which the models agree is ever drawn, and "
            "nothing could be estimated.",
            id="lyra.E023",
        )
    ]


@register()
def check_lease(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """lyra.E012: a writer that waits for SQLite's lock must not lose its lease meanwhile."""
    least = 4 * settings.SQLITE_BUSY_TIMEOUT_S
    if least <= settings.LYRA_LEASE_S:
        return []
    return [
        Error(
            f"LYRA_LEASE_S={settings.LYRA_LEASE_S} must be at least {least}: four times the time a "
            "write may wait for the database.",
            id="lyra.E012",
        )
    ]


@register()
def check_base(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """lyra.E013, E014: a base is named, and a device torch knows."""
    messages: list[CheckMessage] = []
    if not settings.LYRA_BASE_MODEL.strip():
        messages.append(
            Error(
                "LYRA_BASE_MODEL is empty; name a checkpoint, or leave it out for minilm-nli.",
                id="lyra.E013",
            )
        )
    if not DEVICE.fullmatch(settings.LYRA_DEVICE):
        messages.append(
            Error(
                f"LYRA_DEVICE={settings.LYRA_DEVICE!r} must be auto, cpu, mps, cuda or cuda:N.",
                id="lyra.E014",
            )
        )
    return messages


@register()
def check_engine(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """lyra.E021: an engine there is."""
    if settings.LYRA_ENGINE in ENGINES:
        return []
    return [
        Error(
            f"LYRA_ENGINE={settings.LYRA_ENGINE!r} is not one of {', '.join(ENGINES)}.",
            id="lyra.E021",
        )
    ]


@register()
def check_queue(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """lyra.E015, E016: the queue is in our database and redelivers later than a run may last."""
    queue: dict[str, Any] = settings.Q_CLUSTER
    messages: list[CheckMessage] = []
    if queue.get("orm") != "default":
        messages.append(
            Error(
                "Q_CLUSTER must use the ORM broker on the default database: a run and its place in "
                "the queue are committed together.",
                id="lyra.E015",
            )
        )
    trainer = queue.get("ALT_CLUSTERS", {}).get(settings.TRAINING_CLUSTER)
    if trainer is None or trainer["retry"] <= 3 * trainer["timeout"]:
        messages.append(
            Error(
                f"Q_CLUSTER needs an alternative cluster named {settings.TRAINING_CLUSTER!r} whose "
                "retry is more than three times its timeout.",
                id="lyra.E016",
            )
        )
    return messages
