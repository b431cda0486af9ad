"""The secret key was changed on purpose: this host's is the one of all hosts from now on."""

from typing import Any

from django.core.management.base import BaseCommand

from adapters_app import secret_key


class Command(BaseCommand):
    help = (
        "Use this database with this host's secret key from now on. Stop all hosts before, and "
        "give each the same LYRA_SECRET_KEY. Everybody has to sign in again; queued trainings are "
        "queued anew."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        secret_key.forget()
        secret_key.note()
        self.stdout.write("This host's secret key is the one of this database now.")
