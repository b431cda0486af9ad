"""How long until a server that was just started answers, and what memory does it take?

    python benchmarks/starting.py [--quick] [--arms openvino torch] [--starts 5] [--pairs 1500]
                                  [--out FILE]

What `make run` does once its environment is there, `manage.py run --demo`, in a home of its own:
first in an empty one, which is migrated before and filled while it starts, and asked at the path
that is open then; and once more in the same home, asked with a token. Seconds count from the
command to the first 200. Then several callers at once send pairs of all lengths, alone and by 32,
and the memory of gunicorn's processes is read before and after. Nothing is set but the engine: the
allocator is as the system has it. Prints tables and fails where a limit is broken; the files that
are read are in the page cache from the second start on. Linux only: memory is read from /proc.
"""

import argparse
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

from rich.table import Table

from benchmarks import servers
from benchmarks.claims import Claim, Report, table_of, tell
from benchmarks.load import OK, Client, Target, summary
from benchmarks.servers import HOST, OURS, PROBE
from benchmarks.traffic import Traffic

RESULTS = Path(__file__).resolve().parent / "results"
# Arm → what LYRA_ENGINE says; the first is the default's engine.
ENGINES = {"openvino": "auto", "torch": "torch"}
FIRST_ANSWER_S = {"openvino": 5.0, "torch": 15.0}
MOST_MB = 600.0  # of a web process with the default engine
EMPTY, AGAIN = STARTS = ("an empty home", "the same home again")
CALLERS, BATCH, BATCHED = 8, 32, 0.75  # callers at once; pairs in a large request; their share
POLL_S, PATIENCE_S = 0.05, 180.0
STOPPING_S = 60.0  # supervisord gives its programs 40
PROC = Path("/proc")
# Of the environment a benchmark is started in: what would make the allocator another.
ALLOCATING = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


@dataclass(frozen=True)
class Started:
    """A supervisor that was started, and when, on `time.perf_counter`'s clock."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    began: float

    def seconds_until(self, target: Target, body: bytes) -> float:
        """From the start to the first 200; raises SystemExit if there is none."""
        client = Client(target)
        while (sample := client.sample(body)).status != OK:
            if self.process.poll() is not None or time.perf_counter() > self.began + PATIENCE_S:
                said = self.log.read_text(errors="replace")[-servers.LOG_TAIL :]
                raise SystemExit(f"no answer at {target.url} ({sample.status}):\n{said}")
            time.sleep(POLL_S)
        client.close()
        return time.perf_counter() - self.began

    def seconds_until_demo(self, home: Path) -> float:
        """From the start until the demo's accounts and corrections are there."""
        said = home / "logs" / "supervisord.log"
        while "exited: demo (exit status 0" not in said.read_text():
            if time.perf_counter() > self.began + PATIENCE_S:
                raise SystemExit(f"no demo:\n{self.log.read_text(errors='replace')}")
            time.sleep(POLL_S)
        return time.perf_counter() - self.began


@contextmanager
def started(home: Path, engine: str) -> Iterator[Started]:
    """`make run` in `home`, without make; all that it started has ended after the block."""
    port, log = servers.free_port(), home.with_suffix(".log")
    environment = plain(servers.own_environment(home)) | {
        "LYRA_ENGINE": ENGINES[engine],
        "LYRA_COMPAT_OPEN": "1",  # as the Makefile has it
        "PORT": str(port),
    }
    began = time.perf_counter()
    command = [sys.executable, "manage.py", "run", "--demo"]
    with servers.running(command, environment, log, stopping_s=STOPPING_S) as process:
        yield Started(process, f"http://{HOST}:{port}", log, began)


def plain(environment: dict[str, str]) -> dict[str, str]:
    """Without what would make the allocator another than a user's."""
    return {k: v for k, v in environment.items() if not k.startswith(ALLOCATING)}


# --- one start ------------------------------------------------------------------------------------


def measure(arm: str, home: Path, traffic: Traffic, pairs: int) -> dict[str, Any]:
    """One start in an empty home and one more in the same, and what the latter takes."""
    with started(home, arm) as first:
        open_to_all = Target(f"{first.url}/nli")
        found: dict[str, Any] = {EMPTY: _waits(first, open_to_all, _upstream_body())}
        found[EMPTY]["demo_s"] = first.seconds_until_demo(home)
    token = servers.make_caller(home)
    with started(home, arm) as again:
        target = Target(f"{again.url}{OURS.path}", {"Authorization": f"Token {token}"})
        found[AGAIN] = _waits(again, target, json.dumps(OURS.request([PROBE])).encode())
        found["before"] = processes(again.process.pid)
        outcome = traffic.closed(target, _bodies(traffic, pairs), CALLERS)
        found["after"] = processes(again.process.pid)
        found["load"] = {**summary(outcome, 1), "pairs": pairs}
    if refused := [sample for sample in outcome.samples if sample.status != OK]:
        raise SystemExit(f"{len(refused)} requests were answered {refused[0].status}")
    return found


