"""Write corrections to a file that `import_corrections` reads back without loss."""

import contextlib
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import CommandParser
from django.db.models import QuerySet

from corrections import full_disk
from corrections.acting import ActingCommand, WrongUsage
from corrections.exporters import WRITERS, exported
from corrections.files import text_beside
from corrections.models import Correction


class Command(ActingCommand):
    help = "Export corrections as JSON Lines or CSV; import_corrections reads them back."
    permission = "corrections.export_correction"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="where to; replaced if it is there")
        parser.add_argument(
            "--format", choices=sorted(WRITERS), help="default: by the file's name, else jsonl"
        )
        parser.add_argument("--status", choices=Correction.Status.values, default="")
        parser.add_argument("--domain", default="")

    def act(
        self, *, by: User, file: Path, format: str | None, status: str, domain: str, **options: Any
    ) -> dict[str, Any]:
        chosen = format or ("csv" if file.suffix.lower() == ".csv" else "jsonl")
        asked = {"status": status, "domain": domain}
        found = Correction.objects.filter(**{name: said for name, said in asked.items() if said})
        rows = _write(file, chosen, found)
        self.stdout.write(f"{rows} corrections written to {file}")
        return {"file": str(file), "format": chosen, "rows": rows}


def _write(file: Path, chosen: str, found: QuerySet[Correction]) -> int:
    try:
        # Closed here: after the command it would complain of a connection that is closed.
        with contextlib.closing(exported(found)) as rows, text_beside(file) as beside:
            return WRITERS[chosen](rows, beside)
    except OSError as error:
        if full_disk.is_behind(error):
            raise
        raise WrongUsage(f"{file} cannot be written: {error.strerror}.") from error
