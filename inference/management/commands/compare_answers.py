"""Let the newest candidate answer live answers that are held to be compared; the queue calls it."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from inference import disagreements, engine


class Command(BaseCommand):
    help = "Compare drawn live answers with the newest candidate's; disagreements join the queue."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            compared, disagree = disagreements.compare()
        except engine.EngineUnavailable as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Compared {compared} answers, {disagree} of them disagree.")
