"""Registers adapter versions without training: random tensors, real artifacts and evidence."""

from pathlib import Path
from typing import Any

import torch
from django.contrib.auth.models import User

from adapters_app import registry
from adapters_app.models import (
    AdapterVersion,
    CalibrationEvaluation,
    ShadowEvaluation,
    Snapshot,
    TrainingRun,
)
from adapters_app.nli import artifact
from adapters_app.nli.base_model import Base

PAIR = {"premise": "the drug reduces risk", "hypothesis": "the drug is effective"}


def write_adapter(home: Path, base: Base, *, seed: int) -> str:
    """Write an adapter of random tensors under `home`; returns its digest, the directory's name."""
    plan = artifact.Artifact(
        tensors={},
        rank=2,
        alpha=4.0,
        target_modules=base.target_modules,
        head=base.head,
        base_fingerprint=base.fingerprint,
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator).numpy()
        for name, shape in artifact.expected_shapes(plan, base).items()
    }
    filled = artifact.Artifact(**{**plan.__dict__, "tensors": tensors})
    return artifact.write(home, filled, {"seed": seed}, f"# Adapter {seed}\n", base_name=base.name)


def register(
    by: User,
    number: int,
    digest: str,
    base: Base,
    *,
    against: AdapterVersion | None = None,
    verdict: str = "better",
    temperature: float = 2.0,
    metrics: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    snapshot: Snapshot | None = None,
) -> AdapterVersion:
    if snapshot is None:
        snapshot, _ = Snapshot.objects.get_or_create(
            digest="5" * 64,
            defaults={
                "rows": 200,
                "groups": 40,
                "label_counts": {},
                "verdict_counts": {},
                "left_out": {},
            },
        )
    run = TrainingRun.objects.create(
        status="succeeded", requested_by=by, base_name=base.name, snapshot=snapshot
    )
    version = AdapterVersion.objects.create(
        number=number,
        scope="user",
        run=run,
        snapshot=snapshot,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        artifact_digest=digest,
        sibling_digests=[digest] * 5,
        artifact_bytes=1,
        trainable_parameters=1,
        config=config or {},
        metrics=metrics or {},
        created_by=by,
    )
    calibration = CalibrationEvaluation.objects.create(
        version=version,
        number=1,
        base_fingerprint=base.fingerprint,
        method="temperature",
        parameters={"temperature": temperature},
        fitted_rows=200,
        rows=200,
        brier_before=0.5,
        brier_after=0.4,
        ece_before=0.1,
        ece_after=0.05,
        log_loss_before=1.0,
        log_loss_after=0.9,
        bins_before=[],
        bins_after=[],
        created_by=by,
    )
    ShadowEvaluation.objects.create(
        candidate=version,
        run=run,
        incumbent=against,
        incumbent_calibration=against and registry.latest_calibration(against),
        candidate_calibration=calibration,
        snapshot=snapshot,
        rows_fingerprint="6" * 64,
        rows=200,
        groups=40,
        effective_groups=35.0,
        verdict=verdict,
        figures={},
        per_label={},
        flips=[],
        guard={},
    )
    return version


def promote(version: AdapterVersion, by: User) -> None:
    revision = registry.serving().revision
    registry.promote(version, by=by, reason="test", expected_revision=revision)


def compare(
    candidate: AdapterVersion, incumbent: AdapterVersion | None, **fields: Any
) -> ShadowEvaluation:
    """A shadow evaluation against what does not serve (None = the base); else as its first."""
    made = candidate.evaluations.earliest("pk")
    made.pk, made._state.adding = None, True
    made.incumbent, made.incumbent_served = incumbent, False
    made.incumbent_calibration = incumbent and registry.latest_calibration(incumbent)
    for name, value in fields.items():
        setattr(made, name, value)
    made.save()
    return made
