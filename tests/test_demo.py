"""The demo on a tiny random base and verdicts such a base can learn: every step is the real one."""

import io
import json
import random
import subprocess
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command

from corrections.models import CorrectionEvent
from lyra_site import demo
from tests.conftest import Manage
from tests.tiny import WORDS, tiny_base

pytest_plugins = ("tests.serving",)

# The label can be read off the hypothesis: nothing to understand, everything to learn.
SIGNS = {"supports": "effective", "refutes": "risk", "neutral": "water"}
OTHER_WORDS = [word for word in WORDS if word not in SIGNS.values()]
PAGES = 60


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def learnable(tmp_path: Path) -> Path:
    return _verdicts(tmp_path / "verdicts.jsonl")


def test_the_whole_loop_ends_where_it_began(manage: Manage, base: str, learnable: Path) -> None:
    done = _demo(manage, base, learnable)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("import", "train", "calibrate", "shadow", "promote", "predict", "roll back"):
        assert step in done.stdout
    assert "better" in done.stdout


def test_an_adapter_that_is_not_better_fails_the_demo(
    manage: Manage, base: str, tmp_path: Path
) -> None:
    """Twelve pages are too few to say so, whatever was learnt from them."""
    done = _demo(manage, base, _verdicts(tmp_path / "few.jsonl", pages=12))
    assert done.returncode == 1
    assert "not better" in done.stderr


def test_a_step_that_fails_fails_the_demo_and_touches_nothing_else(
    manage: Manage, base: str, home: Path, tmp_path: Path
) -> None:
    done = _demo(manage, base, _verdicts(tmp_path / "few.jsonl", pages=2))
    assert done.returncode == 1
    assert "train_adapter failed" in done.stderr
    assert {path.name for path in home.iterdir()} <= {"secret_key", "cache"}


def test_setting_up_twice_changes_nothing(manage: Manage, base: str, home: Path) -> None:
    assert manage("migrate", "--verbosity=0").returncode == 0
    first = manage("setup_demo", "--json", LYRA_BASE_MODEL=base)
    assert first.returncode == 0, first.stderr
    accounts = home / "demo_accounts"
    assert accounts.stat().st_mode & 0o777 == 0o600
    kept = accounts.read_text()
    second = manage("setup_demo", "--json", LYRA_BASE_MODEL=base)
    assert second.returncode == 0, second.stderr
    assert json.loads(first.stdout.splitlines()[-1])["imported"] >= 600
    assert json.loads(second.stdout.splitlines()[-1])["imported"] == 0
    assert accounts.read_text() == kept


@pytest.mark.django_db
def test_demo_accounts_have_their_roles_and_passwords(client) -> None:
    passwords = demo.make_accounts()
    assert demo.make_accounts() == passwords
    for name, password in passwords.items():
        signed_in = client.post("/admin/login/", {"username": name, "password": password})
        assert signed_in.status_code == 302
    releaser = User.objects.get(username="releaser")
    assert releaser.has_perms(["adapters_app.request_training", "adapters_app.promote_adapter"])
    assert not releaser.has_perm("corrections.review_correction")


@pytest.mark.django_db
@pytest.mark.parametrize("kept", [True, False], ids=["kept from before", "nothing kept"])
def test_no_password_is_set_or_told_for_an_account_that_was_there(
    settings, tmp_path: Path, kept: bool
) -> None:
    settings.LYRA_HOME = tmp_path
    if kept:
        demo.make_accounts()
        User.objects.get(username="admin").delete()
    User.objects.create_user("admin", password="the operator's own")
    before = User.objects.filter(username="admin").values().get()
    passwords = demo.make_accounts()
    assert passwords["admin"] is None
    assert passwords["curator"]
    assert User.objects.filter(username="admin").values().get() == before


@pytest.mark.django_db
def test_setting_up_among_peoples_own_accounts_says_so_and_acts_for_none(
    settings, on_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.LYRA_HOME = on_tiny
    monkeypatch.setattr(demo, "VERDICTS", _verdicts(tmp_path / "few.jsonl", pages=8))
    User.objects.create_user("curator", password="somebody's own")
    out = io.StringIO()
    call_command("setup_demo", stdout=out)
    lines = {line.split()[0]: line for line in out.getvalue().splitlines() if line.startswith("  ")}
    assert "left as it is" in lines["curator"]
    assert "left as it is" not in lines["admin"]
    assert not CorrectionEvent.objects.filter(by__username="curator").exists()


def test_the_demos_verdicts_are_what_the_design_asks_for() -> None:
    rows = [json.loads(line) for line in demo.VERDICTS.read_text(encoding="utf-8").splitlines()]
    labels = [row["correct_label"] for row in rows]
    assert len(rows) >= 600
    assert len({row["page_id"] for row in rows}) >= 100
    assert all(labels.count(label) >= 0.2 * len(rows) for label in SIGNS)
    assert len({row["id"] for row in rows}) == len(rows)


def _demo(manage: Manage, base: str, verdicts: Path) -> subprocess.CompletedProcess[str]:
    """Few, fast steps: a tiny model learns a sign within them."""
    settings = ("learning_rate=0.01", "epochs=6", "min_steps=1", "anchor_weight=0")
    chosen = [word for setting in settings for word in ("--set", setting)]
    return manage("demo", "--verdicts", str(verdicts), *chosen, LYRA_BASE_MODEL=base)


def _verdicts(path: Path, *, pages: int = PAGES) -> Path:
    """`pages` premises with six hypotheses each, labels balanced, as JSON Lines at `path`."""
    draw = random.Random(0)
    rows = []
    for page in range(pages):
        premise = f"{page} " + " ".join(draw.choices(WORDS, k=12))
        for number, label in enumerate([*SIGNS, *SIGNS]):
            words = draw.choices(OTHER_WORDS, k=4)
            rows.append(
                {
                    "id": f"{page}-{number}",
                    "page_id": str(page),
                    "premise": premise,
                    "hypothesis": f"{SIGNS[label]} {draw.randrange(10**6)} {' '.join(words)}",
                    "correct_label": label,
                }
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
