"""Restore what `backup` wrote. Not an acting command: before it there is nobody to act as."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import connection

from corrections.acting import Refused
from lyra_site import home
from lyra_site.restore import RestoreRefused, RestoreUnfinished, restore

# What the locks of this home cannot tell.
UNSEEN = (
    "Only processes of this LYRA_HOME were looked for. Whatever else uses this database, from "
    "other homes or hosts, must be stopped too: web servers, workers, trainings."
)


class Command(BaseCommand):
    help = (
        "Verify a backup, then make this LYRA_HOME the system in it. Refused while any process "
        f"of this home is at work. A database outside of it: {UNSEEN}"
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument(
            "--force", action="store_true", help="although this home holds a system already"
        )

    def handle(self, *args: Any, file: Path, force: bool, **options: Any) -> None:
        if _others_may_use_the_database():
            self.stderr.write(UNSEEN)
        with home.alone():
            try:
                members = restore(file, force=force)
            except (RestoreRefused, RestoreUnfinished) as error:
                raise Refused(str(error)) from error
        self.stdout.write(
            f"Restored {len(members)} verified files from {file}. "
            "Now: manage.py migrate, or manage.py run, which does it."
        )


def _others_may_use_the_database() -> bool:
    """Whether it lies outside this home, where other homes and hosts reach it."""
    if connection.vendor == "postgresql":
        return True
    path = Path(connection.settings_dict["NAME"]).absolute()
    return not path.is_relative_to(settings.LYRA_HOME)
