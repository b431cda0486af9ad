"""Put a version in front of users."""

import getpass
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User

from adapters_app import registry
from corrections.acting import ActingCommand, Refused, WrongUsage


class Command(ActingCommand):
    help = "Promote a version: it answers from the next request on."
    permission = "adapters_app.promote_adapter"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("version", help="name or number, e.g. v7")
        parser.add_argument("--reason", required=True, help="kept in the ledger")
        parser.add_argument(
            "--revision", type=int, help="the serving revision you looked at (default: the current)"
        )
        gate = parser.add_mutually_exclusive_group()
        gate.add_argument("--acknowledge", action="store_true", help="accept inconclusive evidence")
        gate.add_argument("--override", action="store_true", help="promote in spite of “worse”")

    def act(
        self,
        *,
        by: User,
        version: str,
        reason: str,
        revision: int | None,
        acknowledge: bool,
        override: bool,
        **_: Any,
    ) -> dict[str, Any]:
        seen = registry.serving().revision if revision is None else revision
        try:
            entry = registry.promote(
                registry.find_version(version),
                by=by,
                reason=reason,
                expected_revision=seen,
                acknowledge=acknowledge,
                override=override,
                os_user=getpass.getuser(),
            )
        except registry.VersionUnknown as error:
            raise WrongUsage(str(error)) from error
        except registry.PromotionRefused as refusal:
            raise Refused(str(refusal)) from refusal
        self.stdout.write(f"{version} serves (revision {entry.revision}).")
        return registry.told(entry)
