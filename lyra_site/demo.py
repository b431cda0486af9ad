"""The demo's accounts and data: what `make run` shows a newcomer and `make demo` runs on."""

import io
import json
import os
import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import transaction

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


def make_accounts() -> dict[str, str]:
    """See that the demo's accounts exist; return {user name: password}.

    Passwords are made once and kept, readable by their owner, in LYRA_HOME/demo_accounts.
    """
    path = settings.LYRA_HOME / "demo_accounts"
    known = _read(path)
    new = {name: secrets.token_urlsafe(9) for name in ACCOUNTS if name not in known}
    if new:
        _write(path, known | new)
    with transaction.atomic():
        for name, roles in ACCOUNTS.items():
            _make_account(name, roles, new_password=new.get(name), password=(known | new)[name])
    return known | new


def import_verdicts() -> int:
    """Import the demo's verdicts as its curator, predicted by what serves; return how many.

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
    _import([row for row in missing if row["page_id"] not in waiting], accept=True)
    _import([row for row in missing if row["page_id"] in waiting], accept=False)
    return len(missing)


def _make_account(
    name: str, roles: tuple[str, ...] | None, *, password: str, new_password: str | None
) -> None:
    user, created = User.objects.get_or_create(
        username=name, defaults={"is_staff": True, "is_superuser": roles is None}
    )
    if created or new_password:
        user.set_password(password)
        user.save(update_fields=["password"])
    if created and roles:
        user.groups.set(Group.objects.filter(name__in=roles))


def _import(rows: list[dict[str, str]], *, accept: bool) -> None:
    if not rows:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", dir=settings.LYRA_HOME) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        call_command(
            "import_corrections",
            file.name,
            accept=accept,
            predict_missing=True,
            sampling=Correction.Sampling.COMPLETE.value,
            as_user="curator",
            stdout=io.StringIO(),
        )


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines())
    return dict(pairs)


def _write(path: Path, passwords: dict[str, str]) -> None:
    """Beside, then renamed: readable by its owner from the first byte."""
    lines: Iterable[str] = (f"{name} {password}\n" for name, password in passwords.items())
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:  # mode 0600
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


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
