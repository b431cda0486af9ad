"""What is measured on our server alone: admission, and the steps that a prediction goes through."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from rich.table import Table

from adapters_app.nli.encoding import Pair
from benchmarks import load, serving
from benchmarks.claims import Claim, Report, table_of
from benchmarks.load import SHOWN, Rounds, median, shown
from benchmarks.servers import Server, Site, ours
from benchmarks.steps import HEADER, STEPS, WAYS, WHOLE
from benchmarks.traffic import Traffic

THREADS, CROWDING = 16, 4  # of a server that gets a crowd; its callers for each thread
REQUESTS_EACH = 20  # of such a caller
CLIENTS = 32  # who find out what rate a server reaches with single pairs
LARGE, LARGE_REQUESTS, MOST_BESIDE = 1000, 2, 4000  # pairs in a request, how many, single pairs
LAYERED = (1, 32)  # pairs in a request
PAIRS_PER_REQUEST = 8  # of what a round is given: one request of either size for so many
ENGINE = "the engine in a process without a server"
TURNING_BACK = "benchmarks.turning_back"


def admission(traffic: Traffic, site: Site, *, rounds: int, pairs: int) -> Report:
    """Who is refused, who waits for how long, and whether a large request starves small ones."""
    report = Report()
    with ours(site, "crowded", LYRA_THREADS=str(THREADS)) as server:
        server.wait_until_it_answers()
        _crowd(traffic, server, report, rounds)
    with ours(site, "loaded", LYRA_MAX_PAIRS=str(LARGE)) as server:
        server.wait_until_it_answers()
        _waiting(traffic, server, report, rounds, pairs)
        _starving(traffic, server, report, rounds, pairs)
    return report


def _crowd(traffic: Traffic, server: Server, report: Report, rounds: int) -> None:
    """More callers than there are places: they come back at once, or when they are told to."""
    callers = CROWDING * THREADS
    table = table_of(
        f"{callers} callers of single pairs, {THREADS} threads",
        ("refused ones come back",),
        ("pairs/s", "200", "503", "other", "p99 of 200, ms", "p99 of 503, ms"),
    )
    for back, patient in (("at once", False), ("as told", True)):
        found = []
        for _ in range(rounds):
            bodies = traffic.bodies(server, callers * REQUESTS_EACH)
            outcome = traffic.closed(server.target, bodies, callers, patient=patient)
            found.append(load.summary(outcome, 1))
        figures = crowd(found)
        table.add_row(back, *(f"{value:.1f}" for value in list(figures.values())[:-1]))
        report.figures[f"crowd, back {back}"] = found
        report.claims += [
            Claim(f"back {back}: p99 of a 503, ms", figures["refused_p99_ms"], high=50),
            Claim(f"back {back}: share of 503 with Retry-After", figures["retry_after"], low=1),
            Claim(f"back {back}: neither 200 nor 503", figures["other"], high=0),
        ]
    report.tables.append(table)


def crowd(rounds: Rounds) -> dict[str, float]:
    """Medians over the rounds, but for what must never be; NaN where a round refused nobody."""
    nobody = {"refused_p99_ms": float("nan"), "retry_after": float("nan")}
    found = [{**nobody, **each} for each in rounds]
    answered, refused = str(load.OK), str(load.UNAVAILABLE)
    counts = [each["statuses"] for each in rounds]
    others = [
        sum(n for status, n in each.items() if status not in (answered, refused)) for each in counts
    ]
    return {
        "pairs_per_s": median(found, "pairs_per_s"),
        "answered": statistics.median(each.get(answered, 0) for each in counts),
        "refused": statistics.median(each.get(refused, 0) for each in counts),
        "other": max(others),
        "p99_ms": median(found, "p99_ms"),
        "refused_p99_ms": median(found, "refused_p99_ms"),
        "retry_after": float(np.min([each["retry_after"] for each in found])),
    }


def _waiting(traffic: Traffic, server: Server, report: Report, rounds: int, pairs: int) -> None:
    """Single pairs arrive at random at a share of the rate that the server reaches with them."""
    found = []
    for _ in range(rounds):
        outcome = traffic.closed(server.target, traffic.bodies(server, pairs), CLIENTS)
        rate = serving.OPEN_LOOP_LOAD * load.summary(outcome, 1)["pairs_per_s"]
        bodies = traffic.bodies(server, 4 * pairs)
        each = load.summary(traffic.at_random(server.target, bodies, rate), 1)
        found.append({**each, "rate": rate, "ratio": each["p99_ms"] / each["p50_ms"]})
    share = f"{100 * serving.OPEN_LOOP_LOAD:.0f} % load"
    table = table_of(f"Single pairs at random, {share}", (), SHOWN)
    table.add_row(*shown(found))
    report.tables.append(table)
    report.figures["waiting"] = found
    report.claims.append(Claim(f"p99 / p50 at {share}", median(found, "ratio"), high=4))


def _starving(traffic: Traffic, server: Server, report: Report, rounds: int, pairs: int) -> None:
    """One caller's single pairs, alone and beside requests of LARGE pairs."""
    found = []
    for _ in range(rounds):
        alone = traffic.closed(server.target, traffic.bodies(server, pairs), 1)
        large = traffic.bodies(server, LARGE_REQUESTS, LARGE)
        small = traffic.bodies(server, MOST_BESIDE)
        beside, other = traffic.beside(server.target, small, large)
        check_statuses(f"a request of {LARGE} pairs", other, load.OK)
        each = {"alone": load.summary(alone, 1), "beside": load.summary(beside, 1)}
        found.append({**each, "ratio": each["beside"]["p99_ms"] / each["alone"]["p99_ms"]})
    table = table_of("One caller of single pairs", ("",), SHOWN)
    table.add_row("alone", *shown([each["alone"] for each in found]))
    table.add_row(f"beside requests of {LARGE}", *shown([each["beside"] for each in found]))
    report.tables.append(table)
    report.figures["starving"] = found
    what = f"p99 of single pairs beside {LARGE} / alone"
    report.claims.append(Claim(what, median(found, "ratio"), high=3))


