"""Restore what `backup` wrote. Not an acting command: before it there is nobody to act as."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, connection

from adapters_app import liveness
from corrections.acting import Refused
from lyra_site import home
from lyra_site.restore import RestoreRefused, RestoreUnfinished, restore

# What the locks of this home cannot tell.
UNSEEN = (
    "Only processes of this LYRA_HOME and web processes that answer are looked for. Whatever else "
    "uses the database, from other homes or hosts, must be stopped too: workers, trainings, "
    "commands."
)


class Command(BaseCommand):
    help = (
        "Verify a backup, then make this LYRA_HOME the system in it. Refused while any process "
        "of this home is at work, or a web process answers from its database. A database outside "
        f"of this home: {UNSEEN}"
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
            if servers := _servers():
                raise Refused(
                    f"Web processes answer from this database: {', '.join(servers)}. Stop them, "
                    "then restore again. One that was killed is forgotten after "
                    f"{liveness.SERVER_SILENT_AFTER.seconds} seconds."
                )
            try:
                members = restore(file, force=force)
            except (RestoreRefused, RestoreUnfinished) as error:
                raise Refused(str(error)) from error
        self.stdout.write(
            f"Restored {len(members)} verified files from {file}. "
            "Now: manage.py migrate, or manage.py run, which does it."
        )


def _servers() -> list[str]:
    """Web processes that gave a sign of life in the database, wherever they are."""
    try:
        return [server.name for server in liveness.servers()]
    except DatabaseError:
        return []  # empty, damaged, or of other code: nobody of this code serves from it


def _others_may_use_the_database() -> bool:
    """Whether it lies outside this home, where other homes and hosts reach it."""
    if connection.vendor == "postgresql":
        return True
    path = Path(connection.settings_dict["NAME"]).absolute()
    return not path.is_relative_to(settings.LYRA_HOME)
