"""The curator's page that imports a file: checked first, then imported as it was checked."""

import re
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import resolve

from corrections.models import Correction
from inference import engine, imports
from inference.import_api import ImportView
from tests.test_corrections_import import row
from tests.test_import_api import lines

pytestmark = pytest.mark.django_db
PAGE, LIST = "/admin/corrections/correction/import/", "/admin/corrections/correction/"
FILE = lines(row(0), row(1), row(2))


def as_(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def send(client: Client, content: bytes, step: str, *, name: str = "a.jsonl", **sent: Any) -> Any:
    """The answer to the form, with a button pressed."""
    return client.post(PAGE, {"file": SimpleUploadedFile(name, content), "step": step, **sent})


def seal(answer: Any) -> str:
    """What the page of a checked file sends along when it is imported."""
    return re.findall('name="checked" value="([0-9a-f]{64})"', answer.text)[0]


def check_and_import(client: Client, content: bytes, **choices: Any) -> Any:
    checked = send(client, content, "check", **choices)
    assert not Correction.objects.exists()
    return send(client, content, "import", checked=seal(checked), **choices)


def messages_of(answer: Any) -> list[str]:
    return [str(message) for message in answer.context["messages"]]


def test_the_list_leads_whoever_may_to_the_page(caller: User, curator: User) -> None:
    client = as_(curator)
    assert f'href="{PAGE}"' in client.get(LIST).text
    page = client.get(PAGE).text
    for said in ("at most 64.0\xa0MB and 5,000 rows", "These are all rows of a labelled set"):
        assert said in page
    reader = User.objects.create_user("reader")
    reader.user_permissions.add(Permission.objects.get(codename="view_correction"))
    assert PAGE not in as_(reader).get(LIST).text
    for user in (reader, caller):
        assert as_(user).get(PAGE).status_code == 403
        assert send(as_(user), FILE, "check").status_code == 403


def test_what_was_checked_is_imported_and_listed(curator: User) -> None:
    old = Correction.objects.count()
    client = as_(curator)
    send(client, lines(row(7)), "check")
    checked = send(client, FILE, "check")
    assert "3 of 3 rows of a.jsonl would be imported." in checked.text
    assert "<dt>New</dt><dd>3</dd>" in checked.text
    assert not Correction.objects.exists()

    done = send(client, FILE, "import", checked=seal(checked))

    assert (done.status_code, Correction.objects.count()) == (302, old + 3)
    assert check_listed(client, done) == {"r0", "r1", "r2"}
    other = send(client, lines(row(0), row(5)), "check")
    done = send(client, lines(row(0), row(5)), "import", checked=seal(other))
    assert check_listed(client, done) == {"r5"}  # what did not change is not of this import


def check_listed(client: Client, done: Any) -> set[str | None]:
    """The ids of the rows that an import leads to."""
    listed = client.get(done["Location"])
    assert messages_of(listed)[0].startswith("Imported ")
    return {row.external_id for row in listed.context["cl"].result_list}


@pytest.mark.parametrize(
    ("content", "choices"), [(lines(row(0), row(3)), {}), (FILE, {"accept": "on"})]
)
def test_another_file_or_choice_than_was_checked_is_checked_instead(
    curator: User, content: bytes, choices: dict[str, str]
) -> None:
    client = as_(curator)
    checked = send(client, FILE, "check")

    answer = send(client, content, "import", checked=seal(checked), **choices)

    assert answer.status_code == 200
    assert "is another than what was checked before, so nothing was imported yet" in answer.text
    assert not Correction.objects.exists()
    done = send(client, content, "import", checked=seal(answer), **choices)
    assert (done.status_code, Correction.objects.exists()) == (302, True)


def test_nothing_is_imported_that_was_not_checked(curator: User) -> None:
    for checked in ("", "0" * 64):
        assert send(as_(curator), FILE, "import", checked=checked).status_code == 200
    assert not Correction.objects.exists()


def test_refused_rows_are_listed_with_line_and_reason(curator: User) -> None:
    client = as_(curator)
    file = lines(row(0), row(1, correct_label="<b>"), row(2))

    answer = send(client, file, "check")

    assert "1 of 3 rows is refused, so nothing is imported; mend it or choose" in answer.text
    assert '<td class="number">2</td>' in answer.text
    assert "correct_label is &#x27;&lt;b&gt;&#x27;" in answer.text
    assert 'value="import"' not in answer.text
    many = send(client, lines(*[b"{"] * 450), "check").text
    assert "the first 200, and 250 more" in many
    check_and_import(client, file, partial="on")
    assert Correction.objects.count() == 2


def test_how_rows_were_chosen_is_said_in_words(curator: User) -> None:
    client = as_(curator)
    assert "3 are taken for what people chose to report" in send(client, FILE, "check").text

    check_and_import(client, FILE, sampling="complete")

    assert set(Correction.objects.values_list("sampling", flat=True)) == {"complete"}
    assert send(client, FILE, "check", sampling="audit").context["form"].errors["sampling"]


def test_whose_reviews_count_is_said_once(curator: User, administrator: User) -> None:
    pages = {user: as_(user).get(PAGE).text for user in (curator, administrator)}

    assert "of reviews, revisions and folds is not taken over: rows wait" in pages[curator]
    assert "of reviews, revisions and folds is taken over." in pages[administrator]
    for page in pages.values():
        assert page.count("taken over") == 1


def test_only_who_may_review_accepts(curator: User) -> None:
    assert "Accept the rows" in as_(curator).get(PAGE).text
    clerk = User.objects.create_user("clerk")
    clerk.user_permissions.add(Permission.objects.get(codename="import_correction"))
    client = as_(clerk)
    assert "Accept the rows" not in client.get(PAGE).text

    done = check_and_import(client, FILE, accept="on")

    assert done["Location"] == PAGE  # the list is not theirs to see
    assert "Imported 3 rows" in messages_of(client.get(PAGE))[0]
    assert Correction.objects.pending().count() == 3
    check = send(as_(curator), FILE, "check", accept="on")
    assert "<dt>Accepted</dt><dd>3, by this import</dd>" in check.text
    send(as_(curator), FILE, "import", accept="on", checked=seal(check))
    assert Correction.objects.accepted().count() == 3


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "a.jsonl is empty."),
        ("a.db", b"no", "a.db is not an SQLite database."),
        ("a.csv", b"premise\n", "a.csv, line 1: no column hypothesis, correct_label."),
    ],
)
def test_a_file_that_cannot_be_read_is_said_beside_it(
    curator: User, name: str, content: bytes, says: str
) -> None:
    answer = send(as_(curator), content, "check", name=name)

    assert (answer.status_code, answer.context["form"].errors["file"]) == (200, [says])
    assert says in answer.text


