from django.apps import AppConfig
from django.db.models.signals import post_migrate


class AdaptersConfig(AppConfig):
    name = "adapters_app"
    verbose_name = "Adapters"

    def ready(self) -> None:
        import adapters_app.checks  # noqa: F401, PLC0415  registers the system checks
        from adapters_app.tasks import make_schedules  # noqa: PLC0415  needs the app registry

        post_migrate.connect(
            make_schedules, sender=self, dispatch_uid="adapters_app.make_schedules"
        )
