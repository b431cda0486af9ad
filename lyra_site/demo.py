"""The demo's accounts and data: what `make run` shows a newcomer and `make demo` runs on."""

import io
import json
import secrets
from pathlib import Path

from django.conf import settings
from django.contrib.auth.hashers import check_password, make_password
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import transaction

from adapters_app import scratch
from corrections.files import written_beside
from corrections.models import Correction

VERDICTS = Path(settings.BASE_DIR) / "corrections" / "demo" / "verdicts.jsonl"
# Pages whose verdicts wait for the newcomer to accept them.
PENDING_PAGES = 5
# account → its roles; None = administrator
ACCOUNTS: dict[str, tuple[str, ...] | None] = {
    "curator": ("curator",),
    "releaser": ("trainer", "releaser"),
    "admin": None,
}


def make_accounts() -> dict[str, str | None]:
    """Make those of the demo's accounts whose names are free; return {user name: password}.

    An account that is there already is left alone, whoever made it, and its password is told only
    where it is still the one made here; otherwise it is None. Passwords are made once and kept,
    readable by their owner, in LYRA_HOME/demo_accounts.
    """
    path = settings.LYRA_HOME / "demo_accounts"
    passwords = _read(path)
    taken = set(User.objects.filter(username__in=ACCOUNTS).values_list("username", flat=True))
    new = {
        name: secrets.token_urlsafe(9) for name in ACCOUNTS if name not in taken | set(passwords)
    }
    if new:
        passwords |= new
        _write(path, passwords)  # first: an account whose password nobody knows helps nobody
    for name, roles in ACCOUNTS.items():
        if name not in taken:
            _make_account(name, roles, password=passwords[name])
    return {name: _if_it_opens(name, passwords.get(name)) for name in ACCOUNTS}


def import_verdicts(*, by: str) -> int:
    """Import the demo's verdicts as the user named `by`, predicted by what serves; return how many.

    The last pages stay pending, for the newcomer to accept. Rows once imported are left alone,
    whatever became of them.
    """
    lines = VERDICTS.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    known = set(
        Correction.objects.filter(external_id__in=[row["id"] for row in rows]).values_list(
            "external_id", flat=True
        )
    )
    pages = list(dict.fromkeys(row["page_id"] for row in rows))
    waiting = set(pages[-PENDING_PAGES:])
    missing = [row for row in rows if row["id"] not in known]
    _import([row for row in missing if row["page_id"] not in waiting], by=by, accept=True)
    _import([row for row in missing if row["page_id"] in waiting], by=by, accept=False)
    return len(missing)


def _make_account(name: str, roles: tuple[str, ...] | None, *, password: str) -> None:
    """Make the account, unless somebody else has just done so."""
    encoded = make_password(password)  # slow by design; the database is not locked meanwhile
    with transaction.atomic():
        user, created = User.objects.get_or_create(
            username=name,
            defaults={"is_superuser": roles is None, "password": encoded},
        )
        if created and roles:
            user.groups.set(Group.objects.filter(name__in=roles))


def _if_it_opens(name: str, password: str | None) -> str | None:
    """The password if it is the account's; looks only, where the user's own check may rehash."""
    encoded = User.objects.values_list("password", flat=True).get(username=name)
    return password if check_password(password, encoded) else None


def _import(rows: list[dict[str, str]], *, by: str, accept: bool) -> None:
    if not rows:
        return
    with scratch.directory() as directory:
        file = directory / "verdicts.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        call_command(
            "import_corrections",
            str(file),
            accept=accept,
            predict_missing=True,
            sampling=Correction.Sampling.COMPLETE.value,
            as_user=by,
            stdout=io.StringIO(),
        )


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines())
    return dict(pairs)


def _write(path: Path, passwords: dict[str, str]) -> None:
    """Beside, then renamed: readable by its owner from the first byte."""
    lines = (f"{name} {password}\n" for name, password in passwords.items())
    with written_beside(path) as file:
        file.write("".join(lines).encode())


def spread(verdicts: Path, pages: int, target: Path) -> Path:
    """Write the verdicts of at most `pages` pages, spread evenly over the file, to `target`."""
    by_page: dict[str, list[str]] = {}
    for line in verdicts.read_text(encoding="utf-8").splitlines():
        by_page.setdefault(json.loads(line)["page_id"], []).append(line)
    names = list(by_page)
    count = min(pages, len(names))
    chosen = [names[i * len(names) // count] for i in range(count)]
    lines = [line for name in chosen for line in by_page[name]]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target
