"""Demo accounts and demo corrections, made once; says what to open and what to click."""

from typing import Any

from django.conf import settings
from django.contrib.auth.models import User

from corrections.acting import ActingCommand
from lyra_site import demo

GUIDE = """
The loop, by hand:
  1. {url}/admin/ as curator: Corrections, pending ones, select all, accept.
  2. As releaser: Training runs, “Request training”. Watch it train, calibrate and be compared.
  3. Adapter versions, v1: read its verdict, “Promote v1 …”, say why.
  4. The next request is answered by it:
     curl {url}/nli -H 'Content-Type: application/json' -d '{{"pairs": [{{"premise":
     "No increase in falls was seen.", "nli_hypothesis": "The drug made falls more common."}}]}}'
  5. “Roll back …” on the same page, and the answers are those of before.
"""


class Command(ActingCommand):
    help = "Make the demo accounts and import the demo corrections; doing it twice is harmless."

    def act(self, *, by: User, **options: Any) -> dict[str, Any]:
        passwords = demo.make_accounts()
        # Nothing is recorded in the name of somebody whose account only happens to be called so.
        curator = "curator" if passwords["curator"] else by.username
        imported = demo.import_verdicts(by=curator)
        if imported:
            self.stdout.write(f"Imported {imported} demo verdicts.")
        self.stdout.write("Demo accounts, and their passwords:")
        for name, password in passwords.items():
            self.stdout.write(_line(name, password))
        self.stdout.write(f"  (kept in {settings.LYRA_HOME / 'demo_accounts'})")
        self.stdout.write(GUIDE.format(url=f"http://{settings.LYRA_HOST}:{settings.LYRA_PORT}"))
        made = [name for name, password in passwords.items() if password]
        return {"accounts": made, "imported": imported}


def _line(name: str, password: str | None) -> str:
    if password is None:
        return f"  {name:<10}not the demo's: an account with a password of its own, left as it is"
    roles = demo.ACCOUNTS[name]
    return f"  {name:<10}{password:<16}{', '.join(roles) if roles else 'everything'}"
