"""REST: a file of verdicts is imported as the command imports it, and leaves nothing behind."""

import gzip
import io
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings as site
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from rest_framework.test import APIClient

from corrections import importers
from corrections.models import Correction, PremiseText, SourceGroup
from inference import engine, imports
from inference.batching import Overloaded
from tests.test_corrections_import import NO_NUMBERS, NUMBERS, row, what_is_said, with_number
from tests.test_corrections_lyra import NEW, OLD, Lyra

pytest_plugins = ("tests.serving",)
pytestmark = pytest.mark.django_db
URL = "/api/v1/corrections/import"
RAW = {".jsonl": "application/x-ndjson", ".csv": "text/csv", ".db": "application/vnd.sqlite3"}
Send = Callable[..., Any]


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    yield
    assert list((site.LYRA_HOME / "tmp").glob("*")) == []


def lines(*rows: Any) -> bytes:
    return b"".join(
        (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in rows
    )


def as_(user: User) -> APIClient:
    client = APIClient()
    client.force_authenticate(user)
    return client


def form(user: User, name: str, content: bytes, **choices: Any) -> Any:
    """The answer to a form that holds the file."""
    sent = {"file": SimpleUploadedFile(name, content)}
    return as_(user).post(URL, sent, format="multipart", query_params=choices)


def raw(user: User, name: str, content: bytes, **choices: Any) -> Any:
    """The answer to a body that is the file."""
    kind = RAW[Path(name).suffix]
    return as_(user).generic("POST", URL, content, kind, query_params=choices)


def refused_file(answer: Any) -> str:
    """Why the file as a whole was refused; nothing was recorded."""
    assert answer.status_code == 400, answer.content
    assert list(answer.json()) == ["file"]
    assert not Correction.objects.exists()
    [said] = answer.json()["file"]
    return str(said)


def exported(tmp_path: Path, name: str) -> bytes:
    call_command("export_corrections", str(tmp_path / name), verbosity=0)
    return (tmp_path / name).read_bytes()


# --- Each format, each way ------------------------------------------------------------------------


@pytest.mark.parametrize("send", [form, raw])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_what_was_exported_is_imported_without_loss(
    tmp_path: Path, curator: User, administrator: User, send: Send, name: str
) -> None:
    as_(curator)
    raw(curator, "a.jsonl", lines(*(row(n, domain="law") for n in range(6))), accept=True)
    file = exported(tmp_path, name)
    assert Correction.objects.accepted().count() == 6
    for model in (Correction, PremiseText, SourceGroup):
        model.objects.all().delete()

    answer = send(administrator, name, file)

    assert answer.status_code == 200, answer.content
    assert (answer.json()["created"], answer.json()["written"]) == (6, True)
    assert exported(tmp_path, f"again_{name}") == file
    assert send(administrator, name, file).json()["unchanged"] == 6


@pytest.mark.parametrize("send", [form, raw])
@pytest.mark.parametrize("schema", [NEW, OLD])
def test_a_lyra_database_is_imported(
    tmp_path: Path, curator: User, send: Send, schema: str
) -> None:
    lyra = Lyra(tmp_path / "lyra.db", schema)
    if schema is NEW:
        lyra.edge(1)
        lyra.correction(0, edge=1)
    else:
        values = {
            "original_label": "neutral",
            "original_confidence": 0.7,
            "correct_label": "refutes",
        }
        lyra.insert(
            "nli_corrections", id=1, premise="It rained.", hypothesis="It was dry.", **values
        )
    lyra.database.execute("PRAGMA journal_mode=WAL")  # reading such a file makes others beside it
    lyra.database.close()

    answer = send(curator, "lyra.db", lyra.path.read_bytes())

    assert (answer.status_code, answer.json()["created"]) == (200, 1), answer.content
    assert Correction.objects.get().sampling == "user"


def test_large_files_come_in_as_small_ones_do(curator: User, settings: Any) -> None:
    settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 100
    answer = form(curator, "a.jsonl", lines(*(row(n) for n in range(6))))

    assert (answer.status_code, answer.json()["created"]) == (200, 6)


@pytest.mark.parametrize("partial", [False, True])
def test_an_upload_that_breaks_off_is_not_taken_for_a_shorter_file(
    curator: User, partial: bool
) -> None:
    came = lines(row(0), row(1))
    sent = {"wsgi.input": io.BytesIO(came), "CONTENT_LENGTH": str(len(came) + 100)}

    query = {"partial": partial}
    answer = as_(curator).generic("POST", URL, came, RAW[".jsonl"], query_params=query, **sent)

    assert answer.status_code == 408, answer.content
    assert answer.json() == {"detail": "The request did not arrive as a whole."}
    assert not Correction.objects.exists()


def test_a_form_that_breaks_off_holds_no_file(curator: User) -> None:
    named = 'Content-Disposition: form-data; name="file"; filename="a.jsonl"'
    came = f"--x\r\n{named}\r\n\r\n".encode() + lines(*(row(n) for n in range(600)))
    sent = {"wsgi.input": io.BytesIO(came), "CONTENT_LENGTH": str(len(came) + 100)}

    answer = as_(curator).generic("POST", URL, came, "multipart/form-data; boundary=x", **sent)

    assert refused_file(answer) == "No file was submitted."


def test_the_client_s_name_for_a_file_is_shown_and_never_a_path(curator: User) -> None:
    for name in ("../../etc/passwd", "/etc/shadow", "a\0b.jsonl", "x" * 400, "a." + "y" * 300):
        answer = form(curator, name, b"{\n")
        assert answer.status_code == 409, answer.content
    said = refused_file(form(curator, "../../verdicts.db", b"no database"))
    assert said == "verdicts.db is not an SQLite database."
    assert str(site.LYRA_HOME) not in said


# --- What may be chosen ---------------------------------------------------------------------------


def test_one_bad_row_keeps_all_out_unless_told_otherwise(curator: User) -> None:
    file = lines(row(0), row(1, correct_label="maybe"), row(2))

    answer = raw(curator, "a.jsonl", file)

    assert (answer.status_code, Correction.objects.count()) == (409, 0)
    report = answer.json()
    assert [found["line"] for found in report["refused"]] == [2]
    assert "correct_label is 'maybe'" in report["refused"][0]["reason"]
    assert report["detail"] == (
        "1 of 3 rows is refused, so nothing is imported; mend it or ask for `partial`."
    )
    told = raw(curator, "a.jsonl", file, partial=True)
    assert (told.status_code, told.json()["created"], told.json()["written"]) == (200, 2, True)


def test_no_more_refused_rows_are_listed_than_a_person_reads(curator: User) -> None:
    report = raw(curator, "a.jsonl", lines(*[b"{"] * 450)).json()

    assert (len(report["refused"]), report["more_refused"], report["rows"]) == (200, 250, 450)


def test_a_dry_run_says_what_would_happen_and_writes_nothing(curator: User) -> None:
    report = raw(curator, "a.jsonl", lines(row(0), row(1)), dry_run=True, accept=True).json()

    assert (report["created"], report["accepted"], report["written"]) == (2, 2, False)
    assert report["detail"].startswith("Would import 2 rows of upload.jsonl: 2 new")
    assert not any(model.objects.exists() for model in (Correction, SourceGroup, PremiseText))


def test_how_the_rows_were_chosen_can_be_said(curator: User) -> None:
    report = raw(curator, "a.jsonl", lines(row(0))).json()
    assert (report["by_choice"], "`sampling=complete`" in report["detail"]) == (1, True)

    report = raw(curator, "a.jsonl", lines(row(0), row(1)), sampling="complete").json()

    assert (report["by_choice"], report["created"], report["revised"]) == (0, 1, 1)
    assert set(Correction.objects.values_list("sampling", flat=True)) == {"complete"}


def test_what_serves_predicts_the_rows_without_a_prediction(as_user: Send, on_tiny: Path) -> None:
    bare = {name: row(0)[name] for name in ("id", "premise", "hypothesis", "correct_label")}
    bob = as_user("bob")

    def send(**choices: Any) -> Any:
        body = lines(bare, row(1))
        return bob.generic("POST", URL, body, RAW[".jsonl"], query_params=choices)

    assert "predict the missing ones" in send().json()["refused"][0]["reason"]
    assert send(predict_missing=True, dry_run=True).json()["predicted"] == 1
    assert not Correction.objects.exists()
    assert send(predict_missing=True).json()["predicted"] == 1
    stored = Correction.objects.get(external_id="r0")
    assert (stored.sampling, len(stored.predicted_digest)) == ("complete", 64)


@pytest.mark.parametrize(
    ("choices", "field", "says"),
    [
        ({"dry-run": "true"}, "dry-run", "Did you mean “dry_run”?"),
        ({"dry_run": "perhaps"}, "dry_run", "valid boolean"),
        ({"dry_run": ""}, "dry_run", "valid boolean"),
        ({"dry_run": ["true", "false"]}, "dry_run", "Given twice."),
        ({"sampling": "audit"}, "sampling", "not a valid choice"),
    ],
)
def test_a_choice_that_is_wrong_or_misspelt_imports_nothing(
    curator: User, choices: dict[str, Any], field: str, says: str
) -> None:
    answer = raw(curator, "a.jsonl", lines(row(0)), **choices)

    assert (answer.status_code, list(answer.json())) == (400, [field])
    assert says in answer.json()[field][0]
    assert not Correction.objects.exists()


def test_a_choice_in_the_form_is_refused_and_not_overlooked(curator: User) -> None:
    sent = {"file": SimpleUploadedFile("a.jsonl", lines(row(0))), "dry_run": "true"}

    answer = as_(curator).post(URL, sent, format="multipart")

    assert (answer.status_code, list(answer.json())) == (400, ["dry_run"])
    assert not Correction.objects.exists()


# --- Who may --------------------------------------------------------------------------------------


def test_a_curator_brings_no_review_in_another_s_name(
    tmp_path: Path, curator: User, administrator: User
) -> None:
    raw(administrator, "a.jsonl", lines(row(0)), accept=True)
    file = exported(tmp_path, "a.jsonl")
    Correction.objects.all().delete()
    assert raw(curator, "a.jsonl", file).json()["accepted"] == 0
    found = Correction.objects.get()
    assert (found.status, found.reviewed_by) == ("pending", "")
    Correction.objects.all().delete()
    assert raw(curator, "a.jsonl", file, accept=True).json()["accepted"] == 1
    assert Correction.objects.get().reviewed_by == curator.username


def test_only_an_administrator_says_which_fold_and_revision_a_row_is_of(
    curator: User, administrator: User
) -> None:
    """Whoever chose the fold would choose what models are judged on."""
    file = lines(row(0, page_id="p", group="page:other", fold=3, revision=7))
    chosen = ("revision", "group__key", "group__fold")

    assert raw(curator, "a.jsonl", file).json()["created"] == 1
    assert Correction.objects.values_list(*chosen).get() == (1, "page:p", 0)

    for model in (Correction, PremiseText, SourceGroup):
        model.objects.all().delete()
    assert raw(administrator, "a.jsonl", file).json()["created"] == 1
    assert Correction.objects.values_list(*chosen).get() == (7, "page:other", 3)


def test_a_revision_that_leaves_no_room_for_later_ones_is_refused(administrator: User) -> None:
    answer = raw(administrator, "a.jsonl", lines(row(0, revision=2**31 - 1)))

    assert (answer.status_code, Correction.objects.exists()) == (409, False)
    [refused] = answer.json()["refused"]
    assert refused["reason"] == "revision is 2147483647; it must lie between 1 and 100000."


def test_who_may_import_but_not_review_brings_no_acceptances(tmp_path: Path, curator: User) -> None:
    raw(curator, "a.jsonl", lines(row(0)), accept=True)
    file = exported(tmp_path, "a.jsonl")
    Correction.objects.all().delete()
    clerk = User.objects.create_user("clerk")
    clerk.user_permissions.add(Permission.objects.get(codename="import_correction"))

    refused = raw(clerk, "a.jsonl", file, accept=True)
    assert (refused.status_code, "may import but not accept" in refused.json()["detail"]) == (
        403,
        True,
    )
    assert not Correction.objects.exists()
    assert raw(clerk, "a.jsonl", file).json()["created"] == 1
    assert Correction.objects.get().status == "pending"


@pytest.mark.parametrize("role", ["caller", "trainer", "releaser"])
def test_other_roles_import_nothing(request: pytest.FixtureRequest, role: str) -> None:
    user = request.getfixturevalue(role)

    for send in (form, raw):
        assert send(user, "a.jsonl", lines(row(0))).status_code == 403
    assert not Correction.objects.exists()


def test_a_page_of_another_site_cannot_send_a_file_in_somebody_s_name(curator: User) -> None:
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(curator)
    sent = {"file": SimpleUploadedFile("a.jsonl", lines(row(0)))}

    assert client.post(URL, sent, format="multipart").status_code == 403
    assert not Correction.objects.exists()


# --- Limits ---------------------------------------------------------------------------------------


def test_more_rows_than_a_request_has_time_for_are_for_the_command(
    tmp_path: Path, curator: User, settings: Any
) -> None:
    settings.LYRA_MAX_IMPORT_ROWS = 3
    said = refused_file(form(curator, "a.jsonl", lines(*(row(n) for n in range(4)))))
    assert said == (
        "a.jsonl has more than 3 rows: import it in parts, or with manage.py import_corrections."
    )
    lyra = Lyra(tmp_path / "lyra.db", NEW)
    for number in range(4):
        lyra.correction(number, edge=1)  # of one edge: they are read before it is known
    lyra.database.close()
    assert "more than 3 rows" in refused_file(raw(curator, "a.db", lyra.path.read_bytes()))
    assert raw(curator, "a.jsonl", lines(*(row(n) for n in range(3)))).json()["created"] == 3


def test_a_file_that_is_too_large_is_413(client: Any, curator: User, settings: Any) -> None:
    settings.LYRA_MAX_BODY_BYTES = 100
    assert raw(curator, "a.jsonl", lines(row(0))).status_code == 200
    settings.LYRA_MAX_IMPORT_BYTES = 250
    for send in (form, raw):
        answer = send(curator, "a.jsonl", lines(row(0), row(1)))
        assert answer.status_code == 413
        assert "at most 250 are accepted" in answer.json()["detail"]


def test_the_form_around_a_file_does_not_count(curator: User, settings: Any) -> None:
    content = lines(row(0), row(1))
    for over, status in ((-1, 200), (0, 200), (1, 413)):
        settings.LYRA_MAX_IMPORT_BYTES = len(content) - over
        for send in (form, raw):
            answer = send(curator, "a.jsonl", content, dry_run=True)
            assert answer.status_code == status
    said = form(curator, "a.jsonl", content).json()["detail"]
    assert said == f"The file is {len(content)} bytes; at most {len(content) - 1} are accepted."
    assert not Correction.objects.exists()


def test_a_form_is_not_much_larger_than_its_file(curator: User, settings: Any) -> None:
    settings.LYRA_MAX_IMPORT_BYTES = 250
    sent = {"file": SimpleUploadedFile("a.jsonl", lines(row(0))), "more": "x" * 16 * 1024}
    assert as_(curator).post(URL, sent, format="multipart").status_code == 413


def test_one_file_at_a_time(curator: User) -> None:
    with imports._turn():
        answer = raw(curator, "a.jsonl", lines(row(0)))

    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    assert "Another file is being imported" in answer.json()["detail"]
    assert raw(curator, "a.jsonl", lines(row(0))).status_code == 200


@pytest.mark.parametrize("stage", ["read", "compared", "predicted"])
def test_what_takes_longer_than_a_request_may_is_given_up(
    curator: User, on_tiny: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    bare = {name: row(0)[name] for name in ("premise", "hypothesis", "correct_label")}
    clock = itertools.count()
    looks = {"read": 0, "predicted": 1, "compared": 3}[stage]  # at the clock, before it is late
    monkeypatch.setattr(imports, "PREPARING_S", looks + 0.5)
    monkeypatch.setattr(imports, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    said = refused_file(raw(curator, "a.jsonl", lines(bare), predict_missing=True))

    assert f"rows were {stage}, so nothing was imported; import it in parts" in said


@pytest.mark.parametrize(
    "error", [engine.EngineUnavailable("v3 cannot be loaded."), Overloaded("Too many wait.")]
)
def test_a_model_that_cannot_predict_now_is_503_and_nothing_is_written(
    curator: User, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def answer(adapter: str, pairs: Any) -> None:
        raise error

    monkeypatch.setattr(engine, "answer", answer)
    bare = {name: row(0)[name] for name in ("premise", "hypothesis", "correct_label")}

    answered = raw(curator, "a.jsonl", lines(row(1), bare), predict_missing=True)

    assert (answered.status_code, answered.json()["detail"]) == (503, str(error))
    assert not Correction.objects.exists()


# --- Hostile files --------------------------------------------------------------------------------

TEXT = "premise,hypothesis,correct_label"
HOSTILE: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b"\n", "is empty"),
    ("a.csv", b"\xef\xbb\xbf\r\n\r\n", "is empty"),
    # The same in every process: its header has the time otherwise, and the case another name.
    ("a.jsonl", gzip.compress(b"0" * 10_000, mtime=0), "is compressed: unpack it first"),
    ("a.csv", b"PK\x03\x04" + b"\0" * 100, "is compressed: unpack it first"),
    ("a.db", b"SQLite format 3\0" + b"\xff" * 5000, "cannot be read as an SQLite database"),
    ("a.db", b"SQLite format 3\0", "cannot be read as an SQLite database"),
    ("a.csv", f"{TEXT},c,d,c\n".encode(), "line 1: more than one column c."),
    ("a.csv", f"{TEXT},".encode() + b"c," * 1_000_000, "line 1: the row is longer than 65536"),
    ("a.csv", f"{TEXT},".encode() + b'"c\n",' * 20_000, "the row is longer than 65536 characters"),
    ("a.csv", ",".join([TEXT, *map(str, range(998))]).encode(), "1001 columns; at most 1000 are"),
    ("a.csv", f"{TEXT},\udcff,\udcff".encode("utf-8", "surrogateescape"), r"column \udcff"),
    ("a.csv", f"{TEXT}\n".encode() + b'"' + b"x" * 17_000_000, "line 2: the row is longer than"),
    ("a.csv", f'{TEXT}\na,b,"'.encode() + b"x\n" * 9_000_000, "the row is longer than 16777216"),
    ("a.csv", b"c," * 100, "no column premise, hypothesis, correct_label"),
]


@pytest.mark.parametrize(("name", "content", "says"), HOSTILE, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("send", [form, raw])
def test_a_hostile_file_is_one_clear_refusal(
    curator: User, send: Send, name: str, content: bytes, says: str
) -> None:
    assert says in refused_file(send(curator, name, content))


HOSTILE_ROWS: list[tuple[bytes, str]] = [
    (b'{"premise": "\xff"}', "not UTF-8"),
    (b'{"premise": "a", "premise": "b"}', "'premise' is given twice"),
    (b'{"premise": "a", "x": {"y": 1, "y": 2}}', "'y' is given twice"),
    (lines(row(1, premise="a\0b")).strip(), "premise holds a NUL"),
    (lines(row(1)).strip().replace(b'"r1"', b'"\\ud800"'), "external_id holds bytes or surrogates"),
    (lines(row(1, predicted_confidence=float("nan"))).strip(), "NaN is not a JSON number"),
    (b'{"premise": "' + b"x" * 17_000_000 + b'"}', "The line is longer than"),
    (b"[" * 100_000, "not JSON"),
    (b"\0" * 1000, "not JSON"),
]


@pytest.mark.parametrize(("line", "says"), HOSTILE_ROWS, ids=lambda value: str(value)[:30])
def test_a_hostile_row_is_refused_by_line_and_reason(curator: User, line: bytes, says: str) -> None:
    answer = raw(curator, "a.jsonl", lines(row(0), line))

    assert (answer.status_code, Correction.objects.exists()) == (409, False)
    [refused] = answer.json()["refused"]
    assert refused["line"] == 2
    assert says in refused["reason"]


@pytest.mark.parametrize("number", NO_NUMBERS, ids=lambda number: number[:9])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_beyond_all_bounds_is_refused_by_line_field_and_limit(
    curator: User, name: str, number: str
) -> None:
    answer = raw(curator, "a.jsonl", lines(row(0), with_number(name, number).encode(), row(2)))

    assert (answer.status_code, Correction.objects.exists()) == (409, False)
    [refused] = answer.json()["refused"]
    assert refused["line"] == 2
    assert what_is_said(name, number) in refused["reason"]


ENDLESS = """CREATE VIEW nli_corrections AS
WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)
SELECT x AS rowid, x AS premise, x AS hypothesis, 'neutral' AS predicted_label,
    0.5 AS predicted_confidence, 'neutral' AS correct_label FROM c"""
LARGE_EDGES = "CREATE VIEW edges AS SELECT randomblob(1000000000) AS id FROM kept;"
ENDLESS_EDGES = NEW.replace("TABLE edges (", "TABLE kept (") + LARGE_EDGES
VIRTUAL = """CREATE VIRTUAL TABLE nli_corrections USING fts5(
    premise, hypothesis, predicted_label, predicted_confidence, correct_label)"""


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (ENDLESS, "nli_corrections is not an ordinary table"),
        (ENDLESS.replace("VIEW nli_", "VIEW NLI_"), "nli_corrections is not an ordinary table"),
        (ENDLESS_EDGES, "edges is not an ordinary table"),
        (VIRTUAL, "nli_corrections is not an ordinary table"),
        ("CREATE TABLE things (id INTEGER)", "has no table nli_corrections"),
    ],
)
def test_a_database_runs_nothing_of_its_own(
    tmp_path: Path, curator: User, schema: str, says: str
) -> None:
    Lyra(tmp_path / "a.db", schema).database.close()

    assert says in refused_file(raw(curator, "a.db", (tmp_path / "a.db").read_bytes()))


def test_a_database_is_read_by_our_own_queries_alone(tmp_path: Path) -> None:
    Lyra(
        tmp_path / "a.db", f"{NEW}{ENDLESS.replace('nli_corrections', 'endless')};"
    ).database.close()
    opened = importers._opened(importers._File(tmp_path / "a.db", "a.db", None))

    for query in (
        "SELECT * FROM endless",
        "SELECT randomblob(9)",
        "ATTACH '/etc/passwd' AS other",
        "CREATE TABLE mine (id)",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
    ):
        with pytest.raises(sqlite3.DatabaseError, match=r"prohibited|not authorized"):
            opened.execute(query)
    opened.close()


@pytest.mark.parametrize("called", ["nli_corrections", "NLI_Corrections"])
def test_a_damaged_database_is_no_endless_one(tmp_path: Path, curator: User, called: str) -> None:
    """A page of a table that is named twice in it: its rows would be read twice."""
    lyra = Lyra(tmp_path / "lyra.db", NEW.replace("nli_corrections", called))
    for number in range(28):
        lyra.correction(number, edge=number, premise=f"{number} " + "x" * 900)
    root = lyra.database.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = ?", [called]
    ).fetchone()[0]
    size = lyra.database.execute("PRAGMA page_size").fetchone()[0]
    lyra.database.close()
    content = bytearray(lyra.path.read_bytes())
    page = memoryview(content)[(root - 1) * size :]
    assert page[0] == 5  # an interior page: its cells name its children
    first, second = (int.from_bytes(page[at : at + 2]) for at in (12, 14))
    page[second : second + 4] = page[first : first + 4]
    page.release()

    assert "lyra.db is damaged" in refused_file(form(curator, "lyra.db", bytes(content)))


