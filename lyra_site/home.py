"""One running system per LYRA_HOME: who holds the lock file may write where others would read."""

import fcntl
import os
from typing import TextIO

from django.conf import settings

from corrections.acting import Refused


def lock() -> TextIO:
    """Lock this home for as long as the returned file is open; raises Refused where it is taken."""
    file = open(settings.LYRA_HOME / "run.lock", "a+")  # noqa: SIM115  the caller keeps it open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise Refused(
            f"A server is running in {settings.LYRA_HOME} already (process {holder}). "
            "Stop it first, or give this one a LYRA_HOME of its own."
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
