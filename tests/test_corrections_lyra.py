"""The upstream's database: both generations of its columns, and the traps in its data."""

import json
import sqlite3
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from corrections import importers
from corrections.intake import edit_correction
from corrections.models import Correction

pytestmark = pytest.mark.django_db
NEW = """
CREATE TABLE nli_corrections (id TEXT PRIMARY KEY, edge_id TEXT NOT NULL, task_id TEXT,
    premise TEXT NOT NULL, nli_hypothesis TEXT NOT NULL, predicted_label TEXT NOT NULL,
    predicted_confidence REAL NOT NULL, correct_label TEXT NOT NULL, reason TEXT,
    corrected_at TEXT NOT NULL, trained_adapter_id INTEGER);
CREATE TABLE edges (id TEXT PRIMARY KEY, source_type TEXT, source_id TEXT, target_type TEXT,
    target_id TEXT, relation TEXT, nli_label TEXT, nli_edge_confidence REAL,
    edge_human_corrected BOOLEAN DEFAULT 0, edge_correction_reason TEXT, edge_corrected_at TEXT);
CREATE TABLE fragments (id TEXT PRIMARY KEY, page_id TEXT, text_content TEXT);
CREATE TABLE claims (id TEXT PRIMARY KEY, task_id TEXT, claim_text TEXT);
CREATE TABLE pages (id TEXT PRIMARY KEY, url TEXT, domain TEXT, canonical_id TEXT);
"""
OLD = """
CREATE TABLE nli_corrections (id INTEGER PRIMARY KEY, premise TEXT, hypothesis TEXT,
    original_label TEXT, original_confidence REAL, correct_label TEXT, used_for_training INTEGER);
"""


class Lyra:
    """A database such as the upstream writes."""

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self.database = sqlite3.connect(path)
        self.database.executescript(schema)

    def insert(self, table: str, **values: Any) -> None:
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608
        self.database.execute(statement, list(values.values()))
        self.database.commit()

    def edge(self, number: int, **values: Any) -> None:
        """An edge from a fragment of page number // 10 to a claim of its own."""
        text = f"Station {number} measured {number * 31} units of dust near road {number * 7}."
        self.insert("fragments", id=f"f{number}", page_id=f"pg{number // 10}", text_content=text)
        self.insert("claims", id=f"c{number}", claim_text=f"Dust was seen at {number}.")
        edge = {"source_type": "fragment", "source_id": f"f{number}", "target_type": "claim"}
        edge |= {"target_id": f"c{number}", "nli_label": "supports", "nli_edge_confidence": 0.8}
        self.insert("edges", id=f"e{number}", **edge | values)

    def correction(self, number: int, edge: int, **values: Any) -> None:
        row = {
            "premise": f"Station {edge} measured {edge * 31} units of dust near road {edge * 7}.",
            "nli_hypothesis": f"Dust was seen at {edge}.",
            "predicted_label": "neutral",
            "predicted_confidence": 0.61,
            "correct_label": "supports",
            "corrected_at": f"2026-01-{number + 1:02}T08:00:00+00:00",
        }
        self.insert("nli_corrections", id=f"nlc_{number:012}", edge_id=f"e{edge}", **row | values)

    def imported(self, **options: Any) -> dict[str, Any]:
        out = StringIO()
        call_command("import_corrections", str(self.path), json=True, stdout=out, **options)
        return dict(json.loads(out.getvalue().splitlines()[-1]))


@pytest.fixture
def lyra(tmp_path: Path) -> Iterator[Lyra]:
    made = Lyra(tmp_path / "lyra.db", NEW)
    yield made
    made.database.close()


def test_a_correction_comes_with_its_page_and_as_chosen_by_people(lyra: Lyra) -> None:
    lyra.edge(1)
    lyra.correction(0, edge=1, reason="too cautious")

    lyra.imported()

    row = Correction.objects.get()
    assert (row.predicted_label, row.predicted_confidence) == ("neutral", 0.61)
    assert (row.correct_label, row.verdict, row.reason) == ("supports", "corrected", "too cautious")
    assert (row.page_id, row.group.key) == ("pg0", "page:pg0")
    assert (row.sampling, row.sampling_probability) == ("user", None)
    assert row.corrected_at.isoformat() == "2026-01-01T08:00:00+00:00"
    assert (row.predicted_version, row.predicted_digest) == (None, "")