def test_a_row_of_a_database_is_named_in_what_can_be_said(tmp_path: Path, curator: User) -> None:
    lyra = Lyra(tmp_path / "lyra.db", NEW)
    lyra.correction(0, edge=1, premise=" ")
    lyra.database.execute("UPDATE nli_corrections SET id = CAST(x'61ff62' AS TEXT)")
    lyra.database.commit()
    lyra.database.close()

    [refused] = raw(curator, "a.db", lyra.path.read_bytes()).json()["refused"]

    assert refused["reason"] == r"a\udcffb: premise is blank."


def test_a_body_without_a_file_says_so(curator: User) -> None:
    client = as_(curator)
    for answer in (
        client.post(URL, {}, format="multipart"),
        client.post(URL),
        client.generic("POST", URL, b"", RAW[".csv"]),
        client.post(URL, {"file": "text"}, format="multipart"),
    ):
        assert (answer.status_code, list(answer.json())) == (400, ["file"])
    assert client.post(URL, {"rows": []}, format="json").status_code == 415
    broken = client.generic("POST", URL, b"--x\r\nno form", "multipart/form-data")
    assert broken.status_code == 400


@pytest.mark.parametrize("named", ["filename*=nope''x", "filename*=utf-8''%ff%00", 'filename=""'])
def test_no_way_to_name_a_file_is_a_crash(curator: User, named: str) -> None:
    body = f'--x\r\nContent-Disposition: form-data; name="file"; {named}\r\n\r\n{{\r\n--x--\r\n'

    answer = as_(curator).generic("POST", URL, body, "multipart/form-data; boundary=x")

    assert answer.status_code in {400, 409}


def test_a_file_that_is_kept_on_disk_meanwhile_may_have_any_name(
    curator: User, settings: Any
) -> None:
    settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 0
    answer = form(curator, "a." + "y" * 250, lines(row(0)))
    assert answer.status_code == 200, answer.content
