"""The database refuses to rewrite history, whoever writes: ORM, SQL shell, another program.

A line of the ledger is never changed, nor what an adapter version is (its number, run, snapshot,
artifacts, maker); neither is ever deleted. On PostgreSQL that leaves TRUNCATE, which `flush` uses.
SQLite has none: there `flush` deletes all rows, oldest first, so the trigger lets a row go only
while no older one stands. Emptying the table is possible, taking a line out of it is not.

SQLite's triggers go when a later migration makes the table anew; that one has to call
`create_triggers` again. tests/test_registry.py notices.
"""

from django.db import migrations

LEDGER = "adapters_app_promotion"
VERSIONS = "adapters_app_adapterversion"
IDENTITY = (
    "id",
    "number",
    "run_id",
    "snapshot_id",
    "artifact_digest",
    "sibling_digests",
    "created_by_id",
    "created_at",
)


def _changed(different: str) -> str:
    return " OR ".join(f"OLD.{column} {different} NEW.{column}" for column in IDENTITY)


SQLITE = [
    f"CREATE TRIGGER promotion_is_never_changed BEFORE UPDATE ON {LEDGER} "
    "BEGIN SELECT RAISE(ABORT, 'promotions are never changed'); END",
    f"CREATE TRIGGER version_is_never_changed BEFORE UPDATE ON {VERSIONS} "
    f"WHEN {_changed('IS NOT')} "
    "BEGIN SELECT RAISE(ABORT, 'adapter versions are never changed'); END",
    *(
        f"CREATE TRIGGER {name}_is_never_deleted BEFORE DELETE ON {table} "
        f"WHEN OLD.id > (SELECT MIN(id) FROM {table}) "
        f"BEGIN SELECT RAISE(ABORT, '{said} are never deleted'); END"
        for name, table, said in (
            ("promotion", LEDGER, "promotions"),
            ("version", VERSIONS, "adapter versions"),
        )
    ),
]
POSTGRESQL = [
    """
    CREATE FUNCTION adapters_app_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '% on %: rows are never changed or deleted', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    f"CREATE TRIGGER promotion_is_never_changed BEFORE UPDATE OR DELETE ON {LEDGER} "
    "FOR EACH ROW EXECUTE FUNCTION adapters_app_immutable()",
    f"CREATE TRIGGER version_is_never_changed BEFORE UPDATE ON {VERSIONS} FOR EACH ROW "
    f"WHEN ({_changed('IS DISTINCT FROM')}) EXECUTE FUNCTION adapters_app_immutable()",
    f"CREATE TRIGGER version_is_never_deleted BEFORE DELETE ON {VERSIONS} "
    "FOR EACH ROW EXECUTE FUNCTION adapters_app_immutable()",
]
SQLITE_BACK = [
    "DROP TRIGGER promotion_is_never_changed",
    "DROP TRIGGER version_is_never_changed",
    "DROP TRIGGER promotion_is_never_deleted",
    "DROP TRIGGER version_is_never_deleted",
]
POSTGRESQL_BACK = ["DROP FUNCTION adapters_app_immutable CASCADE"]


def create_triggers(apps, schema_editor):
    _execute(schema_editor, sqlite=SQLITE, postgresql=POSTGRESQL)


def drop_triggers(apps, schema_editor):
    _execute(schema_editor, sqlite=SQLITE_BACK, postgresql=POSTGRESQL_BACK)


def _execute(schema_editor, **statements):
    for statement in statements[schema_editor.connection.vendor]:
        schema_editor.execute(statement, params=None)


class Migration(migrations.Migration):
    dependencies = [("adapters_app", "0002_serving_row")]
    operations = [
        migrations.AlterModelOptions(
            name="promotion",
            options={"base_manager_name": "objects", "ordering": ["-id"]},
        ),
        migrations.RunPython(create_triggers, drop_triggers),
    ]
