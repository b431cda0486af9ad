"""Delete stored artifacts that no version names, and snapshots that nothing kept names."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User

from adapters_app import snapshots, storage
from adapters_app.models import TrainingRun
from corrections.acting import ActingCommand, Refused


class Command(ActingCommand):
    help = (
        "Delete what runs that made no version left behind: artifacts, and snapshots that nothing "
        "but failed or cancelled runs names; these then name none. Nothing younger than an hour "
        "goes, and no snapshot of a version, an evaluation, a learning curve or a study."
    )
    permission = "adapters_app.promote_adapter"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only say what would go")

    def act(self, *, by: User, dry_run: bool, **_: Any) -> dict[str, Any]:
        if TrainingRun.objects.filter(status=TrainingRun.Status.RUNNING).exists():
            raise Refused("A run is running and may be about to use what looks unused; try later.")
        try:
            unneeded = snapshots.prune(dry_run=dry_run)
            orphans = storage.prune_orphans(dry_run=dry_run)
        except storage.StoreUnavailable as error:
            raise Refused(str(error)) from error
        for name, runs in unneeded.items():
            self.stdout.write(f"{name}  {_named_by(runs)}")
        for orphan in orphans:
            self.stdout.write(orphan)
        return {"pruned": [*unneeded, *orphans], "snapshots": unneeded, "dry_run": dry_run}


def _named_by(runs: list[int]) -> str:
    if not runs:
        return "named by nothing"
    listed = ", ".join(map(str, runs))
    return f"named only by {'run' if len(runs) == 1 else 'runs'} {listed}, which made no version"
