"""The database refuses every change of an adapter version, whatever the column.

Until now it guarded a list of columns, which left out the base, the configuration and the figures.
As 0003 says of its own: SQLite's triggers go when a later migration makes the table anew.
"""

from django.db import migrations

VERSIONS = "adapters_app_adapterversion"
# What migration 0003 guarded; for the way back.
FORMERLY = (
    "id",
    "number",
    "run_id",
    "snapshot_id",
    "artifact_digest",
    "sibling_digests",
    "created_by_id",
    "created_at",
)
REFUSE = {
    "sqlite": "BEGIN SELECT RAISE(ABORT, 'adapter versions are never changed'); END",
    "postgresql": "EXECUTE FUNCTION adapters_app_immutable()",
}
DROP = {
    "sqlite": "DROP TRIGGER version_is_never_changed",
    "postgresql": f"DROP TRIGGER version_is_never_changed ON {VERSIONS}",
}
DIFFERENT = {"sqlite": "IS NOT", "postgresql": "IS DISTINCT FROM"}


def guard_every_column(apps, schema_editor):
    _replace(schema_editor, when="")


def guard_some_columns(apps, schema_editor):
    different = DIFFERENT[schema_editor.connection.vendor]
    changed = " OR ".join(f"OLD.{column} {different} NEW.{column}" for column in FORMERLY)
    _replace(schema_editor, when=f"WHEN ({changed})")


def _replace(schema_editor, *, when):
    vendor = schema_editor.connection.vendor
    schema_editor.execute(DROP[vendor], params=None)
    schema_editor.execute(
        f"CREATE TRIGGER version_is_never_changed BEFORE UPDATE ON {VERSIONS} FOR EACH ROW "
        f"{when} {REFUSE[vendor]}",
        params=None,
    )


class Migration(migrations.Migration):
    dependencies = [("adapters_app", "0004_serving_processes_and_ledger_name")]
    operations = [migrations.RunPython(guard_every_column, guard_some_columns)]
