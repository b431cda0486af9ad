"""Restore what `backup` wrote. Not an acting command: before it there is nobody to act as."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from corrections.acting import Refused
from lyra_site import backup, home


class Command(BaseCommand):
    help = "Verify a backup and make this LYRA_HOME the system in it; the server must be stopped."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument(
            "--force", action="store_true", help="although this home holds a system already"
        )

    def handle(self, *args: Any, file: Path, force: bool, **options: Any) -> None:
        with home.lock():
            try:
                members = backup.restore(file, force=force)
            except backup.RestoreRefused as error:
                raise Refused(str(error)) from error
        self.stdout.write(
            f"Restored {len(members)} verified files from {file}. "
            "Now: manage.py migrate, or manage.py run, which does it."
        )
