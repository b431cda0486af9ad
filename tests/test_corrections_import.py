"""Importing and exporting files: idempotent, all or nothing, nothing lost, no traceback."""

import csv
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.test import APIClient

from corrections import importers, intake
from corrections.drafts import ParsedRow, Prediction
from corrections.intake import edit_correction, import_corrections, review
from corrections.labels import Label
from corrections.models import (
    AuditSample,
    Correction,
    CorrectionEvent,
    PremiseText,
    SourceGroup,
)

ROOT = Path(__file__).resolve().parent.parent
EXPORT = "/api/v1/corrections/export"
PLACES = ("Oslo", "Lima", "Accra", "Hanoi", "Quito", "Cairo")


def row(number: int, **values: Any) -> dict[str, Any]:
    place = PLACES[number % len(PLACES)]
    return {
        "id": f"r{number}",
        "premise": f"Trial {number} in {place} enrolled {number * 37 + 5} people at site {number}.",
        "hypothesis": f"People in {place} took part.",
        "predicted_label": "neutral",
        "predicted_confidence": 0.5 + number / 1000,
        "correct_label": ["supports", "refutes", "neutral"][number % 3],
        **values,
    }


def jsonl(path: Path, *rows: Any) -> Path:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(*arguments: Any, **options: Any) -> dict[str, Any]:
    """The command's JSON result; a refusal is raised as CommandError."""
    out = StringIO()
    call_command("import_corrections", *map(str, arguments), json=True, stdout=out, **options)
    return dict(json.loads(out.getvalue().splitlines()[-1]))


def refused(*arguments: Any) -> tuple[list[dict[str, Any]], str]:
    """The refused rows and the reason of an import that is refused as a whole."""
    out = StringIO()
    with pytest.raises(CommandError) as error:
        call_command("import_corrections", *map(str, arguments), json=True, stdout=out)
    result = json.loads(out.getvalue().splitlines()[-1])
    assert result["ok"] is False
    assert not Correction.objects.exists()
    return result.get("refused", []), str(error.value)


