"""How much more? Measure the accepted verdicts' learning curve here, and continue it."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User

from adapters_app import curves
from adapters_app.nli.base_model import BaseModelError
from adapters_app.nli.train import OutOfMemory, TrainingDiverged
from adapters_app.recipe import CannotTrain
from adapters_app.snapshots import SnapshotCorrupt
from adapters_app.storage import StoreUnavailable
from corrections.acting import ActingCommand, Refused

REFUSALS = (
    CannotTrain,
    BaseModelError,
    OutOfMemory,
    SnapshotCorrupt,
    StoreUnavailable,
    TrainingDiverged,
)


class Command(ActingCommand):
    help = (
        "Train siblings on ever larger parts of the accepted verdicts, and say how many more would "
        "reach a target. With 4 sizes it takes about 2½ times as long as a training's siblings."
    )
    permission = "adapters_app.request_training"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--points", type=int, default=curves.POINTS, help="sizes to train at")
        parser.add_argument("--target", type=float, help="accuracy and macro-F1 to reach, e.g. 0.6")

    def act(self, *, by: User, points: int, target: float | None, **_: Any) -> dict[str, Any]:
        try:
            curve = curves.draw(by=by, points=points, target=target, on_point=self._tell)
        except REFUSALS as error:
            raise Refused(str(error)) from error
        for projection in curve.projections.values():
            self.stdout.write(projection["sentence"])
        return {
            "learning_curve": curve.pk,
            "rows": curve.rows,
            "groups": curve.groups,
            "points": curve.points,
            "projections": {
                name: {key: projection[key] for key in ("sentence", "target", "chance", "needed")}
                for name, projection in curve.projections.items()
            },
            "seconds": curve.seconds,
        }

    def _tell(self, verdicts: int, accuracy: float) -> None:
        self.stdout.write(f"{verdicts} verdicts learnt from: accuracy {accuracy:.3f} out of fold")
