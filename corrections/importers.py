"""Reading verdicts out of files: JSON Lines, CSV, and the upstream project's SQLite database.

Each reader yields one ParsedRow per row, with the values under the names `drafts.check` knows, or
with the reason it could not be read. Nothing here decides whether a row is right.
"""

import csv
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from corrections.drafts import OPTIONAL, SHORT_TEXTS, ParsedRow, utc

SQLITE_MAGIC = b"SQLite format 3\x00"
SQLITE_SUFFIXES = {".db", ".sqlite", ".sqlite3"}
MAX_LINE_BYTES = 16 * 1024 * 1024
# Of a CSV file's header: of each name something is kept, before anybody looks at the time.
MAX_HEADER, MAX_COLUMNS = 64 * 1024, 1_000  # characters, columns
COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
LONGEST_SHOWN = 60  # characters of a name out of a file that are said back

# The names a file may use for a field, ours first. The later ones are the seeds', upstream's and
# those of labelled sets.
NAMES = {
    "external_id": ("external_id", "id"),
    "premise": ("premise",),
    "hypothesis": ("hypothesis", "nli_hypothesis"),
    "predicted_label": ("predicted_label", "original_label"),
    "predicted_confidence": ("predicted_confidence", "original_confidence"),
    "predicted_version": ("predicted_version",),
    "predicted_digest": ("predicted_digest",),
    "correct_label": ("correct_label", "label"),
    "sampling": ("sampling",),
    "sampling_probability": ("sampling_probability",),
    "reason": ("reason",),
    "domain": ("domain",),
    "page_id": ("page_id",),
    "annotator": ("annotator",),
    "corrected_at": ("corrected_at",),
    "group": ("group",),
    "fold": ("fold",),
    "revision": ("revision",),
    "status": ("status",),
    "reviewer": ("reviewer",),
    "reviewed_at": ("reviewed_at",),
    "review_note": ("review_note",),
}
NUMBERS = {
    "predicted_confidence",
    "predicted_version",
    "sampling_probability",
    "fold",
    "revision",
}
REQUIRED = ("premise", "hypothesis", "correct_label")


class FileUnreadable(Exception):
    """The file as a whole cannot be imported; the message says why, and in which line."""


class FileMissing(FileUnreadable):
    """There is no file of that name."""


class TooManyRows(FileUnreadable):
    """More rows than the reader was told to take."""


@dataclass(frozen=True)
class Source:
    """An opened-up file: what it is, and its rows."""

    format: str  # "jsonl" | "csv" | "lyra"
    rows: Iterable[ParsedRow]


@dataclass(frozen=True)
class _File:
    """A file, what people call it, and how much of it whoever asked will take (None: all)."""

    path: Path
    name: str
    most_rows: int | None

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()


def read(path: Path, *, name: str = "", most_rows: int | None = None) -> Source:
    """The rows of a file, whose format is told by its first bytes and its name.

    `name` is what the file was called where it came from, if that is not its path; it is said in
    messages. With `most_rows` the file may be anybody's: it is read no further, and as carefully
    as costs time. Rows are read lazily; FileUnreadable is raised here or while they are.
    """
    file = _File(path, name or str(path), most_rows)
    kind = _format(file)
    readers: dict[str, Callable[[_File], Iterator[ParsedRow]]] = {
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "lyra": _read_lyra,
    }
    return Source(kind, _limited(file, readers[kind](file)))


def _limited(file: _File, rows: Iterable[Any]) -> Iterator[Any]:
    for count, row in enumerate(rows, start=1):
        if file.most_rows is not None and count > file.most_rows:
            raise TooManyRows(f"{file.name} has more than {file.most_rows} rows.")
        yield row


def _format(file: _File) -> str:
    try:
        with file.path.open("rb") as opened:
            start = opened.read(len(SQLITE_MAGIC))
    except FileNotFoundError:
        raise FileMissing(f"{file.name} does not exist.") from None
    except IsADirectoryError:
        raise FileMissing(f"{file.name} is a directory, not a file.") from None
    except OSError as error:
        raise FileUnreadable(f"{file.name} cannot be read: {error.strerror}.") from error
    if start == SQLITE_MAGIC:
        return "lyra"
    if start.startswith(COMPRESSED):
        raise FileUnreadable(f"{file.name} is compressed: unpack it first.")
    if file.suffix in SQLITE_SUFFIXES:
        raise FileUnreadable(f"{file.name} is not an SQLite database.")
    if not start.removeprefix(b"\xef\xbb\xbf").strip():
        _refuse_empty(file)
    return "csv" if file.suffix == ".csv" else "jsonl"


