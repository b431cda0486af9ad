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
        "/admin/corrections/correction/",
        "/admin/corrections/correction/?conflict=yes",
        "/admin/corrections/correction/?quarantined=yes",
    ],
)
def test_what_a_page_counts_comes_out_of_indexes(address: str, administrator: User) -> None:
    asked = _asked(address, administrator)
    counted = [query for query in asked if "COUNT(" in query[0] or "SUM(" in query[0]]

    assert counted
    for query in counted:
        plan = _plan(query)
        assert not [step for step in plan if _reads_all_rows(step)], (query, plan)


def test_what_changed_since_is_found_by_its_index(administrator: User) -> None:
    address = "/api/v1/corrections?updated_after=2026-01-05T10:11:12Z"
    count, page = _asked(address, administrator)

    for query in (count, page):
        plan = _plan(query)
        assert "correction_updated" in str(plan), plan
        assert not [step for step in plan if _reads_all_rows(step)], plan


def _asked(address: str, user: User) -> list[tuple[str, object]]:
    """What opening the address asks of the table."""
    client = Client()
    client.force_login(user)
    asked: list[tuple[str, object]] = []

    def listening(execute: object, sql: str, params: object, *rest: object) -> object:
        asked.append((sql, params))
        return execute(sql, params, *rest)  # type: ignore[operator]

    with connection.execute_wrapper(listening):
        assert client.get(address).status_code == 200
    return [query for query in asked if 'FROM "corrections_correction"' in query[0]]


def _plan(query: tuple[str, object]) -> list[str]:
    sql, params = query
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
        return [row[3] for row in cursor.fetchall()]


def _reads_all_rows(step: str) -> bool:
    """Whether a step goes through the table, or through all rows of one status."""
    scans = step.startswith("SCAN") and "INDEX" not in step
    return scans or step.endswith("USING INDEX correction_queue (status=?)")
