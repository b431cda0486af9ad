"""Databases of earlier releases: their rows are there after `migrate`, and say what they said."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection
from django.db.migrations.executor import MigrationExecutor

from corrections.models import Correction
from tests.conftest import default_database

BEFORE = ("adapters_app", "0009_lora_studies")
AFTER = ("adapters_app", "0011_studies_that_were_cut_short")
WHEN = ("before", "after")


@pytest.fixture
def on_sqlite_file(tmp_path: Path, django_db_blocker: Any) -> Iterator[None]:
    """The default database of this process is an empty SQLite file."""
    url = f"sqlite:///{tmp_path / 'old.sqlite3'}"
    with django_db_blocker.unblock(), default_database(url):
        yield


@pytest.mark.parametrize("database", ["on_sqlite_file", "on_postgresql"])
def test_calibrators_and_studies_of_before_are_what_they_were(
    database: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(database)
    call_command("migrate", verbosity=0)
    call_command("migrate", *BEFORE, verbosity=0)
    apps = MigrationExecutor(connection).loader.project_state([BEFORE]).apps
    person = apps.get_model("auth", "User").objects.create(username="ada")
    figures = dict.fromkeys(
        [f"{figure}_{when}" for figure in ("brier", "ece", "log_loss") for when in WHEN], 0.25
    )
    for number, rows in ((1, 60), (2, 310)):
        apps.get_model("adapters_app", "CalibrationEvaluation").objects.create(
            number=number,
            base_fingerprint="f" * 64,
            method="temperature",
            parameters={"temperature": 1.5},
            rows=rows,
            bins_before=[],
            bins_after=[],
            created_by=person,
            **figures,
        )
    apps.get_model("adapters_app", "Study").objects.create(
        rows=9, groups=3, config={"splits": 5}, seconds=7.5, created_by=person
    )

    call_command("migrate", *AFTER, verbosity=0)
    now = MigrationExecutor(connection).loader.project_state([AFTER]).apps
    (study,) = now.get_model("adapters_app", "Study").objects.all()
    assert (study.finished, study.seconds) == (True, 7.5)  # they were stored at their end
    found = now.get_model("adapters_app", "CalibrationEvaluation").objects.order_by("number")
    assert list(found.values_list("number", "rows", "fitted_rows")) == [(1, 60, 60), (2, 310, 310)]


@pytest.mark.parametrize("database", ["on_sqlite_file", "on_postgresql"])
def test_probabilities_next_to_nothing_of_before_are_raised_to_the_floor(
    database: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(database)
    call_command("migrate", verbosity=0)
    before = ("corrections", "0006_disagreement_samples")
    call_command("migrate", *before, verbosity=0)
    apps = MigrationExecutor(connection).loader.project_state([before]).apps
    corrections = apps.get_model("corrections", "Correction").objects
    group = apps.get_model("corrections", "SourceGroup").objects.create(key="page:1", fold=0)
    for probability in (1e-320, 5e-7, 1e-6, 0.5, None):
        corrections.create(
            premise="Aspirin was given.",
            hypothesis="It was given.",
            predicted_label="neutral",
            predicted_confidence=0.5,
            correct_label="neutral",
            verdict="confirmed",
            sampling="user" if probability is None else "audit",
            sampling_probability=probability,
            group=group,
            corrected_at="2026-01-05T00:00:00Z",
        )

    call_command("migrate", verbosity=0)
    found = Correction.objects.order_by("pk").values_list("sampling_probability", flat=True)
    assert list(found) == [1e-6, 1e-6, 1e-6, 0.5, None]
    with pytest.raises(IntegrityError):
        Correction.objects.filter(sampling_probability=0.5).update(sampling_probability=9e-7)