def test_correcting_an_edge_again_keeps_what_the_model_said_first(lyra: Lyra) -> None:
    lyra.edge(1)
    # Stored out of order: the time decides, not the row.
    lyra.correction(
        5, edge=1, predicted_label="supports", predicted_confidence=1.0, correct_label="refutes"
    )
    lyra.correction(2, edge=1, predicted_label="neutral", correct_label="supports")

    assert lyra.imported()["rows"] == 1

    row = Correction.objects.get()
    assert (row.predicted_label, row.predicted_confidence) == ("neutral", 0.61)
    assert (row.correct_label, row.verdict) == ("refutes", "corrected")


def test_coming_back_to_what_the_model_said_is_a_confirmation(lyra: Lyra) -> None:
    lyra.edge(1)
    lyra.correction(0, edge=1, predicted_label="neutral", correct_label="supports")
    lyra.correction(
        1, edge=1, predicted_label="supports", predicted_confidence=1.0, correct_label="neutral"
    )

    lyra.imported()

    assert Correction.objects.get().verdict == "confirmed"


def test_edges_a_person_looked_at_and_left_alone_are_confirmations(lyra: Lyra) -> None:
    lyra.edge(1, edge_human_corrected=1, edge_corrected_at="2026-01-03T00:00:00Z")
    lyra.edge(2, edge_human_corrected=0)
    lyra.edge(13, edge_human_corrected=1)
    lyra.correction(0, edge=13)

    result = lyra.imported()

    assert (result["confirmed"], result["corrected"]) == (1, 1)
    row = Correction.objects.get(verdict="confirmed")
    assert row.premise == "Station 1 measured 31 units of dust near road 7."
    assert row.hypothesis == "Dust was seen at 1."
    assert (row.predicted_label, row.predicted_confidence) == ("supports", 0.8)
    assert row.group.key == "page:pg0"


def test_importing_again_is_harmless_and_a_later_correction_is_a_revision(lyra: Lyra) -> None:
    lyra.edge(1, edge_human_corrected=1)
    lyra.edge(12)
    lyra.correction(0, edge=12)
    lyra.imported()
    again = lyra.imported()
    lyra.correction(3, edge=1, predicted_label="supports", correct_label="refutes")

    later = lyra.imported()

    assert (again["created"], again["unchanged"]) == (0, 2)
    assert (later["revised"], later["unchanged"]) == (1, 1)
    assert Correction.objects.count() == 2


def test_importing_again_keeps_what_a_curator_added(lyra: Lyra, curator: User) -> None:
    lyra.edge(1)
    lyra.correction(0, edge=1, reason="It says so.")
    lyra.imported()
    row = Correction.objects.get()
    edit_correction(row, by=curator, domain="dust", annotator="Ana", correct_label="neutral")

    assert lyra.imported()["unchanged"] == 1
    row.refresh_from_db()
    assert (row.domain, row.annotator, row.correct_label) == ("dust", "Ana", "neutral")

    lyra.correction(9, edge=1, reason=None, correct_label="supports")
    assert lyra.imported()["revised"] == 1
    row.refresh_from_db()
    assert (row.domain, row.annotator, row.correct_label) == ("dust", "Ana", "supports")
    assert row.reason == ""  # the one on record was for the label before


def test_importing_again_keeps_the_sampling_that_was_said(lyra: Lyra) -> None:
    lyra.edge(1)
    lyra.correction(1, edge=1)
    lyra.imported(sampling="complete")
    lyra.correction(2, edge=1, correct_label="refutes")

    assert lyra.imported()["revised"] == 1
    row = Correction.objects.get()
    assert (row.sampling, row.sampling_probability) == ("complete", 1)