def _waits(server: Started, target: Target, body: bytes) -> dict[str, float]:
    """Seconds until the port answers, and until a pair is."""
    return {
        "livez_s": server.seconds_until(Target(f"{server.url}/livez", method="GET"), b""),
        "answer_s": server.seconds_until(target, body),
    }


def _upstream_body() -> bytes:
    premise, hypothesis = PROBE
    return json.dumps({"pairs": [{"premise": premise, "nli_hypothesis": hypothesis}]}).encode()


def _bodies(traffic: Traffic, pairs: int) -> list[bytes]:
    """About so many pairs of all lengths, some by BATCH and some alone, in any order."""
    batches = round(BATCHED * pairs / BATCH)
    requests = traffic.requests(batches, BATCH) + traffic.requests(pairs - batches * BATCH, 1)
    random.Random(0).shuffle(requests)
    return [json.dumps(OURS.request(request)).encode() for request in requests]


# --- memory ---------------------------------------------------------------------------------------


def processes(supervisor: int) -> dict[str, Any]:
    """gunicorn's master and worker under a supervisor, MB; whether the worker has loaded torch."""
    (master,) = (pid for pid in _children(supervisor) if b"gunicorn" in _command(pid))
    (worker,) = _children(master)
    return {
        "master": _memory(master),
        "worker": _memory(worker),
        "torch": "libtorch" in (PROC / str(worker) / "maps").read_text(),
    }


def _children(pid: int) -> list[int]:
    tasks = (PROC / str(pid) / "task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _command(pid: int) -> bytes:
    return (PROC / str(pid) / "cmdline").read_bytes()


def _memory(pid: int) -> dict[str, float]:
    """Resident, and with pages that are shared counted in part (PSS); private dirty; MB."""
    said = (PROC / str(pid) / "smaps_rollup").read_text()
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", said, re.MULTILINE))
    return {name.lower(): int(kilobytes[name]) / 1000 for name in ("Rss", "Pss", "Private_Dirty")}


# --- what is said ---------------------------------------------------------------------------------

Found = dict[str, list[dict[str, Any]]]  # arm → of each pair of starts, what `measure` says


def report_of(found: Found) -> Report:
    """Tables of waits and memory, and what they have to be."""
    report = Report([_wait_table(found), _memory_table(found)], {"starts": found})
    for arm, starts in found.items():
        for start in STARTS:
            seconds = statistics.median(each[start]["answer_s"] for each in starts)
            what = f"{arm}, {start}: first answer, s"
            report.claims.append(Claim(what, seconds, high=FIRST_ANSWER_S[arm]))
    if (default := next(iter(ENGINES))) in found:
        most = max(each["after"]["worker"]["rss"] for each in found[default])
        loaded = sum(each["after"]["torch"] for each in found[default])
        report.claims += [
            Claim(f"{default}: the web process after the load, MB", most, high=MOST_MB),
            Claim(f"{default}: starts that loaded torch", loaded, high=0),
        ]
    return report


def _wait_table(found: Found) -> Table:
    figures = [f"{what}, {how}" for what in ("/livez", "a pair") for how in ("median", "worst")]
    table = table_of("Seconds until the first 200 of", ("arm", "started in"), figures)
    for arm, starts in found.items():
        for start in STARTS:
            shown = []
            for key in ("livez_s", "answer_s"):
                seconds = [each[start][key] for each in starts]
                shown += [f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"]
            table.add_row(arm, start, *shown)
    return table


def _memory_table(found: Found) -> Table:
    kinds = {"RSS": "rss", "PSS": "pss"}
    figures = [f"{kind}, {how}" for kind in kinds for how in ("median", "worst")]
    pairs = next(iter(found.values()))[0]["load"]["pairs"]
    title = f"MB, before and after {pairs} pairs"
    table = table_of(title, ("arm", "process of gunicorn", ""), figures)
    for arm, starts in found.items():
        for process in ("master", "worker"):
            for when in ("before", "after"):
                shown = []
                for key in kinds.values():
                    taken = [each[when][process][key] for each in starts]
                    shown += [f"{statistics.median(taken):.0f}", f"{max(taken):.0f}"]
                table.add_row(arm, process, when, *shown)
        table.add_section()
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one start, half of the pairs")
    parser.add_argument("--arms", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--starts", type=int, default=5, help="of every arm, in turn")
    parser.add_argument("--pairs", type=int, default=1500, help="sent before memory is read")
    parser.add_argument("--out", type=Path, default=RESULTS / "starting.json")
    options = parser.parse_args()
    if options.quick:
        options.starts, options.pairs = 1, options.pairs // 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the servers are, too
    found: Found = {arm: [] for arm in options.arms}
    with tempfile.TemporaryDirectory() as directory, Traffic("all") as traffic:
        for turn in range(options.starts):
            for arm in options.arms:
                home = Path(directory) / f"{arm}-{turn}"
                found[arm].append(measure(arm, home, traffic, options.pairs))
    report = report_of(found)
    report.figures["options"] = {name: str(value) for name, value in vars(options).items()}
    return tell(report, options.out)


if __name__ == "__main__":
    sys.exit(main())
