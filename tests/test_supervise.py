"""What a training leaves on disk when its process is killed, and which logs are kept."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from adapters_app import supervise, training
from adapters_app.models import TrainingRun
from tests.conftest import ROOT
from tests.verdicts import accept

pytestmark = pytest.mark.django_db(transaction=True)

KILLED = """
import os, signal, django; django.setup()
from adapters_app import scratch
with scratch.directory() as directory:
    (directory / "adapter_model.safetensors").write_text("half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def run(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingRun:
    """A run whose trainer writes to scratch and is killed."""
    settings.LYRA_HOME = tmp_path

    def start(lease: training.Lease, output) -> subprocess.Popen[bytes]:
        environment = os.environ | {"LYRA_HOME": str(tmp_path)}
        command = [sys.executable, "-c", KILLED]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, start_new_session=True
        )

    monkeypatch.setattr(supervise, "_start", start)
    accept()
    return training.request(by=User.objects.create_user("tina"), enqueue=False)


def test_a_killed_trainer_leaves_no_scratch(run: TrainingRun, tmp_path: Path) -> None:
    assert supervise.train(run.pk)
    run.refresh_from_db()
    assert run.status == TrainingRun.Status.QUEUED  # the second attempt is to come
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_run_whose_output_cannot_be_written_ends_with_words(
    run: TrainingRun, tmp_path: Path
) -> None:
    """It was left to be taken for one whose trainer disappeared."""
    (tmp_path / "logs").write_text("in the way")
    assert supervise.train(run.pk)
    run.refresh_from_db()
    assert run.status == TrainingRun.Status.FAILED
    assert run.error == "The trainer's output cannot be written to the server's logs: File exists."


def test_what_runs_beside_the_server_gives_way_to_it() -> None:
    """A training by its own niceness, and by that of its session where the kernel goes by these."""
    child = supervise._child("run_training", "--help", stdout=subprocess.PIPE)
    own_session = Path(f"/proc/{child.pid}/autogroup")
    try:
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == supervise.NICENESS
        if own_session.exists():
            assert own_session.read_text().endswith(f"nice {supervise.NICENESS}\n")
            assert Path("/proc/self/autogroup").read_text() != own_session.read_text()
        output, _ = child.communicate(timeout=60)
    finally:
        supervise._kill(child)
    assert child.returncode == 0
    assert b"Carry out a queued training run" in output
    supervise._give_way(child.pid)  # one that has ended is no error


def test_the_newest_logs_are_kept_and_those_being_written(run: TrainingRun, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    # Higher numbers than the run's own, as after a restore of an older system.
    older = [logs / f"run-{run.pk + n}.log" for n in range(1, supervise.KEPT_LOGS + 4)]
    for minutes, path in enumerate(older):
        path.touch()
        os.utime(path, (60 * minutes, 60 * minutes))
    with older[0].open("ab") as written:
        fcntl.flock(written, fcntl.LOCK_SH)
        assert supervise.train(run.pk)
    others = older[len(older) - supervise.KEPT_LOGS + 1 :]
    assert set(logs.iterdir()) == {logs / f"run-{run.pk}.log", older[0], *others}
