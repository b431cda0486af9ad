"""Whether all hosts of one database sign with the same key.

Queue and sessions are signed with it. A worker with another key deletes what it cannot read from
the queue. So a letter lies in the queue's own table, under a name that no worker asks for: who
cannot verify its signature must not work here. SQLite has one host, and needs no letter.
"""

from django.core.signing import BadSignature, Signer
from django.db import connection
from django_q.models import OrmQ

LETTER = "secret-key"  # a queue that nobody serves
TEXT = "signed with the secret key of all hosts"
DIFFERS = (
    "This host's secret key is not the one that this database is used with: sessions and queued "
    "tasks of the other hosts could not be read. Give every host the same LYRA_SECRET_KEY (a host "
    "without it has its key in LYRA_HOME/secret_key). Was the key changed on purpose? Then stop "
    "all hosts and run manage.py accept_secret_key."
)


def problem() -> str:
    """Why this process must not sign for this database; empty where it may."""
    letters = OrmQ.objects.filter(key=LETTER).order_by("pk")  # of two, the first one counts
    if connection.vendor != "postgresql" or (letter := letters.first()) is None:
        return ""
    try:
        _signer().unsign(letter.payload)
    except BadSignature:
        return DIFFERS
    return ""


def note() -> None:
    """Leave the letter where there is none."""
    if connection.vendor == "postgresql" and not OrmQ.objects.filter(key=LETTER).exists():
        OrmQ.objects.create(key=LETTER, payload=_signer().sign(TEXT))


def forget() -> None:
    """Let the next host that starts say which key it is."""
    if connection.vendor == "postgresql":
        OrmQ.objects.filter(key=LETTER).delete()


def _signer() -> Signer:
    return Signer(salt="adapters_app.secret_key")
