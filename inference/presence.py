"""Tells the database, for as long as this process serves, which base it answers with.

A version is promoted from anywhere (a command, another host); what it needs is the base that those
who answer have loaded, which neither the settings nor the files over there can tell.
"""

import atexit
import functools
import logging
import os
import socket
import threading

from django.db import Error, connection

from adapters_app import liveness, training
from inference import engine

logger = logging.getLogger(__name__)

REPORT_SECONDS = 30
LOADING_SECONDS = 1  # between two looks whether the base is loaded

_stop = threading.Event()


def report() -> bool:
    """Say which base this process has loaded; False where it has none yet or nobody could hear."""
    fingerprint = engine.loaded().base_fingerprint
    if not fingerprint:
        return False
    try:
        liveness.saw_server(_name(), base_name=training.base_label(), base_fingerprint=fingerprint)
    except Error as error:
        logger.warning("the database cannot be told that this process serves: %s", error)
        return False
    return True


@functools.cache
def start_reporting() -> None:
    """Report in a thread of this process, and take the report back when it ends."""
    atexit.register(_finish)
    threading.Thread(target=_report_for_ever, name="presence", daemon=True).start()


def _report_for_ever() -> None:
    pause: float = LOADING_SECONDS
    while not _stop.wait(pause):
        try:
            pause = REPORT_SECONDS if report() else LOADING_SECONDS
        except Exception:  # nobody would start this thread again
            logger.exception("this process could not report that it serves")
            pause = REPORT_SECONDS
        connection.close()  # this thread's own; idle connections are not kept


def _finish() -> None:
    _stop.set()
    try:
        liveness.server_ended(_name())
    except Error as error:
        logger.warning("the database cannot be told that this process ends: %s", error)
    connection.close()


def _name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
