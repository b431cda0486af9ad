"""Versions that were registered and promoted without a training, calibrators and all.

In whatever LYRA_HOME Django has: `home`'s, or one of a server's.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from django.conf import settings

import benchmarks.home  # noqa: F401  Django first

# isort: split
from adapters_app import registry, storage
from adapters_app.models import (
    AdapterVersion,
    CalibrationEvaluation,
    ShadowEvaluation,
    Snapshot,
    TrainingRun,
)
from adapters_app.nli import artifact
from adapters_app.nli.artifact import Artifact
from benchmarks.adapters import known_base, real_sized
from benchmarks.serving import RANK, stored_adapter
from corrections.acting import system_user

# Of a calibrator that nobody judges.
FIGURES = [
    f"{what}_{when}" for what in ("brier", "ece", "log_loss") for when in ("before", "after")
]


def drawn(base_name: str, count: int) -> list[Artifact]:
    """Different adapters of the configured base, as large as trained ones."""
    return real_sized(known_base(base_name, settings.LYRA_REFERENCES), [RANK] * count)


def register(base_name: str, adapters: Sequence[Artifact]) -> list[AdapterVersion]:
    """Versions 1, 2, … of the configured base, with these adapters, and calibrators."""
    snapshot = Snapshot.objects.create(
        digest="0" * 64, rows=0, groups=0, label_counts={}, verdict_counts={}, left_out={}
    )
    by, made = system_user(), []
    for number, adapter in enumerate(adapters, start=1):
        with tempfile.TemporaryDirectory() as directory:
            digest = artifact.write(Path(directory), adapter, {}, "", base_name=base_name)
            storage.put(Path(directory) / digest)
        run = TrainingRun.objects.create(
            status=TrainingRun.Status.SUCCEEDED,
            requested_by=by,
            snapshot=snapshot,
            base_name=base_name,
            base_fingerprint=adapter.base_fingerprint,
        )
        version = AdapterVersion.objects.create(
            number=number,
            run=run,
            snapshot=snapshot,
            scope=run.scope,
            base_name=base_name,
            base_fingerprint=adapter.base_fingerprint,
            artifact_digest=digest,
            sibling_digests=[digest] * 5,
            artifact_bytes=storage.size(digest),
            trainable_parameters=sum(tensor.size for tensor in adapter.tensors.values()),
            config={},
            created_by=by,
        )
        CalibrationEvaluation.objects.create(
            version=version,
            number=1,
            base_fingerprint=adapter.base_fingerprint,
            method=CalibrationEvaluation.Method.TEMPERATURE,
            parameters={"temperature": 1.5},
            fitted_rows=0,
            rows=0,
            **dict.fromkeys(FIGURES, 0.0),
            bins_before=[],
            bins_after=[],
            created_by=by,
        )
        made.append(version)
    return made


def promote(version: AdapterVersion) -> None:
    """By the project's own door, with evidence against what serves."""
    serving = registry.serving()
    ShadowEvaluation.objects.create(
        candidate=version,
        run=version.run,
        incumbent=serving.version,
        incumbent_calibration=serving.calibration,
        candidate_calibration=version.calibrations.get(),
        snapshot=version.snapshot,
        rows_fingerprint="",
        rows=0,
        groups=0,
        effective_groups=0,
        verdict=ShadowEvaluation.Verdict.BETTER,
        figures={},
        per_label={},
        flips=[],
        guard={},
    )
    registry.promote(
        version, by=system_user(), reason="benchmark", expected_revision=serving.revision
    )


def serve_adapted(base_name: str, home: str) -> None:
    """Have a version of the first adapter that serving.py wrote to `home` serve where none did."""
    base = known_base(base_name, settings.LYRA_REFERENCES)
    (version,) = register(base_name, [stored_adapter(Path(home), 0, base)])
    promote(version)
