"""Start everything in the foreground: web server, worker and training worker, supervised."""

import errno
import fcntl
import os
import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser

from adapters_app import secret_key
from corrections.acting import Refused
from lyra_site import static_files
from lyra_site.home import lock

CONFIGURATION = Path(settings.BASE_DIR) / "lyra_site" / "supervisord.conf"
# A Unix socket's address holds 107 bytes; supervisord appends its process id while it makes one.
LONGEST_SOCKET = 95


class Command(BaseCommand):
    help = (
        "Migrate, then run web server, worker and training worker under one supervisor that "
        "restarts what dies. Ctrl-C or SIGTERM stops all of it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--demo",
            action="store_true",
            help="with demo accounts and demo corrections, made while the server starts",
        )

    def handle(self, *args: Any, demo: bool, **options: Any) -> None:
        held = lock()
        _check_socket_path(settings.LYRA_HOME / "supervisor.sock")
        _check_port(settings.LYRA_HOST, settings.LYRA_PORT)
        (settings.LYRA_HOME / "logs").mkdir(exist_ok=True)
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as beside:
            collected = beside.submit(static_files.collect)  # needs no database
            call_command("migrate", verbosity=0)
            collected.result()
        if problem := secret_key.problem():
            raise Refused(problem)
        secret_key.note()
        self.stdout.write(
            f"\nServing at http://{settings.LYRA_HOST}:{settings.LYRA_PORT}, "
            f"logs in {settings.LYRA_HOME / 'logs'}. Ctrl-C stops everything.\n"
        )
        self.stdout.flush()
        _become_supervisor(held, demo=demo)


def _check_socket_path(path: Path) -> None:
    if len(os.fsencode(path)) > LONGEST_SOCKET:
        raise Refused(f"LYRA_HOME is too long a path: {path} cannot be a socket.")


def _advice(error: OSError, port: int) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return "LYRA_HOST must be an address of this machine; 0.0.0.0 stands for all of them."
    if error.errno == errno.EACCES:
        return "Choose a port from 1024 on, for example PORT=8000."
    return f"Choose another port, for example PORT={port + 1}."


def _check_port(host: str, port: int) -> None:
    """Raise Refused where another program listens already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise Refused(
                f"Cannot listen on {host}:{port}: {error.strerror}. {_advice(error, port)}"
            ) from error


def _become_supervisor(held: TextIO, *, demo: bool) -> None:
    """Replace this process by supervisord, which keeps the lock on the home until it ends."""
    fcntl.fcntl(held, fcntl.F_SETFD, 0)  # not closed by exec; children of supervisord close it
    environment = {
        "LYRA_HOME": str(settings.LYRA_HOME),
        "LYRA_PYTHON": sys.executable,
        "LYRA_DEMO": str(demo).lower(),
    }
    os.chdir(settings.BASE_DIR)  # where `-m` finds it
    supervisord = [sys.executable, "-m", "lyra_site.supervisor"]
    os.execve(  # noqa: S606  no shell is wanted
        sys.executable,
        [*supervisord, "--configuration", str(CONFIGURATION)],
        os.environ | environment,
    )
