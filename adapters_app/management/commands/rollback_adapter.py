"""Restore what served before."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User

from adapters_app import registry
from corrections.acting import ActingCommand, Refused, WrongUsage


class Command(ActingCommand):
    help = "Roll back to the version before, to any that once served, or to the base."
    permission = "adapters_app.promote_adapter"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--to", metavar="VERSION", help="a version, or “base”")
        parser.add_argument("--reason", required=True, help="kept in the ledger")
        parser.add_argument(
            "--revision", type=int, help="the serving revision you looked at (default: the current)"
        )

    def act(
        self, *, by: User, to: str | None, reason: str, revision: int | None, **_: Any
    ) -> dict[str, Any]:
        try:
            entry = registry.rollback(
                by=by,
                reason=reason,
                expected_revision=revision,
                to=to if to in {None, registry.BASE} else registry.find_version(to),
                os_user=registry.os_user(),
            )
        except registry.VersionUnknown as error:
            raise WrongUsage(str(error)) from error
        except registry.PromotionRefused as refusal:
            raise Refused(str(refusal)) from refusal
        told = registry.told(entry)
        self.stdout.write(f"{told['version']} serves (revision {entry.revision}).")
        return told
