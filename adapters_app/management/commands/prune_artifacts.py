"""Delete stored artifacts and snapshots that no version names."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User

from adapters_app import storage
from adapters_app.models import TrainingRun
from corrections.acting import ActingCommand, Refused


class Command(ActingCommand):
    help = "Delete artifacts and snapshots left behind by runs that did not finish."
    permission = "adapters_app.promote_adapter"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only say what would go")

    def act(self, *, by: User, dry_run: bool, **_: Any) -> dict[str, Any]:
        if TrainingRun.objects.filter(status=TrainingRun.Status.RUNNING).exists():
            raise Refused("A run is running and may be about to use what looks unused; try later.")
        try:
            orphans = storage.prune_orphans(dry_run=dry_run)
        except storage.StoreUnavailable as error:
            raise Refused(str(error)) from error
        for orphan in orphans:
            self.stdout.write(orphan)
        return {"pruned": orphans, "dry_run": dry_run}