def test_a_blank_premise_is_refused_by_name_and_the_rest_imported_if_told(lyra: Lyra) -> None:
    lyra.edge(1)
    lyra.correction(0, edge=1, premise="  ")
    lyra.correction(1, edge=2)

    with pytest.raises(CommandError, match="1 of 2 rows is refused"):
        lyra.imported()
    result = lyra.imported(partial=True)

    assert result["refused"] == [{"line": 1, "reason": "nlc_000000000000: premise is blank."}]
    assert result["created"] == 1


def test_edges_from_other_sources_and_lost_edges_have_no_page(lyra: Lyra) -> None:
    lyra.edge(1, source_type="claim")
    lyra.correction(0, edge=1)
    lyra.correction(1, edge=99)

    lyra.imported()

    assert set(Correction.objects.values_list("page_id", flat=True)) == {""}
    assert Correction.objects.count() == 2


def test_an_edge_that_is_there_many_times_makes_no_more_of_a_correction(tmp_path: Path) -> None:
    lyra = Lyra(tmp_path / "lyra.db", NEW.replace("id TEXT PRIMARY KEY", "id TEXT"))
    for _ in range(20):
        lyra.edge(1)  # and its fragment
    lyra.correction(0, edge=1)
    lyra.database.close()

    read = importers.read(lyra.path, most_rows=1)  # rows of the database, before they are merged

    [correction] = read.rows
    assert correction.fields["page_id"] == "pg0"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"predicted_confidence": "high"}, "predicted_confidence is 'high'"),
        ({"predicted_confidence": 7.0}, "between 0 and 1"),
        ({"correct_label": "SUPPORTS"}, "correct_label is 'SUPPORTS'"),
        ({"premise": b"\xff\xfe"}, "premise must be text"),
        ({"corrected_at": "last week"}, "corrected_at is 'last week'"),
    ],
)
def test_values_of_any_kind_are_refused_in_words(
    lyra: Lyra, values: dict[str, Any], says: str
) -> None:
    lyra.correction(0, edge=1, **values)

    assert says in lyra.imported(partial=True)["refused"][0]["reason"]


def test_text_that_is_not_utf8_is_refused(lyra: Lyra) -> None:
    lyra.correction(0, edge=1)
    lyra.database.execute("UPDATE nli_corrections SET premise = CAST(x'61ff62' AS TEXT)")
    lyra.database.commit()

    assert "premise holds bytes" in lyra.imported(partial=True)["refused"][0]["reason"]


def test_the_older_generation_of_columns_is_read_too(tmp_path: Path) -> None:
    lyra = Lyra(tmp_path / "old.sqlite3", OLD)
    row = {"original_label": "neutral", "original_confidence": 0.7, "correct_label": "refutes"}
    lyra.insert("nli_corrections", id=1, premise="It rained.", hypothesis="It was dry.", **row)

    assert lyra.imported()["corrected"] == 1
    assert lyra.imported()["unchanged"] == 1

    stored = Correction.objects.get()
    assert (stored.hypothesis, stored.predicted_label) == ("It was dry.", "neutral")
    assert stored.predicted_confidence == 0.7


def test_the_live_database_is_neither_locked_nor_changed(lyra: Lyra) -> None:
    lyra.correction(0, edge=1)
    lyra.database.execute("PRAGMA journal_mode=WAL")
    lyra.database.execute("BEGIN IMMEDIATE")
    before = lyra.path.read_bytes()

    assert lyra.imported()["created"] == 1

    assert lyra.path.read_bytes() == before
    lyra.database.rollback()


def test_another_database_is_refused_in_words(tmp_path: Path) -> None:
    other = Lyra(tmp_path / "other.db", "CREATE TABLE things (id INTEGER);")
    with pytest.raises(CommandError, match="no table nli_corrections"):
        other.imported()

    lacking = Lyra(tmp_path / "lacking.db", "CREATE TABLE nli_corrections (premise TEXT);")
    with pytest.raises(CommandError, match="no column nli_hypothesis or hypothesis"):
        lacking.imported()
