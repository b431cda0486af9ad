"""The whole loop as two people click it, in Chromium, on a system of its own with real workers."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, Playwright, expect, sync_playwright

from tests.conftest import ROOT, demo_is_made
from tests.programs import find_chromium
from tests.tiny import tiny_base

START_S = 120.0
TRAINING_MS = 240_000
STOP_S = 60.0
PAIRS = [
    {"premise": "No increase in falls was seen.", "nli_hypothesis": "The drug made falls common."},
    {"premise": "Most patients were safe.", "nli_hypothesis": "Some patients were not safe."},
]


@dataclass(frozen=True)
class System:
    """A running server with the demo's accounts; `passwords` by user name."""

    url: str
    passwords: dict[str, str]

    def answers(self) -> list[dict]:
        """What a program gets from the API now, to the last digit."""
        request = urllib.request.Request(  # noqa: S310  our own server
            f"{self.url}/nli",
            data=json.dumps({"pairs": PAIRS}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            answered = json.load(response)
        assert answered["ok"], answered
        return answered["results"]


@pytest.fixture
def system(home: Path) -> Iterator[System]:
    """`manage.py run --demo` on a tiny random base, which trains in seconds."""
    port = _free_port()
    log = home / "run.log"
    environment = {
        "LYRA_HOME": str(home),
        "PORT": str(port),
        "LYRA_BASE_MODEL": tiny_base(home / "base"),
        "LYRA_COMPAT_OPEN": "1",
        "LYRA_DEVICE": "cpu",
    }
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "manage.py", "run", "--demo"],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _until_it_answers(server, port, home, log)
        lines = (home / "demo_accounts").read_text().splitlines()
        yield System(f"http://127.0.0.1:{port}", dict(line.split() for line in lines))
    finally:
        server.terminate()
        server.wait(timeout=STOP_S)


@pytest.fixture
def playwright() -> Iterator[Playwright]:
    """For this test only: as long as it lives, Django refuses the database to this thread."""
    with sync_playwright() as started:
        yield started


@pytest.fixture
def browser(playwright: Playwright) -> Iterator[Browser]:
    # As root Chromium starts only without its sandbox; it sees nothing but our own pages.
    launched = playwright.chromium.launch(
        executable_path=find_chromium(),
        args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
    )
    yield launched
    launched.close()


@pytest.fixture
def page(browser: Browser, system: System) -> Iterator[Page]:
    """A window where nothing goes wrong unseen: script errors, failed loads, foreign hosts."""
    opened = browser.new_page(base_url=system.url)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on(
        "response",
        lambda answer: faults.append(answer.url) if answer.status >= 500 else None,
    )
    opened.on(
        "request",
        lambda asked: None if asked.url.startswith(system.url) else faults.append(asked.url),
    )
    yield opened
    assert faults == []


def test_the_loop_from_correction_to_promotion_and_back(page: Page, system: System) -> None:
    before = system.answers()

    _sign_in(page, system, "curator")
    page.get_by_role("link", name="Review them").click()
    page.get_by_label("Select all objects on this page").check()
    page.get_by_label("Action:").select_option("accept")
    page.get_by_role("button", name="Go", exact=True).click()
    expect(page.locator(".messagelist")).to_contain_text("corrections accepted")
    page.get_by_role("button", name="Log out").click()

    _sign_in(page, system, "releaser")
    page.get_by_role("link", name="Request training").first.click()
    page.get_by_label("Reason").fill("The first verdicts are reviewed.")
    page.get_by_text("Change the configuration of this run").click()
    page.get_by_label("Epochs").fill("1")
    page.get_by_role("button", name="Request training").click()
    expect(page.locator("progress")).to_be_visible()
    # No click from here on: the page follows the run by itself.
    page.get_by_role("link", name="Open v1").wait_for(timeout=TRAINING_MS)
    expect(page.locator(".title-row .pill")).to_have_text("succeeded")
    assert system.answers() == before  # nothing is promoted by a machine

    page.get_by_role("link", name="Open v1").click()
    expect(page.locator("figure.chart svg").first).to_be_visible()
    page.get_by_label("Compare with").select_option("the base")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("heading", name="the base and v1")).to_be_visible()
    expect(page.get_by_role("region", name="Settings of the base and v1")).to_be_visible()
    page.get_by_role("link", name="v1", exact=True).click()
    page.get_by_role("link", name="Promote v1").click()
    expect(page.get_by_role("heading", name="Promote v1?")).to_be_visible()
    page.get_by_label("Reason").fill("Measured, read, decided.")
    for box in page.locator("form.stacked input[type=checkbox]").all():
        box.check()  # a random base learns little: the gate wants its acknowledgement
    page.get_by_role("button", name="Promote v1").click()
    expect(page.locator(".messagelist")).to_contain_text("From now on v1 answers.")
    assert system.answers() != before

    page.get_by_role("link", name="Roll back …").click()
    page.get_by_label("Reason").fill("To see that the old answers come back.")
    page.get_by_role("button", name="Roll back to the base").click()
    expect(page.get_by_role("row").filter(has_text="v1 → the base")).to_be_visible()
    assert system.answers() == before


