"""Pages that everybody opens count and sum corrections without reading a row of the table."""

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    "address",
    [
        "/admin/",
        "/api/v1/stats",
        "/api/v1/corrections?updated_after=2026-01-05T10:11:12Z",
        "/admin/corrections/correction/",
        "/admin/corrections/correction/?conflict=yes",
        "/admin/corrections/correction/?quarantined=yes",
    ],
)
def test_what_a_page_counts_comes_out_of_indexes(address: str, administrator: User) -> None:
    client = Client()
    client.force_login(administrator)
    asked: list[tuple[str, object]] = []

    def listening(execute: object, sql: str, params: object, *rest: object) -> object:
        asked.append((sql, params))
        return execute(sql, params, *rest)  # type: ignore[operator]

    with connection.execute_wrapper(listening):
        assert client.get(address).status_code == 200

    counted = [
        (sql, params)
        for sql, params in asked
        if 'FROM "corrections_correction"' in sql and ("COUNT(" in sql or "SUM(" in sql)
    ]
    assert counted
    for sql, params in counted:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
            plan = [row[3] for row in cursor.fetchall()]
        assert not [step for step in plan if _reads_all_rows(step)], (sql, plan)


def _reads_all_rows(step: str) -> bool:
    """Whether a step goes through the table, or through all rows of one status."""
    scans = step.startswith("SCAN") and "INDEX" not in step
    return scans or step.endswith("USING INDEX correction_queue (status=?)")
