"""Whether the database has the tables this code needs; nothing here needs the models themselves."""

from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

RUN_MIGRATE = "The database lacks tables or columns of this version. Run manage.py migrate."


def is_behind() -> bool:
    """Whether migrations wait; False where the database cannot even tell."""
    try:
        executor = MigrationExecutor(connection)
    except DatabaseError:
        return False
    return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))