def test_a_curator_reviews_by_keys_and_puts_a_label_right(page: Page, system: System) -> None:
    _sign_in(page, system, "curator")
    page.get_by_role("link", name="Review them").click()
    rows = page.locator("#result_list tbody tr")
    pending = int(page.locator("[data-count=pending]").inner_text())
    supports = int(page.locator("[data-count=supports]").inner_text())
    supporting = page.locator("tr:has(.field-judged .label.supports:last-child)")
    reached = supporting.first.evaluate("row => [...row.parentNode.children].indexOf(row)")

    for _ in range(reached + 1):
        page.keyboard.press("j")
    expect(rows.nth(reached)).to_be_focused()
    name = rows.nth(reached).locator(".status").get_attribute("data-pk")
    page.keyboard.press("a")

    expect(page.get_by_role("status")).to_have_text(f"Row {name} accepted")
    assert _colour(page, rows.nth(reached), "light") != _colour(page, rows.nth(reached), "dark")
    expect(rows.nth(reached + 1)).to_be_focused()
    expect(page.locator("[data-count=pending]")).to_have_text(str(pending - 1))
    expect(page.locator("[data-count=supports]")).to_have_text(str(supports + 1))
    expect(page.locator("#changelist")).not_to_contain_text(f"{pending} results")
    expect(page.locator("#changelist")).not_to_contain_text(f"{pending} corrections")

    # What Enter and letters do on a control stays the control's.
    fold = page.locator("#changelist-filter details").first
    opened = fold.evaluate("fold => fold.open")
    fold.locator("summary").press("Enter")
    assert fold.evaluate("fold => fold.open") is not opened
    fold.locator("summary").press("r")
    expect(page.locator("[data-count=rejected]")).to_have_text("0")

    rows.nth(reached + 1).get_by_role("link").press("Enter")
    expect(page.get_by_label("Correct label")).to_be_visible()
    opened = page.url
    page.keyboard.press("j")
    expect(page).not_to_have_url(opened)
    expect(page.get_by_label("Correct label")).to_be_visible()
    page.goto(opened)
    said = page.get_by_label("Correct label").input_value()
    right = "refutes" if said == "neutral" else "neutral"
    page.keyboard.press({"refutes": "2", "neutral": "3"}[right])
    expect(page.get_by_label("Correct label")).to_have_value(right)
    page.keyboard.press("a")
    expect(page.locator(".messagelist")).to_contain_text("was changed and is accepted.")
    expect(page).to_have_url(re.compile("_changelist_filters=status__exact%3Dpending"))


def test_a_curator_checks_a_file_and_imports_it(page: Page, system: System) -> None:
    said = {"predicted_label": "neutral", "predicted_confidence": 0.6, "correct_label": "refutes"}
    said |= {"hypothesis": "Nobody was ill."}
    good = [said | {"id": f"browser-{n}", "premise": f"Ward {n} saw fever."} for n in (1, 2)]
    bad = [*good, {**good[0], "id": "browser-3", "correct_label": "maybe"}]

    def choose(verdicts: list[dict]) -> None:
        lines = "\n".join(map(json.dumps, verdicts))
        file = {"name": "ward.jsonl", "mimeType": "", "buffer": lines.encode()}
        page.get_by_label("File", exact=True).set_input_files([file])

    _sign_in(page, system, "curator")
    page.goto("/admin/corrections/correction/")
    page.get_by_role("link", name="Import", exact=True).click()
    choose(bad)
    page.get_by_role("button", name="Check").click()
    outcome = page.get_by_role("status")
    expect(outcome).to_contain_text("1 of 3 rows is refused")
    expect(outcome).to_contain_text("correct_label is 'maybe'")
    expect(page.get_by_role("button", name="Import", exact=True)).to_have_count(0)

    choose(good)
    file, size = page.get_by_label("File", exact=True), sum(len(json.dumps(v)) for v in good) + 1
    file.evaluate("(file, most) => { file.dataset.mostBytes = most; }", size - 1)
    page.get_by_role("button", name="Check again").click()
    expect(outcome).to_have_text("The file is too large: at most 64.0\xa0MB are accepted.")
    file.evaluate("(file, most) => { file.dataset.mostBytes = most; }", size)
    page.get_by_label("These are all rows of a labelled set").check()
    page.get_by_role("button", name="Check again").click()
    expect(outcome).to_contain_text("2 of 2 rows of ward.jsonl would be imported.")
    # The file is still chosen, and the key that goes on is at hand.
    page.keyboard.press("Enter")
    expect(page.locator(".messagelist")).to_contain_text("Imported 2 rows of ward.jsonl: 2 new")
    expect(page.locator("#result_list tbody tr")).to_have_count(2)
    expect(page.locator("#result_list")).to_contain_text("every row of a labelled set")


def _colour(page: Page, row: Locator, theme: str) -> str:
    """Of a row's status, in the theme that a person chose with the button."""
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    return row.locator(".status").evaluate("status => getComputedStyle(status).color")


def _sign_in(page: Page, system: System, name: str) -> None:
    page.goto("/admin/login/?next=/admin/")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(system.passwords[name])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Correction loop")).to_be_visible()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _until_it_answers(server: subprocess.Popen[bytes], port: int, home: Path, log: Path) -> None:
    """Wait for the model and the demo, not only for the web server."""
    system = System(f"http://127.0.0.1:{port}", {})
    deadline, pause = time.monotonic() + START_S, threading.Event()
    while True:
        try:
            system.answers()
            assert demo_is_made(home)
            return
        except (OSError, AssertionError):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server does not answer:\n{log.read_text()[-4000:]}")
            pause.wait(0.2)
