"""supervisord as `manage.py run` becomes it: programs start at once, end with it however it ends,
and the demo says what to click.

    python -m lyra_site.supervisor --configuration lyra_site/supervisord.conf

`make stop` and supervisorctl talk to it as to any other.
"""

import contextlib
import ctypes
import signal
import sys

from supervisor import events, options, supervisord
from supervisor.compat import as_string

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Options(options.ServerOptions):
    def setpgrp(self) -> None:
        """What a program's process does first: SIGTERM to it when this one is killed.

        Nobody would start it again, and another `run` would find its port taken.
        """
        super().setpgrp()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor(supervisord.Supervisor):
    def runforever(self) -> None:
        events.subscribe(events.ProcessLogStdoutEvent, _show)
        # Its own loop first waits a second for something to happen, and only then starts what is to
        # run. Who answers need not wait, nor share the processors with the others' starts.
        min(self.process_groups.values()).transition()
        super().runforever()


def _show(event: events.ProcessLogStdoutEvent) -> None:
    """What a program with stdout_events_enabled says, for whoever reads this one's output.

    A log file named /dev/stdout would do where that is a terminal. In a file the two would write
    over one another, and a socket, which systemd gives, cannot be opened.
    """
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.write(as_string(event.data))
        sys.stdout.flush()


if __name__ == "__main__":
    # What its main() makes.
    supervisord.ServerOptions, supervisord.Supervisor = Options, Supervisor
    supervisord.main()
