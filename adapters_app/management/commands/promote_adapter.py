"""Put a version in front of users, or a newer calibrator of the one that serves."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User

from adapters_app import registry
from corrections.acting import ActingCommand, Refused, WrongUsage


class Command(ActingCommand):
    help = (
        "Promote a version: it answers from the next request on. Of the version that serves, its "
        "newest calibrator is put into service."
    )
    permission = "adapters_app.promote_adapter"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("version", help="name or number, e.g. v7")
        parser.add_argument("--reason", required=True, help="kept in the ledger")
        parser.add_argument(
            "--revision", type=int, help="the serving revision you looked at (default: the current)"
        )
        parser.add_argument(
            "--evidence", type=int, help="the evaluation you looked at (default: the newest)"
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
        evidence: int | None,
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
                evidence_id=evidence,
                os_user=registry.os_user(),
            )
        except registry.VersionUnknown as error:
            raise WrongUsage(str(error)) from error
        except registry.PromotionRefused as refusal:
            raise Refused(str(refusal)) from refusal
        told = registry.told(entry)
        with_calibrator = f" with {entry.calibration}" if entry.calibration else ""
        self.stdout.write(f"{told['version']} serves{with_calibrator} (revision {entry.revision}).")
        return told
