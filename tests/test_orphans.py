"""What tests have started does not outlive them, however they end."""

import os
import signal
import subprocess
import sys

import psutil

from tests import orphans
from tests.conftest import ROOT

PATIENCE_S = 60
# Its child has a child in a session of its own, as a cluster's parts are.
TESTS = """
import subprocess, sys, time
from tests import orphans
orphans.watch()
child = '''
import subprocess, time
print(subprocess.Popen(["sleep", "600"], start_new_session=True).pid, flush=True)
time.sleep(600)
'''
print(subprocess.Popen([sys.executable, "-c", child]).pid, flush=True)
time.sleep(600)
"""


def test_what_killed_tests_have_started_is_killed_and_nothing_else() -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    tests = subprocess.Popen([sys.executable, "-c", TESTS], cwd=ROOT, stdout=subprocess.PIPE)
    left = [psutil.Process(int(tests.stdout.readline())) for _ in range(2)]
    os.kill(tests.pid, signal.SIGKILL)
    tests.wait()
    _, alive = psutil.wait_procs(left, timeout=PATIENCE_S)
    assert alive == []
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    tests.stdout.close()


def test_these_tests_are_watched() -> None:
    own = os.environ[orphans.VARIABLE]
    with subprocess.Popen(["sleep", "600"]) as child:
        assert child.pid in orphans.marked(own)
        assert os.getpid() not in orphans.marked(own)
        child.kill()
