"""Request a training, and with --wait do it here, to the end of the shadow evaluation."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User

from adapters_app import training
from adapters_app.following import follow
from adapters_app.models import Scope, TrainingRun
from corrections.acting import ActingCommand, Refused, WrongUsage


class Command(ActingCommand):
    help = "Train an adapter from the accepted verdicts."
    permission = "adapters_app.request_training"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="a training setting, e.g. epochs=6 or preset=seed; may be given several times",
        )
        parser.add_argument("--scope", choices=Scope.values, default=Scope.USER)
        parser.add_argument("--domain", default="", help="free text, e.g. medicine")
        parser.add_argument("--reason", default="", help="why, for the run's page")
        parser.add_argument(
            "--wait", action="store_true", help="train here and now; needs no running worker"
        )

    def act(
        self, *, by: User, scope: str, domain: str, reason: str, wait: bool, **options: Any
    ) -> dict[str, Any]:
        try:
            run = training.request(
                by=by,
                scope=scope,
                domain=domain,
                reason=reason,
                config=_settings(options["set"]),
                enqueue=not wait,
            )
        except training.TrainingRefused as refusal:
            raise Refused(str(refusal)) from refusal
        if not wait:
            self.stdout.write(f"Run {run.pk} is queued.")
            return {"run": run.pk, "status": run.status}
        run = follow(run, by=by, stdout=self.stdout)
        return self._result(run)

    def _result(self, run: TrainingRun) -> dict[str, Any]:
        version = run.produced
        evidence = version.evaluations.get(run=run)
        figures = evidence.figures["against_incumbent"] or {}
        calibration = version.calibrations.earliest("number")
        self.stdout.write(f"{version.name}: {evidence.get_verdict_display()}")
        return {
            "run": run.pk,
            "status": run.status,
            "version": version.name,
            "digest": version.artifact_digest,
            "verdict": evidence.verdict,
            "rows": evidence.rows,
            "groups": evidence.groups,
            "accuracy": figures.get("b", {}).get("accuracy"),
            "incumbent_accuracy": figures.get("a", {}).get("accuracy"),
            "guard_fails": evidence.guard["fails"],
            "calibration": {
                "method": calibration.method,
                "rows": calibration.rows,
                "ece_before": calibration.ece_before,
                "ece_after": calibration.ece_after,
            },
        }


def _settings(pairs: list[str]) -> dict[str, str]:
    chosen = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise WrongUsage(f"--set {pair}: write KEY=VALUE.")
        chosen[key.strip()] = value.strip()
    return chosen
