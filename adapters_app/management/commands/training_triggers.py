"""Say which conditions of the training policy hold and which do not."""

from dataclasses import asdict
from typing import Any

from django.contrib.auth.models import User

from adapters_app import triggers
from corrections.acting import ActingCommand


class Command(ActingCommand):
    help = "Show the training conditions, with numbers."
    permission = "adapters_app.view_trainingrun"

    def act(self, *, by: User, **_: Any) -> dict[str, Any]:
        found = triggers.conditions()
        for condition in found:
            self.stdout.write(f"{'✓' if condition.holds else '✗'} {condition.sentence}")
        return {
            "should_train": triggers.should_train(found),
            "conditions": [asdict(condition) for condition in found],
        }
