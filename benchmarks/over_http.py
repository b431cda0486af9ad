"""How fast are answers over HTTP, who is refused how soon, and where does a request's time go?

    python benchmarks/over_http.py [--quick] [--shape minilm|xsmall|small] [--mix short|streams]
        [--arms NAME …] [--peers DIR] [--rounds 5] [--out FILE] [--admission | --profile]

The same adapted model behind our server (gunicorn, one process, its default threads; a version that
was promoted, with a temperature; authentication and validation as for everybody), behind the peers
of `servers` (DIR has their environments), and in a process without a server. Callers share the
processors with all of them. Rounds take turns; ratios are medians over rounds of ratios within a
round. Every request has pairs never seen before. An arm that cannot be had is left out, and the
table says so.

--admission: what is beyond the queue's bound is refused soon and told when to come back; waiting at
80 % load; single pairs beside a large request. --profile: one caller of ours, step by step, on the
direct way and on the long one.
Prints tables and fails where a limit is broken; --quick prints one line, and two rounds prove
nothing.
"""

import argparse
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

import numpy as np
from rich.table import Table

from benchmarks import one_server, serving
from benchmarks.claims import Claim, Report, table_of, tell, write
from benchmarks.load import SHOWN, Rounds, median, shown, summary
from benchmarks.servers import PEERS, Server, Site, make_site, ours, paused, peer
from benchmarks.traffic import Traffic

RESULTS = Path(__file__).resolve().parent / "results"
OURS, IN_PROCESS = "ours", "in-process"
ARMS = (OURS, *PEERS, IN_PROCESS)
# In the mean: bf16 is 0.001 to 0.002 from fp32, the base without its adapter 0.011.
SAME_CONFIDENCE = 0.005
COMPARED_PAIRS = 16


@dataclass(frozen=True)
class Workload:
    """A closed loop."""

    clients: int
    pairs: int  # in each request

    def __str__(self) -> str:
        return f"{self.clients} × {self.pairs}"


ONE, FEW, MANY = Workload(1, 32), Workload(4, 32), Workload(32, 1)
# What our rate is at least to be, as a multiple of a rival's.
LIMITS = (
    (ONE, IN_PROCESS, 0.70),
    (FEW, IN_PROCESS, 0.74),
    (FEW, "fastapi", 6.0),
    (MANY, "bentoml", 1.05),
    (MANY, "litserve", 1.05),
    (MANY, "mlserver", 0.9),
    (MANY, "infinity", 2.5),
)
BEST_PEER = 0.95  # the same for the best peer on FEW

Measured = dict[str, dict[str, list[Mapping[str, Any]]]]  # arm → workload → rounds


def rates(traffic: Traffic, site: Site, options: argparse.Namespace) -> Report:
    """Pairs a second and latencies of every arm on every workload, and our ratios."""
    asked = {name: programs(options.peers, name) for name in PEERS if name in options.arms}
    there = {name: path for name, path in asked.items() if PEERS[name].is_installed(path)}
    with ExitStack() as stack:
        starting = [ours(site, OURS)] if OURS in options.arms else []
        starting += [peer(name, path, site.home) for name, path in there.items()]
        servers = [stack.enter_context(server) for server in starting]
        for server in servers:
            server.wait_until_it_answers()
        (pairs,) = traffic.requests(1, COMPARED_PAIRS)
        alone = [stack.enter_context(in_process(site))] if IN_PROCESS in options.arms else []
        alike = [each for each in servers if each.name == OURS or PEERS[each.name].takes_pairs]
        confidences = {server.name: server.confidences(pairs) for server in alike}
        for arm in alone:
            found = arm.ask("answer", pairs)["probabilities"]
            confidences[IN_PROCESS] = [max(each) for each in found]
        check_alike(confidences)
        measured = measure(traffic, servers, alone, options)
    left_out = [name for name in asked if name not in there]
    figures = {"rounds": measured, "left out": left_out}
    return Report([rate_table(measured, left_out)], figures, claims(measured))


@contextmanager
def in_process(site: Site) -> Iterator[serving.Arm]:
    """The engine on the same adapted model, without a server."""
    arm = serving.Arm("openvino", site.home, serving.ALLOCATOR)
    try:
        yield arm
    finally:
        arm.close()


def programs(peers: Path | None, name: str) -> Path:
    """Where the programs of a peer's environment are; without --peers, those of this one."""
    return peers / name / "bin" if peers else Path(sys.executable).parent