def _refuse_empty(file: _File) -> None:
    with file.path.open("rb") as opened:
        if not any(line.removeprefix(b"\xef\xbb\xbf").strip() for line in _lines(opened)):
            raise FileUnreadable(f"{file.name} is empty.")


def _shown(text: str) -> str:
    """What a file calls something, for a message: printable ASCII, never long."""
    printable = text.encode("ascii", "backslashreplace").decode()
    return " ".join(printable.split())[:LONGEST_SHOWN]


# --- JSON Lines -----------------------------------------------------------------------------------


def _read_jsonl(file: _File) -> Iterator[ParsedRow]:
    with file.path.open("rb") as opened:
        for number, line in enumerate(_lines(opened), start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _json_row(number, line)


def _lines(opened: IO[bytes]) -> Iterator[bytes]:
    """Lines of a file; one that is too long is cut, and found too long by its reader."""
    while line := opened.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = opened.readline(MAX_LINE_BYTES + 1)


def _json_row(number: int, line: bytes) -> ParsedRow:
    if len(line) > MAX_LINE_BYTES:
        return ParsedRow(number, problem=f"The line is longer than {MAX_LINE_BYTES} bytes.")
    try:
        row = json.loads(
            line.decode(), parse_constant=_refuse_constant, object_pairs_hook=named_once
        )
    except UnicodeDecodeError as error:
        return ParsedRow(number, problem=f"The line is not UTF-8 (byte {error.start + 1}).")
    except json.JSONDecodeError as error:
        return ParsedRow(
            number, problem=f"The line is not JSON: {error.msg} (column {error.colno})."
        )
    except (ValueError, RecursionError) as error:
        return ParsedRow(number, problem=f"The line is not JSON that can be read: {error}.")
    if not isinstance(row, dict):
        return ParsedRow(number, problem="The line is not a JSON object.")
    return ParsedRow(number, _known_fields(row))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where it gives a name twice: the last would count, unsaid."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice[:LONGEST_SHOWN]!a} is given twice")
    return found


def _known_fields(row: dict[str, Any]) -> dict[str, Any]:
    fields = {}
    for name, aliases in NAMES.items():
        found = next((alias for alias in aliases if row.get(alias) is not None), None)
        if found:
            fields[name] = row[found]
    for name in ("external_id", "page_id"):
        if isinstance(fields.get(name), int) and not isinstance(fields[name], bool):
            fields[name] = str(fields[name])
    return fields


# --- CSV ------------------------------------------------------------------------------------------


def _read_csv(file: _File) -> Iterator[ParsedRow]:
    csv.field_size_limit(MAX_LINE_BYTES)
    # Bytes that are no UTF-8 become surrogates, which `drafts.check` refuses field by field.
    with file.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        lines = _RowLines(file, opened)
        reader = csv.reader(lines, strict=True)
        try:
            lines.start(MAX_HEADER)
            header = [name.strip() for name in next(reader)]
            _check_header(file, header)
            started = lines.start(MAX_LINE_BYTES)
            for cells in reader:
                if cells:
                    yield _csv_row(started, header, cells)
                started = lines.start(MAX_LINE_BYTES)
        except csv.Error as error:
            raise FileUnreadable(f"{file.name}, line {reader.line_num}: {error}.") from error


class _RowLines:
    """Lines of a CSV file for its reader, as many as a row may have: what is quoted goes on over
    ends of lines, and it would all be held before the row is."""

    def __init__(self, file: _File, opened: IO[str]) -> None:
        self._file, self._opened = file, opened
        self._number = self._most = self._left = 0

    def start(self, most: int) -> int:
        """Begin a row, of at most so many characters; the number of its first line."""
        self._most = self._left = most
        return self._number + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._opened.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._left -= len(line)
        if self._left < 0:
            said = f"the row is longer than {self._most} characters"
            raise FileUnreadable(f"{self._file.name}, line {self._number}: {said}.")
        return line


def _check_header(file: _File, header: list[str]) -> None:
    if len(header) > MAX_COLUMNS:
        said = f"{len(header)} columns; at most {MAX_COLUMNS} are read"
        raise FileUnreadable(f"{file.name}, line 1: {said}.")
    columns = Counter(header)
    missing = [name for name in REQUIRED if columns.keys().isdisjoint(NAMES[name])]
    if missing:
        raise FileUnreadable(f"{file.name}, line 1: no column {', '.join(missing)}.")
    twice = sorted(name for name, count in columns.items() if name and count > 1)
    if twice:
        named = _shown(", ".join(twice[:LONGEST_SHOWN]))
        raise FileUnreadable(f"{file.name}, line 1: more than one column {named}.")


