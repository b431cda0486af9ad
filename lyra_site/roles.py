"""The roles of the house as Django groups. Made, and given what they lack, after every migrate."""

from typing import Any

from django.apps import apps
from django.contrib.auth.management import create_permissions
from django.contrib.auth.models import Group, Permission
from django.db import DEFAULT_DB_ALIAS
from django.db.models import Q

SEE_RELEASES = (
    "adapters_app.view_adapterversion",
    "adapters_app.view_calibrationevaluation",
    "adapters_app.view_learningcurve",
    "adapters_app.view_promotion",
    "adapters_app.view_serving",
    "adapters_app.view_shadowevaluation",
    "adapters_app.view_snapshot",
    "adapters_app.view_study",
    "adapters_app.view_trainingrun",
)
ROLES: dict[str, tuple[str, ...]] = {
    "caller": ("adapters_app.predict", "corrections.add_correction"),
    "curator": (
        "adapters_app.predict",
        "adapters_app.view_serving",
        "corrections.add_correction",
        "corrections.change_correction",
        "corrections.view_correction",
        "corrections.view_correctionevent",
        "corrections.view_sourcegroup",
        "corrections.review_correction",
        "corrections.import_correction",
        "corrections.export_correction",
    ),
    "trainer": (
        "adapters_app.predict",
        "adapters_app.request_training",
        "adapters_app.cancel_training",
        *SEE_RELEASES,
    ),
    "releaser": (
        "adapters_app.predict",
        "adapters_app.promote_adapter",
        "adapters_app.download_adapter",
        *SEE_RELEASES,
    ),
}

# What an administrator reads where roles are given.
WHAT_THEY_DO = {
    "caller": "asks for predictions, sends corrections and reads what became of them",
    "curator": "reviews, imports and exports corrections, and judges audit samples",
    "trainer": "requests and cancels trainings and shadow evaluations",
    "releaser": "promotes versions, rolls back, and downloads adapters",
}


def make_roles(using: str = DEFAULT_DB_ALIAS, **_: Any) -> None:
    """post_migrate of adapters_app, the last app whose permissions the roles name.

    Adds only: what an administrator gave a role beyond this stays.
    """
    for app in ("corrections", "adapters_app"):
        # Django makes these in a receiver of the same signal, which may come after this one.
        create_permissions(apps.get_app_config(app), verbosity=0, using=using)
    for name, permissions in ROLES.items():
        group, _created = Group.objects.using(using).get_or_create(name=name)
        group.permissions.add(*_permissions(permissions, using))


def _permissions(names: tuple[str, ...], using: str) -> list[Permission]:
    """The permissions by “app.codename”; every one exists, or the roles are wrong."""
    wanted = Q()
    for name in names:
        app, _, codename = name.partition(".")
        wanted |= Q(content_type__app_label=app, codename=codename)
    found = list(Permission.objects.using(using).filter(wanted))
    if len(found) != len(set(names)):
        missing = set(names) - {f"{p.content_type.app_label}.{p.codename}" for p in found}
        raise LookupError(f"roles name permissions that do not exist: {', '.join(sorted(missing))}")
    return found
