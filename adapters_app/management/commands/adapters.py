"""List the adapter versions and say which one serves."""

from typing import Any

from django.contrib.auth.models import User
from django.db.models import Prefetch

from adapters_app import registry
from adapters_app.models import AdapterVersion, ShadowEvaluation
from corrections.acting import ActingCommand

EVIDENCE = Prefetch("evaluations", ShadowEvaluation.objects.evidence(), "evidence")


class Command(ActingCommand):
    help = "List adapter versions, newest first; * marks what serves."
    permission = "adapters_app.view_adapterversion"

    def act(self, *, by: User, **_: Any) -> dict[str, Any]:
        serving = registry.serving()
        versions = [
            self._tell(version, serves=version == serving.version)
            for version in AdapterVersion.objects.prefetch_related(EVIDENCE)
        ]
        self.stdout.write(f"serving: {serving}")
        return {
            "serving": serving.version.name if serving.version else registry.BASE,
            "calibration": str(serving.calibration) if serving.calibration else None,
            "revision": serving.revision,
            "versions": versions,
        }

    def _tell(self, version: AdapterVersion, *, serves: bool) -> dict[str, Any]:
        evidence = next(iter(version.evidence), None)  # type: ignore[attr-defined]
        verdict = evidence.verdict if evidence else None
        self.stdout.write(
            f"{'*' if serves else ' '} {version.name:6} {version.artifact_digest[:12]} "
            f"{version.scope:8} {verdict or 'not evaluated':13} {version.created_at:%Y-%m-%d %H:%M}"
        )
        return {
            "version": version.name,
            "digest": version.artifact_digest,
            "scope": version.scope,
            "domain": version.domain,
            "verdict": verdict,
            "created_at": version.created_at.isoformat(),
            "serves": serves,
        }