def check_alike(confidences: Mapping[str, Sequence[float]]) -> None:
    """Raises SystemExit where an arm does not answer as the first one does."""
    expected = next(iter(confidences.values()), [])
    for name, found in confidences.items():
        if len(found) != len(expected):
            raise SystemExit(f"{name} answered {len(found)} of {len(expected)} pairs")
        away = np.abs(np.subtract(found, expected)).mean()
        if away > SAME_CONFIDENCE:
            raise SystemExit(f"{name} serves another model: confidences are {away:.4f} apart")


def measure(
    traffic: Traffic,
    servers: Sequence[Server],
    alone: Sequence[serving.Arm],
    options: argparse.Namespace,
) -> Measured:
    """Every server on the same requests in each round, in an order that changes, each alone.

    `alone`: the arm without a server, if it was asked for.
    """
    measured: Measured = {name: {} for name in options.arms if name not in PEERS}
    for turn in range(options.rounds):
        for workload in (ONE, FEW, MANY):
            requests = traffic.requests(options.pairs // workload.pairs, workload.pairs)
            for server in random.Random(turn).sample(servers, len(servers)):
                bodies = [server.body(request) for request in requests]
                with paused([other for other in servers if other is not server]):
                    outcome = traffic.closed(server.target, bodies, workload.clients)
                found = summary(outcome, workload.pairs)
                measured.setdefault(server.name, {}).setdefault(str(workload), []).append(found)
            for arm in alone if workload.pairs > 1 else ():
                pairs = [pair for request in requests for pair in request]
                with paused(servers):
                    found = arm.ask("closed", pairs, batch=workload.pairs)
                measured[IN_PROCESS].setdefault(str(workload), []).append(found)
    return measured


def claims(measured: Measured) -> list[Claim]:
    """Our ratios to the arms that were there, and what they have to be."""
    if OURS not in measured:
        return []
    found = [
        Claim(f"{OURS} / {rival}, {workload}", ratio(measured, workload, rival), low=low)
        for workload, rival, low in LIMITS
        if rival in measured
    ]
    if peers := [name for name in PEERS if name in measured]:
        best = max(peers, key=lambda name: median(measured[name][str(FEW)], "pairs_per_s"))
        what = f"{OURS} / the best peer ({best}), {FEW}"
        found.append(Claim(what, ratio(measured, FEW, best), low=BEST_PEER))
    return found


def ratio(measured: Measured, workload: Workload, rival: str) -> float:
    """Our rate as a multiple of the rival's: the median over rounds."""
    rounds = zip(measured[OURS][str(workload)], measured[rival][str(workload)], strict=True)
    return statistics.median(mine["pairs_per_s"] / its["pairs_per_s"] for mine, its in rounds)


def rate_table(measured: Measured, left_out: Sequence[str]) -> Table:
    """One line per load and arm; the arms that are not there come last."""
    table = table_of("Clients × pairs in a request", ("load", "arm"), SHOWN)
    for workload in map(str, (ONE, FEW, MANY)):
        for name, found in measured.items():
            if workload in found:
                table.add_row(workload, name, *_shown(name, found[workload]))
        table.add_section()
    for name in left_out:
        table.add_row("–", f"[bold red]{name}: LEFT OUT, {PEERS[name].package} is not installed[/]")
    return table


def _shown(arm: str, rounds: Rounds) -> list[str]:
    if arm != IN_PROCESS:
        return shown(rounds)
    return [f"{median(rounds, figure):.1f}" for figure in ("pairs_per_s", "p50_ms")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one line within a minute")
    parser.add_argument("--shape", choices=("minilm", *serving.DEBERTA), default="minilm")
    parser.add_argument("--mix", choices=sorted(serving.MIXES), default="short")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=512, help="in a round of an arm")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--peers", type=Path, help="an environment for each peer: DIR/NAME")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--admission", action="store_true")
    what.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "over_http.json")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.pairs = 2, 128
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the servers are, too
    with tempfile.TemporaryDirectory() as directory, Traffic(options.mix) as traffic:
        merged = not all(PEERS[name].takes_adapters for name in PEERS if name in options.arms)
        serving.prepare(options.shape, Path(directory), merged=merged)
        site = make_site(Path(directory), str(Path(directory) / "model"))
        sizes = {"rounds": options.rounds, "pairs": options.pairs}
        if options.admission:
            report = one_server.admission(traffic, site, **sizes)
        elif options.profile:
            report = one_server.profile(traffic, site, **sizes)
        else:
            report = rates(traffic, site, options)
    report.figures["options"] = {name: str(value) for name, value in vars(options).items()}
    if not (options.quick and report.claims):
        return tell(report, options.out)
    write(report, options.out)
    found = [f"{claim.what}: {claim.value:.2f}" for claim in report.claims]
    print("; ".join(found + [f"LEFT OUT: {name}" for name in report.figures.get("left out", [])]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
