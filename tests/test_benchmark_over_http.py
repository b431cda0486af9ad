"""benchmarks/over_http.py: its arithmetic, the load it makes, and a server of ours under it."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from benchmarks import load, one_server, over_http, servers, steps
from benchmarks.over_http import FEW, IN_PROCESS, MANY, ONE, OURS
from benchmarks.serving import REFERENCES, write_adapters
from benchmarks.traffic import Traffic

PATIENCE_S = 30.0


class Model(ThreadingHTTPServer):
    """Takes down who asks what; the first `full` requests are told to come back."""

    daemon_threads = True
    request_queue_size = 128  # or some who call at once are turned away where processors are busy

    def __init__(self, full: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.full, self.seen, self.connections = full, [], 0
        self.lock = threading.Lock()

    @property
    def target(self) -> load.Target:
        return load.Target(f"http://127.0.0.1:{self.server_port}/nli", {"Authorization": "Token t"})

    def process_request(self, request, address) -> None:
        self.connections += 1
        super().process_request(request, address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or head and body wait 40 ms for one another
    server: Model

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.seen.append((body, self.headers["Authorization"], self.path))
            refused = len(self.server.seen) <= self.server.full
        self.send_response(503 if refused else 200)
        if refused:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def model() -> Iterator[Model]:
    with serving(Model()) as server:
        yield server


@contextmanager
def serving(server: Model) -> Iterator[Model]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    with server:
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def bodies(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def test_a_closed_loop_sends_each_request_once_on_one_connection_per_client(model: Model) -> None:
    outcome = load.closed_loop(model.target, bodies(40), clients=3)
    assert sorted(body for body, _, _ in model.seen) == sorted(bodies(40))
    assert {(token, path) for _, token, path in model.seen} == {("Token t", "/nli")}
    assert {sample.status for sample in outcome.samples} == {200}
    assert model.connections <= 3
    found = load.summary(outcome, pairs=32)
    assert found["pairs_per_s"] == pytest.approx(32 * 40 / outcome.seconds)
    assert found["statuses"] == {"200": 40}


def test_refusals_are_told_apart_and_do_not_count_as_answers() -> None:
    with serving(Model(full=4)) as model:
        outcome = load.closed_loop(model.target, bodies(10), clients=2, patient=True)
        found = load.summary(outcome, pairs=1)
    assert found["statuses"] == {"200": 6, "503": 4}
    assert found["retry_after"] == 1
    assert found["refused_p99_ms"] > 0
    assert found["pairs_per_s"] == pytest.approx(6 / outcome.seconds)


def test_arrivals_at_random_are_all_sent_and_waiting_counts_from_when_they_are_due(
    model: Model,
) -> None:
    outcome = load.open_loop(model.target, bodies(30), rate=1000)
    assert sorted(body for body, _, _ in model.seen) == sorted(bodies(30))
    assert load.summary(outcome, pairs=1)["statuses"] == {"200": 30}
    late = load.Client(model.target).sample(b"1", due=0.0)
    assert late.ms > 1000  # the clock began long ago


def test_small_requests_go_on_until_the_large_ones_are_answered(model: Model) -> None:
    small, large = load.beside(model.target, bodies(100_000), [b"large"] * 5)
    assert len(large.samples) == 5
    assert len(small.samples) < 100_000


def test_a_server_that_is_gone_is_no_answer() -> None:
    with Model() as model:
        target = model.target
    outcome = load.closed_loop(target, bodies(2), clients=1)
    assert [sample.status for sample in outcome.samples] == [load.NO_ANSWER] * 2
    assert load.summary(outcome, pairs=1)["pairs_per_s"] == 0


def test_a_connection_that_was_closed_while_idle_is_opened_anew() -> None:
    class Closing(Handler):
        def do_POST(self) -> None:
            super().do_POST()
            self.close_connection = True  # and does not say so

    with serving(Model()) as model:
        model.RequestHandlerClass = Closing
        outcome = load.closed_loop(model.target, bodies(3), clients=1)
    assert {sample.status for sample in outcome.samples} == {200}


def test_percentiles_of_known_latencies() -> None:
    samples = [load.Sample(200, float(ms), "") for ms in range(1, 102)]
    samples += [load.Sample(503, 7.0, "1"), load.Sample(503, 9.0, "")]
    found = load.summary(load.Outcome(samples, seconds=2.0, client_seconds=0.5), pairs=4)
    assert (found["p50_ms"], found["p99_ms"]) == (51, 100)
    assert (found["retry_after"], found["client_share"]) == (0.5, 0.25)
    assert found["refused_p99_ms"] == pytest.approx(8.98)


def rounds(*rates: float) -> list[dict[str, float]]:
    return [{"pairs_per_s": rate} for rate in rates]


def test_a_ratio_is_the_median_of_the_someown() -> None:
    """The third round was slow for both: it does not make either the faster one."""
    measured = {
        OURS: {str(FEW): rounds(300, 360, 90)},
        "litserve": {str(FEW): rounds(200, 200, 60)},
    }
    assert over_http.ratio(measured, FEW, "litserve") == 1.5


def test_claims_are_made_of_the_arms_that_were_there() -> None:
    loads = {str(ONE): rounds(10), str(FEW): rounds(20), str(MANY): rounds(30)}
    slow = {str(ONE): rounds(1), str(FEW): rounds(2), str(MANY): rounds(40)}
    measured = {OURS: loads, "litserve": slow, "fastapi": loads, IN_PROCESS: loads}
    claims = {claim.what: claim for claim in over_http.claims(measured)}
    assert "ours / bentoml, 32 × 1" not in claims
    assert not claims["ours / litserve, 32 × 1"].kept
    assert not claims["ours / fastapi, 4 × 32"].kept
    assert claims["ours / the best peer (fastapi), 4 × 32"].kept
    assert claims["ours / in-process, 1 × 32"].kept


def test_another_model_is_found_out() -> None:
    over_http.check_alike({"ours": [0.5, 0.9], "litserve": [0.504, 0.899]})
    with pytest.raises(SystemExit, match="litserve serves another model"):
        over_http.check_alike({"ours": [0.5, 0.9], "litserve": [0.9, 0.5]})
    with pytest.raises(SystemExit, match="litserve serves another model"):
        over_http.check_alike({"ours": [0.5, 0.9], "litserve": [0.515, 0.909]})  # the bare base
    with pytest.raises(SystemExit, match="litserve answered 1 of 2"):
        over_http.check_alike({"ours": [0.5, 0.9], "litserve": [0.5]})


def test_nobody_refused_keeps_no_claim_about_refusals() -> None:
    one = {"pairs_per_s": 5.0, "p99_ms": 9.0, "statuses": {"200": 8, "0": 1}}
    two = {**one, "refused_p99_ms": 20.0, "retry_after": 0.5, "statuses": {"200": 4, "503": 4}}
    for some in ([one, two, two], [two, two, one]):
        figures = one_server.crowd(some)
        assert (figures["answered"], figures["refused"], figures["other"]) == (4, 4, 1)
        assert math.isnan(figures["retry_after"])
        assert math.isnan(figures["refused_p99_ms"])
    assert one_server.crowd([two, two])["retry_after"] == 0.5


def test_steps_add_up_to_the_whole_on_either_way() -> None:
    took = {one_server.ENGINE: 8.0}
    for number, step in enumerate(steps.STEPS, start=1):
        took[one_server.layer(steps.DIRECT, step)] = number * 2.0
        took[one_server.layer(steps.LONG, step)] = number**2
    table = one_server.layer_table(1, took)
    assert list(table.columns[3].cells) == ["12%"] * 8 + ["50%"]
    assert list(table.columns[5].cells) == [f"{2 * n + 1}.00" for n in range(8)] + [""]


def test_a_request_turns_back_where_it_asks_to(tmp_path: Path) -> None:
    """On either way, and whatever comes after is not done: who is not known gets as far, too."""
    (tmp_path / REFERENCES).mkdir()
    write_adapters(tmp_path, "minilm-nli")
    site = servers.make_site(tmp_path, "minilm-nli")
    with servers.ours(site, "ours", application=one_server.TURNING_BACK) as server:
        server.wait_until_it_answers()
        good, bad = server.body([servers.PROBE]), b'{"pairs": []}'
        nobody = load.Target(server.target.url, {"Authorization": "Token unknown"})

        def ask(target: load.Target, way: str, step: str, body: bytes) -> load.Answer:
            return load.Client(one_server.turning_back(target, way, step)).ask(body)

        for way in steps.WAYS:
            for step in [step for step in steps.STEPS if step != steps.WHOLE]:
                assert ask(server.target, way, step, good)[::2] == (200, b""), (way, step)
            assert ask(nobody, way, steps.ADMITTED, good).status == 200
            assert ask(nobody, way, steps.AUTHENTICATED, good).status == 401
            assert ask(server.target, way, steps.PARSED, bad).status == 200
            assert ask(server.target, way, steps.VALIDATED, bad).status == 400
            assert json.loads(ask(server.target, way, steps.WHOLE, good).body)["results"]


def test_no_two_requests_share_a_pair() -> None:
    with Traffic("short") as traffic:
        found = [*traffic.requests(3, 4), *traffic.requests(3, 4)]
    assert [len(request) for request in found] == [4] * 6
    assert len({pair for request in found for pair in request}) == 24


def test_a_peer_that_is_not_installed_is_said_to_be_missing(tmp_path: Path) -> None:
    assert not any(peer.is_installed(tmp_path) for peer in servers.PEERS.values())
    table = over_http.rate_table({}, ["mlserver"])
    assert "LEFT OUT" in list(table.columns[1].cells)[-1]


def test_our_server_answers_who_may_call_and_ends(tmp_path: Path) -> None:
    """The bundled base, adapted, by the default engine; loaded by another process; then gone."""
    (tmp_path / REFERENCES).mkdir()
    write_adapters(tmp_path, "minilm-nli")
    site = servers.make_site(tmp_path, "minilm-nli")
    with servers.ours(site, "ours") as server:
        server.wait_until_it_answers()
        assert len(server.confidences([servers.PROBE] * 3)) == 3
        answer = json.loads(load.Client(server.target).ask(server.body([servers.PROBE])).body)
        assert (answer["adapter"], answer["calibrator"]) == ("v1", "v1/c1 (temperature)")
        with Traffic("short") as traffic:
            outcome = traffic.closed(server.target, traffic.bodies(server, 4, pairs=2), clients=2)
            assert load.summary(outcome, pairs=2)["statuses"] == {"200": 4}
        anonymous = load.Client(load.Target(server.target.url))
        assert anonymous.sample(json.dumps({"pairs": []}).encode()).status == 401
        gunicorn = psutil.Process(server.process.pid)
        workers = gunicorn.children()
        assert len(workers) == 1
    assert not gunicorn.is_running()
    assert not psutil.wait_procs(workers, timeout=PATIENCE_S)[1]
