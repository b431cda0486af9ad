"""django-q2's cluster, made to die whole: what is killed never leaves half a cluster behind."""

import ctypes
import multiprocessing
import os
import signal
import sys
from typing import Any

from django.db import connection
from django_q import cluster
from django_q.management.commands import qcluster

from adapters_app import scratch, secret_key
from corrections import schema
from corrections.acting import Refused
from lyra_site import home

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class WholeSentinel(cluster.Sentinel):
    """Ends the cluster, for the supervisor to start it afresh, where one of its parts was killed.

    A process killed while it waits on a queue keeps the queue's lock for ever: the one that
    django-q2 starts in its place would wait for that lock, looking alive.
    """

    def reincarnate(self, process: multiprocessing.Process) -> None:
        if process.exitcode is not None and process.exitcode < 0:
            sys.exit(f"a process of the cluster was killed by signal {-process.exitcode}")
        super().reincarnate(process)


class Command(qcluster.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        home.use()  # before it forks: as long as any process of the cluster lives, it is in use
        if schema.is_behind():
            raise Refused(schema.RUN_MIGRATE)
        if problem := secret_key.problem():
            raise Refused(problem)
        secret_key.note()
        connection.close()  # no process may share it with its fork
        scratch.sweep()  # of a cluster that was killed with what it did
        cluster.Sentinel = WholeSentinel
        if sys.platform == "linux":
            os.register_at_fork(after_in_child=_end_with_parent)
        super().handle(*args, **options)


def _end_with_parent() -> None:
    """SIGTERM to this process when its parent dies, however that dies."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
