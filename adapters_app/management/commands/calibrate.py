"""Fit a new calibrator for a version on the accepted verdicts of now."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User

from adapters_app import recipe, registry
from adapters_app.models import CalibrationEvaluation
from adapters_app.nli.artifact import ArtifactCorrupt
from adapters_app.nli.base_model import BaseModelError
from adapters_app.snapshots import SnapshotCorrupt
from adapters_app.storage import ArtifactCorrupt as StoredArtifactCorrupt
from adapters_app.storage import ArtifactMissing, StoreUnavailable
from corrections.acting import ActingCommand, Refused, WrongUsage

REFUSALS = (
    recipe.CannotTrain,
    BaseModelError,
    SnapshotCorrupt,
    ArtifactCorrupt,
    StoredArtifactCorrupt,
    ArtifactMissing,
    StoreUnavailable,
)


class Command(ActingCommand):
    help = (
        "Fit a calibrator for a version, out of fold. It serves after that version's next "
        "promotion, which the version that serves can have too."
    )
    permission = "adapters_app.request_training"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("version", help="name or number, e.g. v7")

    def act(self, *, by: User, version: str, **_: Any) -> dict[str, Any]:
        try:
            fitted = recipe.calibrate_again(registry.find_version(version), by=by)
        except registry.VersionUnknown as error:
            raise WrongUsage(str(error)) from error
        except REFUSALS as error:
            raise Refused(str(error)) from error
        self.stdout.write(
            f"{fitted}: Brier {fitted.brier_before:.4f} → {fitted.brier_after:.4f}, "
            f"ECE {fitted.ece_before:.4f} → {fitted.ece_after:.4f} on {fitted.rows} pairs"
        )
        self.stdout.write(_into_service(fitted))
        return {
            "calibration": str(fitted),
            "method": fitted.method,
            "parameters": fitted.parameters,
            "rows": fitted.rows,
            "brier_before": fitted.brier_before,
            "brier_after": fitted.brier_after,
            "ece_before": fitted.ece_before,
            "ece_after": fitted.ece_after,
        }


def _into_service(fitted: CalibrationEvaluation) -> str:
    name = str(fitted.version)
    promotion = f"manage.py promote_adapter {name} --reason …"
    if registry.serving().version == fitted.version:
        return f"It does not serve yet. To put it into service: {promotion}"
    return f"To put it into service: manage.py shadow_evaluate {name}, then {promotion}"
