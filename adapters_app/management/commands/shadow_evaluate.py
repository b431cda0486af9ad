"""Compare a version with what serves or with another, on the accepted verdicts of now."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User

from adapters_app import registry, training
from adapters_app.following import follow
from adapters_app.models import TrainingRun
from corrections.acting import ActingCommand, Refused, WrongUsage


class Command(ActingCommand):
    help = "Shadow-evaluate a version against what serves, another version, or the base."
    permission = "adapters_app.request_training"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("version", help="name or number, e.g. v7")
        parser.add_argument(
            "--against",
            metavar="VERSION",
            help="a version, or “base”, to compare with (default: what serves); a comparison with "
            "what does not serve is no evidence for a promotion",
        )
        parser.add_argument("--queue", action="store_true", help="leave it to a running worker")

    def act(
        self, *, by: User, version: str, against: str | None, queue: bool, **_: Any
    ) -> dict[str, Any]:
        try:
            candidate = registry.find_version(version)
            run = training.request(
                by=by,
                kind=TrainingRun.Kind.SHADOW,
                version=candidate,
                against=against
                if against in {None, registry.BASE}
                else registry.find_version(against),
                enqueue=queue,
            )
        except registry.VersionUnknown as error:
            raise WrongUsage(str(error)) from error
        except training.TrainingRefused as refusal:
            raise Refused(str(refusal)) from refusal
        if queue:
            self.stdout.write(f"Run {run.pk} is queued.")
            return {"run": run.pk, "status": run.status}
        run = follow(run, by=by, stdout=self.stdout)
        evidence = run.evaluations.get()
        self.stdout.write(str(evidence))
        if not evidence.incumbent_served:
            self.stdout.write(evidence.advice[-1])
        return {
            "run": run.pk,
            "version": candidate.name,
            "against": evidence.incumbent.name if evidence.incumbent else registry.BASE,
            "incumbent_served": evidence.incumbent_served,
            "verdict": evidence.verdict,
            "rows": evidence.rows,
            "groups": evidence.groups,
            "needed_pairs": evidence.needed_pairs,
            "figures": evidence.figures,
            "guard": evidence.guard,
            "later": evidence.later,
            "advice": evidence.advice,
        }
