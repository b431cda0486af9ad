"""Back up database, artifacts and snapshots into one file, while the server runs."""

from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import CommandParser

from corrections.acting import ActingCommand, Refused, WrongUsage
from lyra_site import backup

SHOWN = 10  # names of what is left out


class Command(ActingCommand):
    help = "Write database, artifacts and snapshots to one tar file; safe while the server runs."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument(
            "--with-secret-key",
            action="store_true",
            help="include the secret key, so that sessions outlive a restore elsewhere",
        )

    def act(self, *, by: User, file: Path, with_secret_key: bool, **options: Any) -> dict[str, Any]:
        if not file.absolute().parent.is_dir():
            raise WrongUsage(f"There is no directory {file.absolute().parent}.")
        try:
            written = backup.write(file.absolute(), secret_key=with_secret_key)
        except backup.BackupFailed as error:
            raise Refused(str(error)) from error
        members, left_out = written.members, [f"{name!a}" for name in written.left_out]
        size = sum(member.size for member in members.values())
        self.stdout.write(f"Backed up {len(members)} files, {size / 1e6:.1f} MB, to {file}.")
        if left_out:
            self.stderr.write(_not_ours(left_out))
        return {
            "file": str(file),
            "members": len(members),
            "bytes": size,
            "left_out": left_out,
        }


def _not_ours(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"Left out, for Lyra has not stored it in LYRA_ARTIFACTS: {', '.join(names[:SHOWN])}{more}."
    )