def _csv_row(number: int, header: list[str], cells: list[str]) -> ParsedRow:
    if len(cells) != len(header):
        problem = f"The line has {len(cells)} cells, the header {len(header)}."
        return ParsedRow(number, problem=problem)
    row = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
    # Such a column speaks of every row: an empty cell says “nothing”, a missing column is silent.
    fields = {name: "" for name in OPTIONAL if name in header} | _known_fields(row)
    for name in NUMBERS & fields.keys():
        fields[name] = _number(fields[name])
    return ParsedRow(number, fields)


def _number(cell: str) -> float | str:
    """The cell as a number; unchanged, to be refused by name, where it is none."""
    try:
        return float(cell)
    except ValueError:
        return cell


# --- The upstream's database ----------------------------------------------------------------------


def _read_lyra(file: _File) -> Iterator[ParsedRow]:
    """Per edge, the model's first prediction and the person's last label.

    Correcting an edge again stores the person's earlier label as “predicted” (confidence 1.0), so
    only the first row of an edge tells what the model said. An edge that a person looked at and
    left alone is a confirmation. Rows are counted in the order they are read.
    """
    try:
        with closing(_opened(file)) as database:
            columns = {table: _columns(file, database, table) for table in _LYRA_TABLES}
            if not columns["nli_corrections"]:
                raise FileUnreadable(f"{file.name} has no table nli_corrections: is it Lyra's?")
            rows = chain(
                _lyra_corrections(file, database, columns),
                _lyra_confirmations(database, columns),
            )
            for number, (name, fields) in enumerate(rows, start=1):
                yield ParsedRow(number, fields, name=_shown(name))
    except (sqlite3.Error, UnicodeError) as error:
        raise FileUnreadable(f"{file.name} {_why_not(error)}.") from error


def _why_not(error: sqlite3.Error | UnicodeError) -> str:
    """Errors may quote the file, in whatever bytes."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
        return "takes too long to read"
    said = _shown(str(error)) if isinstance(error, sqlite3.Error) else "its names are no UTF-8"
    return f"cannot be read as an SQLite database: {said}"


_LYRA_TABLES = ("nli_corrections", "edges", "fragments", "claims")
# Of our own queries; see https://sqlite.org/security.html on databases from elsewhere.
_LYRA_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_PRAGMA}
_LYRA_FUNCTIONS = {"coalesce", "substr"}
LONGEST_PAGE_ID = SHORT_TEXTS["page_id"] + 1
# A correction's page, if its edge is still there and comes from a fragment. The first of each:
# joined to any number of edges of one id, a correction would be as many rows, each with its texts.
# No longer than tells that it is too long: one page may be that of very many edges.
_PAGE = f"""(SELECT substr(f.page_id, 1, {LONGEST_PAGE_ID}) FROM edges e
    JOIN fragments f ON f.id = e.source_id
    WHERE e.id = c.edge_id AND e.source_type = 'fragment' LIMIT 1)"""  # noqa: S608
LONGEST_VALUE = 1024 * 1024  # bytes of a value, far beyond any text that is recorded
# Steps of SQLite's machine that an unknown database may cost, some ten seconds of them, and how
# many are done between two looks at the count.
MOST_STEPS, STEPS = 1_000_000_000, 1_000_000


def _opened(file: _File) -> sqlite3.Connection:
    """The database, to be read by our own queries and nothing that its schema brings along."""
    database = sqlite3.connect(f"{file.path.resolve().as_uri()}?mode=ro", uri=True)
    database.row_factory = sqlite3.Row
    database.text_factory = _decoded
    for pragma in ("trusted_schema=OFF", "ignore_check_constraints=ON", "cell_size_check=ON"):
        database.execute(f"PRAGMA {pragma}")
    database.set_authorizer(_allowed)
    if file.most_rows is not None:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE)
        left = iter(range(MOST_STEPS // STEPS))
        database.set_progress_handler(lambda: next(left, None) is None, STEPS)
    return database


def _allowed(action: int, first: str | None, second: str | None, *within: str | None) -> int:
    """SQLite's authorizer: no view, no trigger, no function but ours, nothing recursive."""
    _database, view = within
    ours = action in _LYRA_READS or (
        action == sqlite3.SQLITE_FUNCTION and second in _LYRA_FUNCTIONS
    )
    return sqlite3.SQLITE_OK if ours and view is None else sqlite3.SQLITE_DENY


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _columns(file: _File, database: sqlite3.Connection, table: str) -> set[str]:
    """Names of a table's columns; none where there is no such table.

    A file that may be anybody's is looked through for damage: pages that are in a table many times
    would be rows without end. SQLite finds a table by its name in any case.
    """
    query = "SELECT type, sql FROM sqlite_schema WHERE name = ? COLLATE NOCASE"
    for kind, sql in database.execute(query, [table]):
        if kind != "table" or "VIRTUAL" in str(sql).upper():
            raise FileUnreadable(f"{file.name}: {table} is not an ordinary table: is it Lyra's?")
        if file.most_rows is not None:
            found = database.execute(f"PRAGMA quick_check({table})").fetchone()[0]
            if found != "ok":
                raise FileUnreadable(f"{file.name} is damaged: {_shown(found)}.")
    return {row["name"] for row in database.execute(f"PRAGMA table_info({table})")}


