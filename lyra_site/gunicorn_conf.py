"""How gunicorn serves: threads, one model per process, nothing written outside LYRA_HOME.

WEB_CONCURRENCY, which gunicorn reads itself, is the number of processes (default 1).
"""

import ctypes
import gc
import os
import shutil
import sys
from typing import Any

from django.conf import settings
from django.db import connections

from adapters_app import scratch
from lyra_site import database, home

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lyra_site.settings")
# Each request's thread encodes its own pairs: threads of the tokenizer's would only wait beside the
# model's.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

bind = f"{settings.LYRA_HOST}:{settings.LYRA_PORT}"
worker_class = "lyra_site.slow_clients.Worker"  # gthread
# Predictions wait for one another in the model, where the queue is bounded (inference.batching).
threads = settings.LYRA_THREADS
# Each process loads the model by itself: torch's thread pools and CUDA do not survive a fork.
preload_app = False
timeout = 120
graceful_timeout = 20
# Python waits for a client in it without end, past what slow_clients allows.
sendfile = False
worker_tmp_dir = str(settings.LYRA_HOME)
# Its default is one socket per login, which two homes would share.
control_socket_disable = True
# Opening SQLite costs a prediction more than all that it asks there. Only here: what forks, as the
# task queue does, must not bring an open connection of SQLite's to the other side.
KEEP_CONNECTION_S = 60
GARBAGE = 10_000  # new objects between two looks for unreachable ones
# How long a thread that computes keeps others from Python: a refusal needs it three times. Python's
# own 5 ms make a crowd's wait a third longer; answers take as long with either.
SWITCH_S = 0.001
# Of glibc's allocator, whose threads otherwise come to have up to eight for each processor; what is
# freed in one the others do not use. Python lets one thread at a time allocate, nearly always.
ARENAS, M_ARENA_MAX = 2, -8  # M_ARENA_MAX: mallopt(3)
# prometheus_client's name for where several processes count together.
COUNTED_IN = "PROMETHEUS_MULTIPROC_DIR"


def post_fork(server: Any, worker: Any) -> None:
    """In each process that serves, before it loads anything."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(M_ARENA_MAX, ARENAS)


def post_worker_init(worker: Any) -> None:
    """In each process that serves, before its first request."""
    connections.settings["default"]["CONN_MAX_AGE"] = KEEP_CONNECTION_S
    database.limit_waiting()
    sys.setswitchinterval(SWITCH_S)
    # What is there now stays: not to be looked through again and again beside requests, whose own
    # garbage is nearly all freed without it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, *gc.get_threshold()[1:])


def on_starting(server: Any) -> None:
    """In the master, before it forks."""
    home.use()
    scratch.sweep()
    if server.cfg.workers > 1 and COUNTED_IN not in os.environ:
        # Or /metrics would tell what one process counted, whichever is asked: they count in files
        # that are added up. prometheus_client looks for this variable when it is imported.
        server.counted_in = os.environ[COUNTED_IN] = str(scratch.keep_in_memory())


def on_exit(server: Any) -> None:
    """In the master, when all others have ended; what a killed one leaves, the next one sweeps. A
    directory that the operator named is theirs."""
    if hasattr(server, "counted_in"):
        shutil.rmtree(server.counted_in, ignore_errors=True)