def test_a_form_without_a_file_and_a_server_that_is_busy_say_so(
    curator: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = as_(curator)
    assert "This field is required." in client.post(PAGE, {"step": "check"}).text
    with imports._turn():
        assert "Another file is being imported; try again" in send(client, FILE, "check").text

    def answer(adapter: str, pairs: Any) -> None:
        raise engine.EngineUnavailable("v3 cannot be loaded.")

    monkeypatch.setattr(engine, "answer", answer)
    bare = lines({name: row(0)[name] for name in ("premise", "hypothesis", "correct_label")})
    checked = send(client, bare, "check", predict_missing="on")
    assert "<dt>To be predicted</dt><dd>1</dd>" in checked.text
    done = send(client, bare, "import", predict_missing="on", checked=seal(checked))
    assert "Nothing was imported. v3 cannot be loaded." in done.text
    assert not Correction.objects.exists()


def test_a_page_of_another_site_imports_nothing(curator: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(curator)

    assert send(client, FILE, "check").status_code == 403


def test_what_is_too_large_is_refused_on_a_page_of_words(
    curator: User, client: Client, settings: Any
) -> None:
    settings.LYRA_MAX_IMPORT_BYTES = 300
    answer = send(as_(curator), FILE, "check")
    assert answer.status_code == 413
    assert "What you sent is too large" in answer.text
    assert "at most 300\xa0bytes are accepted" in answer.text
    settings.LYRA_MAX_BODY_BYTES = 300
    file = SimpleUploadedFile("a", b"x" * 400)
    assert client.post("/admin/login/", {"file": file}).status_code == 413


def test_the_form_around_a_file_does_not_count(curator: User, settings: Any) -> None:
    client, name = as_(curator), f"{'x' * 200}.jsonl"
    for over, status in ((-1, 200), (0, 200), (1, 413)):
        settings.LYRA_MAX_IMPORT_BYTES = len(FILE) - over
        assert send(client, FILE, "check", name=name).status_code == status
    assert not Correction.objects.exists()


@pytest.mark.parametrize(("limit", "said"), [(300, "300\xa0bytes"), (300 << 10, "300.0\xa0KB")])
def test_the_page_tells_its_script_the_limit_in_bytes_and_in_words(
    curator: User, settings: Any, limit: int, said: str
) -> None:
    settings.LYRA_MAX_IMPORT_BYTES = limit
    page = as_(curator).get(PAGE).text

    assert f'data-most-bytes="{limit}" data-most="{said}"' in page


def test_where_more_may_be_sent_is_where_files_are_imported() -> None:
    views = {resolve(path).func for path in imports.PATHS}
    assert {getattr(view, "view_class", None) for view in views} == {ImportView, None}
    assert resolve(PAGE).url_name == "import-corrections"
    assert PAGE in imports.PATHS