@pytest.mark.django_db
def test_a_labelled_set_is_imported_as_complete(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", *(row(n) for n in range(6)))

    result = run(file, sampling="complete")

    assert (result["created"], result["corrected"], result["confirmed"]) == (6, 4, 2)
    assert result["by_choice"] == 0
    stored = Correction.objects.get(external_id="r1")
    assert (stored.sampling, stored.sampling_probability) == ("complete", 1.0)
    assert (stored.status, stored.verdict) == ("pending", "corrected")


@pytest.mark.django_db
def test_what_was_reported_about_a_stated_prediction_is_no_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody says that the answers people were content with are in the file, too."""
    result = run(jsonl(tmp_path / "a.jsonl", *(row(n) for n in range(6))))

    assert result["by_choice"] == 6
    assert not Correction.objects.of_known_probability().exists()
    assert "6 are taken for what people chose to report" in capsys.readouterr().err


@pytest.mark.django_db
def test_importing_again_changes_nothing_and_new_content_is_a_revision(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    run(jsonl(file, *(row(n) for n in range(4))), accept=True)

    again = run(file, accept=True)
    changed = run(jsonl(file, row(0, reason="changed"), *(row(n) for n in range(1, 4))))

    assert (again["created"], again["unchanged"], again["accepted"]) == (0, 4, 0)
    assert (changed["revised"], changed["unchanged"]) == (1, 3)
    assert Correction.objects.get(external_id="r0").status == "pending"
    assert Correction.objects.accepted().count() == 3


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_importing_an_unchanged_file_undoes_no_edit_and_accepts_none(
    tmp_path: Path, curator: User, name: str
) -> None:
    file = jsonl(tmp_path / "a.jsonl", row(0, domain="law"), row(1, domain="law"))
    run(file)
    if name != file.name:
        call_command("export_corrections", str(tmp_path / name), stdout=StringIO())
        run(tmp_path / name)
    edited = Correction.objects.get(external_id="r0")
    edit_correction(edited, by=curator, correct_label="neutral", domain="medicine")

    again = run(tmp_path / name, accept=True)

    assert (again["unchanged"], again["revised"], again["accepted"]) == (2, 0, 1)
    edited.refresh_from_db()
    assert (edited.correct_label, edited.domain) == ("neutral", "medicine")
    assert (edited.status, edited.revision) == ("pending", 2)


@pytest.mark.django_db
def test_only_a_column_that_is_there_blanks_a_field(tmp_path: Path) -> None:
    head = "id,premise,hypothesis,predicted_label,predicted_confidence,correct_label"
    said = "a,It rained.,It was wet.,neutral,0.5,supports"
    file = tmp_path / "a.csv"
    file.write_text(f"{head},domain\n{said},weather\n")
    run(file)

    file.write_text(f"{head}\n{said}\n")
    assert run(file)["unchanged"] == 1
    assert Correction.objects.get().domain == "weather"

    file.write_text(f"{head},domain\n{said},\n")
    assert run(file)["revised"] == 1
    assert Correction.objects.get().domain == ""


@pytest.mark.django_db
def test_a_file_that_says_nothing_of_the_sampling_keeps_what_is_on_record(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.jsonl"
    drawn = {"sampling": "audit", "sampling_probability": 0.5}
    run(jsonl(file, row(0, **drawn, predicted_version=3, predicted_digest="d" * 64), row(1)))

    again = run(jsonl(file, row(0, reason="misread"), row(1, reason="misread")))

    assert (again["revised"], again["by_choice"]) == (2, 1)
    assert Correction.objects.get(external_id="r0").sampling_probability == 0.5
    assert Correction.objects.get(external_id="r0").predicted_version == 3
    assert run(file, sampling="complete")["by_choice"] == 0
    assert set(Correction.objects.values_list("sampling", flat=True)) == {"complete"}


@pytest.mark.django_db
def test_a_row_that_changes_what_was_drawn_for_audit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    run(jsonl(file, row(0, sampling="audit", sampling_probability=0.5)))
    sample = AuditSample.objects.create(
        **{name: row(0)[name] for name in ("premise", "hypothesis", "predicted_label")},
        raw_confidence=0.5,
        confidence=0.5,
        probability=0.5,
        drawn_at=timezone.now(),
        state="answered",
        correction=Correction.objects.get(),
    )

    jsonl(file, row(0, premise="Another trial was begun."), row(1))
    with pytest.raises(CommandError, match="1 of 2 rows is refused"):
        run(file)
    mended = run(file, partial=True)
    [said] = mended["refused"]
    assert (said["line"], f"audit sample {sample.pk}" in said["reason"]) == (1, True)
    assert mended["created"] == 1
    assert run(jsonl(file, row(0, correct_label="refutes")))["revised"] == 1
    kept = Correction.objects.get(external_id="r0")
    assert (kept.sampling, kept.sampling_probability) == ("audit", 0.5)


@pytest.mark.django_db
def test_a_labelled_set_may_call_its_labels_label(tmp_path: Path) -> None:
    """As most do; where a row has both names, ours counts."""
    rows = [row(n, label="refutes") for n in range(2)]
    del rows[0]["correct_label"]
    assert run(jsonl(tmp_path / "a.jsonl", *rows))["created"] == 2
    found = Correction.objects.order_by("external_id").values_list("correct_label", flat=True)
    assert list(found) == ["refutes", row(1)["correct_label"]]


@pytest.mark.django_db
def test_rows_without_an_id_do_not_double_either(tmp_path: Path) -> None:
    rows = [row(n) | {"id": None} for n in range(3)]
    file = jsonl(tmp_path / "a.jsonl", *rows, rows[0])

    assert run(file)["created"] == 3
    assert run(file)["unchanged"] == 4
    assert Correction.objects.count() == 3


@pytest.mark.django_db
def test_accepting_leaves_a_persons_rejection_alone(tmp_path: Path, curator: User) -> None:
    file = jsonl(tmp_path / "a.jsonl", row(0), row(1))
    run(file)
    review([Correction.objects.get(external_id="r0").pk], by=curator, status="rejected")

    assert run(file, accept=True)["accepted"] == 1
    assert Correction.objects.get(external_id="r0").status == "rejected"


@pytest.mark.django_db
def test_a_dry_run_says_what_would_happen_and_writes_nothing(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", *(row(n) for n in range(5)))

    result = run(file, dry_run=True)

    assert (result["created"], result["written"]) == (5, False)
    assert not any(m.objects.exists() for m in (Correction, SourceGroup, PremiseText))


@pytest.mark.django_db
def test_one_bad_row_keeps_all_out_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl(tmp_path / "a.jsonl", row(0), row(1, correct_label="maybe"), row(2))

    rows, reason = refused(file)

    assert [found["line"] for found in rows] == [2]
    assert "correct_label is 'maybe'" in rows[0]["reason"]
    assert "1 of 3" in reason
    assert "line 2: correct_label" in capsys.readouterr().err
    assert run(file, partial=True)["created"] == 2


HOSTILE_LINES: list[tuple[Any, str]] = [
    (row(1, premise="a\0b"), "premise holds a NUL"),
    (
        json.dumps(row(1, premise="X")).replace('"X"', '"\\ud800"'),
        "premise holds bytes or surrogat",
    ),
    (row(1, premise="x" * 10_001), "premise has 10001 characters"),
    (row(1, premise="  "), "premise is blank"),
    (row(1, premise=None), "premise is missing"),
    (row(1, hypothesis=["x"]), "hypothesis must be text"),
    (row(1, predicted_confidence=float("nan")), "NaN is not a JSON number"),
    (json.dumps(row(1)).replace("0.501", "1e999"), "predicted_confidence is inf"),
    (row(1, predicted_confidence=True), "predicted_confidence is True; it must be a number"),
    (row(1, predicted_confidence="0.5"), "predicted_confidence is '0.5'; it must be a number"),
    (row(1, predicted_confidence=None), "predicted_confidence are missing"),
    (row(1, corrected_at="2026-02-30T00:00:00"), "corrected_at is '2026-02-30T00:00:00'"),
    (
        row(1, sampling="audit", sampling_probability=1e-320),
        "it must be at least 1e-06 where sampling is audit",
    ),
    (row(0, reason="twice"), "is on line 1 too"),
    ("[1, 2]", "not a JSON object"),
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('{"id": ' + "9" * 5000 + "}", "not JSON"),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("line", "says"), HOSTILE_LINES, ids=lambda value: str(value)[:40])
def test_a_hostile_row_is_refused_by_line_and_reason(tmp_path: Path, line: Any, says: str) -> None:
    rows, _ = refused(jsonl(tmp_path / "a.jsonl", row(0), "", line))

    assert [found["line"] for found in rows] == [3]
    assert says in rows[0]["reason"]


NUMBERS = {
    "predicted_confidence": "between 0 and 1",
    "sampling_probability": "between 0 and 1",
    "predicted_version": "between 1 and 2147483647",
    "fold": "between 0 and 4",
    "revision": "between 1 and 100000",
}
NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400, "-1" + "0" * 400]


def with_number(name: str, number: str) -> str:
    """A line whose field of this name holds what JSON, or Python, writes so."""
    return json.dumps(row(1, **{name: "X"})).replace('"X"', number)


def what_is_said(name: str, number: str) -> str:
    """Why such a line is refused."""
    if number.endswith(("N", "y")):
        return f"{number} is not a JSON number"
    shown = {"1e999": "inf"}.get(number, number[:60])
    return f"{name} is {shown}; it must lie {NUMBERS[name]}."


@pytest.mark.django_db
@pytest.mark.parametrize("number", NO_NUMBERS, ids=lambda number: number[:9])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_beyond_all_bounds_is_refused_by_line_field_and_limit(
    tmp_path: Path, name: str, number: str
) -> None:
    rows, _ = refused(jsonl(tmp_path / "a.jsonl", row(0), with_number(name, number), row(2)))

    assert [found["line"] for found in rows] == [2]
    assert what_is_said(name, number) in rows[0]["reason"]


@pytest.mark.django_db
def test_a_line_that_is_not_utf8_is_refused_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    good = json.dumps(row(0)).encode()
    file.write_bytes(good + b'\n{"premise": "\xff"}\n')

    rows, _ = refused(file)

    assert rows == [{"line": 2, "reason": "The line is not UTF-8 (byte 14)."}]


@pytest.mark.django_db
def test_a_byte_order_mark_and_line_separators_in_text_are_no_obstacle(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    text = "One.\u2028Two.\x85Three."
    line = json.dumps(row(0, premise=text), ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")

    assert run(file)["created"] == 1
    assert Correction.objects.get().premise == text


@pytest.mark.django_db
def test_a_line_beyond_all_measure_is_refused_without_reading_on_inside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importers, "MAX_LINE_BYTES", 1000)
    file = jsonl(tmp_path / "a.jsonl", row(0), row(1, reason="x" * 5000), row(2))

    rows, _ = refused(file)

    assert rows == [{"line": 2, "reason": "The line is longer than 1000 bytes."}]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "content", "says", "status"),
    [
        ("a.jsonl", b"", "is empty", 1),
        ("a.csv", b"\xef\xbb\xbf\r\n", "is empty", 1),
        ("a.db", b"this is not a database at all", "is not an SQLite database", 1),
        ("a.db", b"SQLite format 3\0" + b"\xff" * 5000, "cannot be read as an SQLite", 1),
        ("a.csv", b"premise,reason\r\na,b\r\n", "line 1: no column hypothesis, correct_label", 1),
        (
            "a.csv",
            b"premise,premise,hypothesis,correct_label\r\n",
            "line 1: more than one column premise",
            1,
        ),
        (
            "a.csv",
            b'premise,hypothesis,correct_label\r\na,b,neutral\r\n"a,b,c\r\n',
            "line 3: unexpected end of data",
            1,
        ),
        ("a.jsonl", None, "does not exist", 2),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_refusal(
    tmp_path: Path, name: str, content: bytes | None, says: str, status: int
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(CommandError, match=says) as error:
        run(file)

    assert error.value.returncode == status


@pytest.mark.django_db
def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="is a directory"):
        run(tmp_path)


@pytest.mark.django_db
def test_csv_rows_are_refused_by_the_line_they_start_on(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(
        b"premise,hypothesis,predicted_label,predicted_confidence,correct_label\r\n"
        b'"two\r\nlines",h,neutral,0.5,neutral\r\n'
        b"p,h,neutral,high,neutral\r\n"
        b"\r\n"
        b"p,h,neutral,0.5\r\n"
        b"p\xff,h,neutral,0.5,neutral\r\n"
        b"p\x00,h,neutral,nan,neutral\r\n"
    )

    rows, _ = refused(file)

    assert [found["line"] for found in rows] == [4, 6, 7, 8]
    assert "predicted_confidence is 'high'" in rows[0]["reason"]
    assert "4 cells, the header 5" in rows[1]["reason"]
    assert "premise holds bytes" in rows[2]["reason"]
    assert "NUL" in rows[3]["reason"]
    assert "predicted_confidence is nan" in rows[3]["reason"]


# --- Predicting what carries no prediction --------------------------------------------------------


def unpredicted(*numbers: int) -> list[ParsedRow]:
    return [
        ParsedRow(
            number + 1,
            {
                "external_id": f"u{number}",
                "premise": row(number)["premise"],
                "hypothesis": row(number)["hypothesis"],
                "correct_label": row(number)["correct_label"],
            },
        )
        for number in numbers
    ]


def answer_with(label: Label, version: int, asked: list[Any]) -> intake.Predict:
    def predict(pairs: intake.Pairs) -> list[Prediction]:
        asked.extend(pairs)
        return [Prediction(label, 0.7, version, "d" * 64) for _ in pairs]

    return predict


@pytest.mark.django_db
def test_missing_predictions_make_corrections_or_confirmations(curator: User) -> None:
    report = import_corrections(
        unpredicted(0, 1, 2), by=curator, predict=answer_with(Label.SUPPORTS, 4, [])
    )

    assert (report.predicted, report.corrected, report.confirmed) == (3, 2, 1)
    assert report.by_choice == 0  # the model was asked about every row
    stored = Correction.objects.get(external_id="u1")
    assert stored.sampling == "complete"
    assert (stored.predicted_label, stored.predicted_version) == ("supports", 4)
    assert stored.predicted_digest == "d" * 64


@pytest.mark.django_db
def test_importing_again_after_a_promote_does_not_undo_the_review(curator: User) -> None:
    asked: list[Any] = []
    import_corrections(
        unpredicted(0, 1), by=curator, accept=True, predict=answer_with(Label.SUPPORTS, 4, [])
    )

    report = import_corrections(
        unpredicted(0, 1, 2), by=curator, predict=answer_with(Label.REFUTES, 5, asked)
    )

    assert (report.unchanged, report.created, len(asked)) == (2, 1, 1)
    assert Correction.objects.accepted().count() == 2


@pytest.mark.django_db
def test_no_transaction_is_open_while_the_model_predicts(curator: User) -> None:
    open_blocks: list[int] = []

    def predict(pairs: intake.Pairs) -> list[Prediction]:
        open_blocks.append(len(connection.savepoint_ids))
        return [Prediction(Label.NEUTRAL, 0.5) for _ in pairs]

    import_corrections(unpredicted(*range(3)), by=curator, predict=predict)

    assert open_blocks == [0]


@pytest.mark.django_db
def test_how_many_rows_are_drawn_anew_costs_no_more_questions(curator: User) -> None:
    def asked_of_samples(count: int, confidence: float) -> int:
        rows = [
            ParsedRow(
                number, row(number, predicted_confidence=confidence, external_id=f"r{number}")
            )
            for number in range(count)
        ]
        with CaptureQueriesContext(connection) as asked:
            assert import_corrections(rows, by=curator).written
        return sum("corrections_auditsample" in query["sql"] for query in asked)

    asked_of_samples(12, 0.5)
    assert asked_of_samples(2, 0.6) == asked_of_samples(12, 0.7) == 2  # checking, then writing


# --- Exporting ------------------------------------------------------------------------------------


def varied_rows(curator: User) -> None:
    """Rows of every kind an export must carry."""
    texts = ('He said "no", then\r\nleft;', "  spaced\t", "=1+1", "日本語 🙂 e\u0301", "a\nb\rc")
    report = import_corrections(
        [
            ParsedRow(
                number,
                {
                    **{name: value for name, value in row(number).items() if name != "id"},
                    "external_id": f"v{number}",
                    "premise": text + f" Number {number} has a tale {PLACES[number]} of its own.",
                    "reason": text,
                    "page_id": f"page {number // 2}",
                    "sampling": "audit",
                    "sampling_probability": 0.1 + 0.2,
                    "predicted_confidence": 1 / 3,
                    "predicted_version": 3 if number % 2 else None,
                    "predicted_digest": "ab" * 32,
                    "annotator": "Ana",
                    "domain": "medicine",
                    "corrected_at": "2026-01-05T10:11:12.123456+02:00",
                },
            )
            for number, text in enumerate(texts)
        ],
        by=curator,
    )
    assert report.created == len(texts)
    ids = list(Correction.objects.order_by("pk").values_list("pk", flat=True))
    review(ids[:2], by=curator, status="accepted", note="fine")
    review(ids[2:3], by=curator, status="rejected")
    intake.record_correction(
        by=curator,
        premise="Sent by a program.",
        hypothesis="A program sent it.",
        predicted_label="neutral",
        predicted_confidence=0.9,
        correct_label="supports",
    )


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_export_imports_into_an_empty_system_without_loss(
    tmp_path: Path, curator: User, name: str
) -> None:
    varied_rows(curator)
    first, second = tmp_path / name, tmp_path / f"again_{name}"
    call_command("export_corrections", str(first), stdout=StringIO())
    before = list(
        Correction.objects.order_by("pk").values_list(
            "group__key", "group__fold", "status", "premise"
        )
    )

    assert run(first)["unchanged"] == 6  # into the system it came from: nothing new
    for model in (CorrectionEvent, Correction, PremiseText, SourceGroup):
        model.objects.all().delete()
    assert run(first)["created"] == 6
    call_command("export_corrections", str(second), stdout=StringIO())

    assert second.read_bytes() == first.read_bytes()
    assert before == list(
        Correction.objects.order_by("pk").values_list(
            "group__key", "group__fold", "status", "premise"
        )
    )


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_reviewer_without_an_account_here_keeps_the_name(
    tmp_path: Path, curator: User, name: str
) -> None:
    varied_rows(curator)
    first, second = tmp_path / name, tmp_path / f"again_{name}"
    call_command("export_corrections", str(first), stdout=StringIO())
    first.write_bytes(first.read_bytes().replace(b"curt", b"elsa"))
    Correction.objects.all().delete()

    run(first)
    call_command("export_corrections", str(second), stdout=StringIO())

    assert second.read_bytes() == first.read_bytes()
    restored = Correction.objects.accepted().latest("pk")
    assert (restored.reviewer, restored.reviewed_by) == (None, "elsa")
    review([restored.pk], by=curator, status="pending")
    restored.refresh_from_db()
    assert restored.reviewed_by == ""


@pytest.mark.django_db
def test_an_importer_who_may_not_review_brings_no_acceptances(
    tmp_path: Path, curator: User
) -> None:
    varied_rows(curator)
    file = tmp_path / "a.jsonl"
    call_command("export_corrections", str(file), stdout=StringIO())
    Correction.objects.all().delete()
    clerk = User.objects.create_user("clerk")
    clerk.user_permissions.add(*_permissions("import_correction"))

    run(file, as_user="clerk")

    assert Correction.objects.pending().count() == 6
    with pytest.raises(CommandError, match="not accept"):
        run(file, as_user="clerk", accept=True)


def _permissions(codename: str) -> list[Any]:
    return list(Permission.objects.filter(codename=codename))


@pytest.mark.django_db
def test_what_rest_exports_is_the_file_that_the_command_writes(
    tmp_path: Path, curator: User, caller: User
) -> None:
    varied_rows(curator)
    file, client = tmp_path / "export.jsonl", APIClient()
    client.force_authenticate(curator)
    call_command("export_corrections", str(file), stdout=StringIO())

    whole = client.get(EXPORT)
    accepted = client.get(EXPORT, {"status": "accepted", "updated_after": "2026-01-05T00:00:00Z"})

    assert (whole.status_code, whole["Content-Type"]) == (200, "application/x-ndjson")
    assert whole.streaming
    assert whole.getvalue() == file.read_bytes()
    rows = [json.loads(line) for line in accepted.getvalue().splitlines()]
    assert [row["status"] for row in rows] == ["accepted", "accepted"]
    assert client.get(EXPORT, {"verdict": "accepted"}).status_code == 400
    for unknown in ("stauts", "page_size", "cursor", "format"):
        refused = client.get(EXPORT, {unknown: "csv"})
        assert (refused.status_code, list(refused.json())) == (400, [unknown])
    client.force_authenticate(caller)
    assert client.get(EXPORT).status_code == 403


@pytest.mark.django_db
def test_exports_can_be_narrowed_and_are_written_whole(tmp_path: Path, curator: User) -> None:
    varied_rows(curator)
    file = tmp_path / "a.csv"

    call_command("export_corrections", str(file), status="accepted", stdout=StringIO())

    with file.open(newline="", encoding="utf-8") as opened:
        assert [line["status"] for line in csv.DictReader(opened)] == ["accepted", "accepted"]
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(CommandError, match="cannot be written"):
        call_command("export_corrections", str(tmp_path / "no" / "a.csv"), stdout=StringIO())


# --- At the same time -----------------------------------------------------------------------------


def in_threads(*work: Callable[[], Any]) -> list[BaseException]:
    """Run the pieces of work at once, each on a connection of its own; what they raised."""
    raised: list[BaseException] = []
    barrier = threading.Barrier(len(work))

    def run_one(piece: Callable[[], Any]) -> None:
        try:
            barrier.wait()
            piece()
        except BaseException as error:
            raised.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run_one, args=(piece,)) for piece in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.django_db(transaction=True)
def test_the_same_file_imported_at_once_is_there_once(curator: User) -> None:
    rows = [ParsedRow(n + 1, row(n) | {"external_id": f"r{n}"}) for n in range(200)]

    raised = in_threads(*[lambda: import_corrections(rows, by=curator, accept=True)] * 3)

    assert raised == []
    assert Correction.objects.accepted().count() == 200
    assert Correction.objects.filter(revision=1).count() == 200
    assert CorrectionEvent.objects.count() == 400
    assert len(set(PremiseText.objects.values_list("digest", flat=True))) == 200


@pytest.mark.usefixtures("on_postgresql")
def test_on_postgresql_too_the_same_file_imported_at_once_is_there_once() -> None:
    by = User.objects.create_user("curt")
    rows = [ParsedRow(n + 1, row(n) | {"external_id": f"r{n}"}) for n in range(200)]

    raised = in_threads(*[lambda: import_corrections(rows, by=by, accept=True)] * 3)

    assert raised == []
    assert Correction.objects.accepted().filter(revision=1).count() == 200
    assert CorrectionEvent.objects.count() == 400


@pytest.mark.django_db(transaction=True)
def test_imports_that_predict_at_once_do_not_revise_each_other(curator: User) -> None:
    together = threading.Barrier(2)

    def predicting(confidence: float) -> intake.Predict:
        def predict(pairs: intake.Pairs) -> list[Prediction]:
            together.wait()  # neither has written when both have predicted
            return [Prediction(Label.NEUTRAL, confidence) for _ in pairs]

        return predict

    raised = in_threads(
        *(
            lambda c=c: import_corrections(unpredicted(0, 1), by=curator, predict=predicting(c))
            for c in (0.70001, 0.70002)
        )
    )

    assert raised == []
    assert list(Correction.objects.values_list("revision", flat=True)) == [1, 1]


@pytest.mark.django_db(transaction=True)
def test_near_duplicates_recorded_at_once_share_a_group(curator: User) -> None:
    text = "Of 1,000 travellers surveyed at the northern border in May, most had a valid permit {}."

    def record(number: int) -> None:
        intake.record_correction(
            by=curator,
            premise=text.format(number),
            hypothesis="They had permits.",
            predicted_label="neutral",
            predicted_confidence=0.5,
            correct_label="supports",
        )

    raised = in_threads(*(lambda n=n: record(n) for n in range(6)))

    assert raised == []
    assert SourceGroup.objects.count() == 1
    assert PremiseText.objects.count() == 6


def test_two_processes_importing_one_file_leave_each_row_once(
    tmp_path: Path, home: Path, manage: Any
) -> None:
    file = jsonl(tmp_path / "a.jsonl", *(row(n) for n in range(300)))
    assert manage("migrate", "--verbosity=0").returncode == 0
    command = [sys.executable, "manage.py", "import_corrections", str(file), "--json"]
    running = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"LYRA_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(2)
    ]
    results = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]

    assert [process.returncode for process in running] == [0, 0]
    assert sum(result["created"] for result in results) == 300
    assert sum(result["unchanged"] for result in results) == 300
    assert all(result["revised"] == 0 for result in results)


@pytest.mark.django_db
def test_a_page_named_while_an_import_compares_texts_is_kept(curator: User) -> None:
    known = row(1) | {"external_id": "r1"}
    del known["id"]
    intake.record_correction(by=curator, **known, page_id="p1")

    def in_between(stage: str, done: int, total: int) -> None:
        if stage == "comparing":
            intake.record_correction(by=curator, **known, page_id="p2")

    changed = known | {"premise": "Nobody was asked in that trial, the sites were closed."}
    import_corrections([ParsedRow(1, changed)], by=curator, progress=in_between)

    stored = Correction.objects.get(external_id="r1")
    assert (stored.premise, stored.page_id) == (changed["premise"], "p2")