def _column(file: _File, have: set[str], names: tuple[str, ...]) -> str:
    """The one of `names` that this generation of the table has."""
    for name in names:
        if name in have:
            return name
    raise FileUnreadable(
        f"{file.name}: the table nli_corrections has no column {' or '.join(names)}."
    )


def _lyra_corrections(
    file: _File, database: sqlite3.Connection, columns: dict[str, set[str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    have = columns["nli_corrections"]
    wanted = ("premise", "hypothesis", "predicted_label", "predicted_confidence", "correct_label")
    chosen = [f"c.{_column(file, have, NAMES[name][::-1])} AS {name}" for name in wanted]
    for optional in ("id", "edge_id", "corrected_at"):
        chosen.append(f"c.{optional}" if optional in have else f"NULL AS {optional}")
    # No reason for the last label is not the reason for the one before.
    chosen.append("coalesce(c.reason, '') AS reason" if "reason" in have else "NULL AS reason")
    has_page = "edge_id" in have and _has_pages(columns)
    chosen.append(f"{_PAGE} AS page_id" if has_page else "NULL AS page_id")
    query = f"SELECT c.rowid AS line, {', '.join(chosen)} FROM nli_corrections c"  # noqa: S608
    by_edge: dict[str, list[sqlite3.Row]] = {}
    found = database.execute(f"{query} ORDER BY c.rowid")
    for row in _limited(file, found):
        by_edge.setdefault(_edge_key(row), []).append(row)
    for key, rows in by_edge.items():
        rows.sort(key=_moment)
        yield str(rows[-1]["id"] or key), _merged(key, rows)


def _edge_key(row: sqlite3.Row) -> str:
    """External id: by edge, so that correcting it again upstream is a revision here."""
    return f"lyra:{row['edge_id'] or row['id'] or row['line']}"


def _moment(row: sqlite3.Row) -> tuple[float, int]:
    moment = utc(row["corrected_at"])
    return (moment.timestamp() if moment else 0.0, row["line"])


def _merged(key: str, rows: list[sqlite3.Row]) -> dict[str, Any]:
    first, last = rows[0], rows[-1]
    names = ("premise", "hypothesis", "correct_label", "reason", "corrected_at", "page_id")
    fields = {name: last[name] for name in names if last[name] is not None}
    for name in ("predicted_label", "predicted_confidence"):
        fields[name] = first[name]
    return {"external_id": key, **fields}


def _has_pages(columns: dict[str, set[str]]) -> bool:
    return {"id", "source_type", "source_id"} <= columns["edges"] and {"id", "page_id"} <= columns[
        "fragments"
    ]


def _lyra_confirmations(
    database: sqlite3.Connection, columns: dict[str, set[str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    reviewed = {"edge_human_corrected", "target_id", "nli_label", "nli_edge_confidence"}
    if not (_has_pages(columns) and reviewed <= columns["edges"]):
        return
    if not (columns["claims"] and "edge_id" in columns["nli_corrections"]):
        return
    when = "e.edge_corrected_at" if "edge_corrected_at" in columns["edges"] else "NULL"
    query = f"""
        SELECT e.id AS edge_id, f.text_content AS premise,
            c.claim_text AS hypothesis, e.nli_label AS label,
            e.nli_edge_confidence AS confidence, f.page_id, {when} AS corrected_at
        FROM edges e
        JOIN fragments f ON f.id = e.source_id
        JOIN claims c ON c.id = e.target_id
        WHERE e.edge_human_corrected = 1 AND e.source_type = 'fragment'
            AND NOT EXISTS (SELECT 1 FROM nli_corrections n WHERE n.edge_id = e.id)
        ORDER BY e.rowid
    """  # noqa: S608  a constant is put in
    for row in database.execute(query):
        names = ("premise", "hypothesis", "page_id", "corrected_at")
        fields = {name: row[name] for name in names if row[name] is not None}
        fields |= {"predicted_label": row["label"], "correct_label": row["label"]}
        fields |= {"predicted_confidence": row["confidence"]}
        yield f"edge {row['edge_id']}", {"external_id": f"lyra:{row['edge_id']}", **fields}