# --- layers ---------------------------------------------------------------------------------------


def profile(traffic: Traffic, site: Site, *, rounds: int, pairs: int) -> Report:
    """How long one caller waits for requests that turn back after each step, and for the engine.

    On the direct way, which programs' predictions take, and on the long one beside it.
    """
    report = Report()
    engine = serving.Arm("openvino", site.home, serving.ALLOCATOR)
    with ours(site, "ours", application=TURNING_BACK) as server:
        server.wait_until_it_answers()
        for size in LAYERED:
            took = [
                _round(traffic, server, engine, traffic.requests(pairs // PAIRS_PER_REQUEST, size))
                for _ in range(rounds)
            ]
            p50 = {name: median(took, name) for name in took[0]}
            report.tables.append(layer_table(size, p50))
            report.figures[f"p50 ms, {size} pairs"] = took
    engine.close()
    return report


def _round(
    traffic: Traffic, server: Server, engine: serving.Arm, requests: Sequence[Sequence[Pair]]
) -> dict[str, float]:
    """Median milliseconds of the same requests by way and step (`layer`), and of the engine."""
    took = {}
    bodies = [server.body(request) for request in requests]
    for step in STEPS:
        for way in WAYS:
            outcome = traffic.closed(turning_back(server.target, way, step), bodies, 1)
            check_statuses(layer(way, step), outcome, load.OK)
            took[layer(way, step)] = statistics.median(sample.ms for sample in outcome.samples)
    pairs = [pair for request in requests for pair in request]
    took[ENGINE] = engine.ask("closed", pairs, batch=len(requests[0]))["p50_ms"]
    return took


def turning_back(target: load.Target, way: str, step: str) -> load.Target:
    """Requests to a server of TURNING_BACK that go so far on this way."""
    return replace(target, headers={**target.headers, HEADER: f"{way} {step}"})


def layer(way: str, step: str) -> str:
    """A name among figures."""
    return f"{way}: {STEPS[step]}"


def check_statuses(what: str, outcome: load.Outcome, expected: int) -> None:
    """Raises SystemExit where anything else came back."""
    for sample in outcome.samples:
        if sample.status != expected:
            raise SystemExit(f"{what}: {sample.status} instead of {expected}")


def layer_table(size: int, p50: Mapping[str, float]) -> Table:
    """What each step adds to the one before on either way, and the engine's share of the whole."""
    columns = [f"{way}, {what}" for way in WAYS for what in ("ms", "adds", "share")]
    table = table_of(f"One request of {size} pairs", ("goes as far as",), columns)
    before = dict.fromkeys(WAYS, 0.0)
    for step, name in STEPS.items():
        cells = []
        for way in WAYS:
            ms, whole = p50[layer(way, step)], p50[layer(way, WHOLE)]
            cells += [f"{ms:.2f}", f"{ms - before[way]:.2f}", f"{(ms - before[way]) / whole:.0%}"]
            before[way] = ms
        table.add_row(name, *cells)
    table.add_section()
    shares = {way: f"{p50[ENGINE] / p50[layer(way, WHOLE)]:.0%}" for way in WAYS}
    alone = f"{p50[ENGINE]:.2f}"
    table.add_row(ENGINE, *(cell for way in WAYS for cell in (alone, "", shares[way])))
    return table
