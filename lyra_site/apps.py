from django.apps import AppConfig, apps
from django.contrib.admin.apps import AdminConfig
from django.contrib.auth.signals import user_login_failed
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate


class LyraSiteConfig(AppConfig):
    name = "lyra_site"
    verbose_name = "Lyra"

    def ready(self) -> None:
        import lyra_site.checks  # noqa: F401, PLC0415  registers the system checks
        from lyra_site import home  # noqa: PLC0415  reads the settings
        from lyra_site.authentication import log_refused  # noqa: PLC0415  needs the app registry
        from lyra_site.roles import make_roles  # noqa: PLC0415  needs the app registry

        connection_created.connect(home.connected, dispatch_uid="lyra_site.home")
        user_login_failed.connect(log_refused, dispatch_uid="lyra_site.log_refused")
        post_migrate.connect(
            make_roles,
            sender=apps.get_app_config("adapters_app"),
            dispatch_uid="lyra_site.make_roles",
        )


class LyraAdminConfig(AdminConfig):
    default_site = "lyra_site.admin_site.LyraAdminSite"
