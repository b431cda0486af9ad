"""Settings that cannot be right are refused at start, by id."""

import pytest
from django.conf import settings as current
from django.core.checks import run_checks


def ids() -> set[str]:
    return {message.id for message in run_checks()}


def test_the_settings_as_shipped_are_right():
    assert not {check_id for check_id in ids() if check_id.startswith("lyra.E")}


@pytest.mark.parametrize(
    ("name", "value", "check_id"),
    [
        ("LYRA_TRAINING_TIMEOUT_S", 0, "lyra.E001"),
        ("LYRA_TRAINING_FLOOR", 0, "lyra.E002"),
        ("LYRA_MIN_FREE_MIB", -1, "lyra.E003"),
        ("LYRA_TRIGGER_MIN_CORRECTED", 0, "lyra.E004"),
        ("LYRA_TRIGGER_MIN_RATE", 1.5, "lyra.E005"),
        ("LYRA_TRIGGER_MIN_RATE", float("nan"), "lyra.E005"),
        ("LYRA_TRIGGER_MIN_DAYS", -1, "lyra.E006"),
        ("LYRA_MAX_PAIRS", 0, "lyra.E007"),
        ("LYRA_MAX_CHARS", 0, "lyra.E008"),
        ("LYRA_MAX_BODY_BYTES", 1, "lyra.E009"),
        ("LYRA_RESIDENT_ADAPTERS", 0, "lyra.E010"),
        ("LYRA_TORCH_THREADS", -1, "lyra.E011"),
        ("LYRA_AUDIT_SHARE", 1.1, "lyra.E017"),
        ("LYRA_AUDIT_SHARE", float("nan"), "lyra.E017"),
        ("LYRA_AUDIT_SHARE", 1e-7, "lyra.E017"),  # no such verdict could be recorded
        ("LYRA_AUDIT_DAYS", 0, "lyra.E018"),
        ("LYRA_AUDIT_WAITING", 0, "lyra.E019"),
        ("LYRA_DISAGREEMENT_SHARE", 1.1, "lyra.E022"),
        ("LYRA_DISAGREEMENT_SHARE", float("nan"), "lyra.E022"),
        ("LYRA_DISAGREEMENT_SHARE", 0.5, "lyra.E023"),  # no audits beside it
        ("LYRA_LEASE_S", 59, "lyra.E012"),
        ("LYRA_BASE_MODEL", " ", "lyra.E013"),
        ("LYRA_DEVICE", "gpu", "lyra.E014"),
        ("LYRA_MAX_WAITING_PAIRS", 0, "lyra.E024"),
        ("LYRA_SPARE_THREADS", 0, "lyra.E020"),
        ("LYRA_SPARE_THREADS", 40, "lyra.E020"),
        ("LYRA_THREADS", 5, "lyra.E020"),
        ("LYRA_ENGINE", "fast", "lyra.E021"),
        ("TRAINING_CLUSTER", "elsewhere", "lyra.E016"),
    ],
)
def test_a_bad_setting_is_refused(settings, name, value, check_id):
    setattr(settings, name, value)
    assert check_id in ids()


def test_another_broker_is_refused(settings):
    settings.Q_CLUSTER = current.Q_CLUSTER | {"orm": None, "redis": {"host": "localhost"}}
    assert "lyra.E015" in ids()


def test_a_queue_that_redelivers_a_run_while_it_runs_is_refused(settings):
    impatient = current.Q_CLUSTER["ALT_CLUSTERS"]["training"] | {"retry": 600}
    settings.Q_CLUSTER = current.Q_CLUSTER | {"ALT_CLUSTERS": {"training": impatient}}
    assert "lyra.E016" in ids()
