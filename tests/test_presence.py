"""A web process says which base it answers with, from when it has loaded it to its end."""

import os
import socket
from unittest import mock

from django.db import OperationalError, connection

from adapters_app import liveness
from inference import engine, presence

pytest_plugins = ("tests.serving",)


def test_nothing_is_said_before_the_base_is_loaded(on_tiny, db):
    assert not presence.report()
    assert not liveness.servers().exists()


def test_a_process_names_itself_and_its_base(on_tiny, db, tiny, tiny_model):
    engine.warm()
    for _ in range(2):
        assert presence.report()
    process = liveness.servers().get()
    assert process.name == f"{socket.gethostname()}:{os.getpid()}"
    assert (process.base_name, process.base_fingerprint) == (tiny, tiny_model.fingerprint)


def test_a_database_that_is_away_is_told_later(on_tiny, db):
    engine.warm()
    error = OperationalError("database is locked")
    with mock.patch.object(connection, "cursor", side_effect=error):
        assert not presence.report()
    assert presence.report()
