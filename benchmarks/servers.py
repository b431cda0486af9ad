"""Servers of one model to put load on: ours, as gunicorn runs it, and its peers.

Ours has a LYRA_HOME of its own, one web process, and the token of a user who may only call. Peers
are no dependencies of the project; each has a virtual environment of its own, DIR/NAME, with

    DIR/NAME/bin/pip install -r requirements.txt
    DIR/NAME/bin/pip install -r benchmarks/peers/NAME.txt

All serve one adapted model. BentoML, LitServe and MLServer run our engine and its adapter in
benchmarks/peers/, batching as their documentation has it. The others take no adapter and get it
merged into the weights. infinity runs as it is shipped, on torch (without BetterTransformer, which
is no longer made for such versions of transformers): its classifier takes single texts, so it is
sent “premise [SEP] hypothesis”: as much to compute, and another answer. fastapi is the upstream's
own style.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_app.nli.encoding import Pair
from benchmarks.load import OK, Client, Target
from benchmarks.peers.model import HOME, MAX_BATCH, MAX_WAIT_S
from benchmarks.serving import ALLOCATOR, MERGED, ROOT

HOST = "127.0.0.1"
STARTING_S, STOPPING_S, POLL_S = 180.0, 30.0, 0.2
PROBE = ("It rains.", "It is dry.")
LOG_TAIL = 2000  # characters
# Of the environment a benchmark is started in: what would lead out of a server's own home.
OUTSIDE = ("DATABASE_URL", "WEB_CONCURRENCY", "GUNICORN_CMD_ARGS", "PROMETHEUS_MULTIPROC_DIR")
# Programs in a home of ours.
MAKE_CALLER = """
import django
django.setup()
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from lyra_site import tokens
call_command("migrate", verbosity=0)
caller = User.objects.create_user("caller")
caller.groups.add(Group.objects.get(name="caller"))
print(tokens.issue(caller, days=1)[1])
"""
SERVE_ADAPTED = """
import sys
import django
django.setup()
from benchmarks import versions
versions.serve_adapted(*sys.argv[1:])
"""


@dataclass(frozen=True)
class Dialect:
    """How a server is asked about n pairs, and where its answer says how sure it is of each."""

    path: str
    request: Callable[[Sequence[Pair]], Any]
    confidences: Callable[[Any], list[float]]  # n softmax values of the likeliest labels


@dataclass(frozen=True)
class Server:
    """A server that was started; `target` is its door for predictions."""

    name: str
    target: Target
    dialect: Dialect
    process: subprocess.Popen[bytes]
    log: Path

    def body(self, pairs: Sequence[Pair]) -> bytes:
        return json.dumps(self.dialect.request(pairs)).encode()

    def confidences(self, pairs: Sequence[Pair]) -> list[float]:
        """What it answers; raises SystemExit if it does not."""
        client = Client(self.target)
        status, _, body = client.ask(self.body(pairs))
        client.close()
        if status != OK:
            raise SystemExit(f"{self.name} answered {status}: {body[:LOG_TAIL].decode()}")
        return self.dialect.confidences(json.loads(body))

    def wait_until_it_answers(self) -> None:
        """Raises SystemExit, with the end of its log, if it does not within STARTING_S."""
        client, body = Client(self.target), self.body([PROBE])
        deadline = time.monotonic() + STARTING_S
        while (sample := client.sample(body)).status != OK:
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")[-LOG_TAIL:]
                raise SystemExit(f"{self.name} does not answer ({sample.status}):\n{said}")
            time.sleep(POLL_S)
        client.close()


@contextmanager
def paused(servers: Sequence[Server]) -> Iterator[None]:
    """In this block they take no processor time: some look for work all the time."""
    for server in servers:
        os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for server in servers:
            os.killpg(server.process.pid, signal.SIGCONT)


@dataclass(frozen=True)
class Peer:
    """A framework: the package it needs, and the command that serves, given the directory of its
    environment's programs, the model's home and a port."""

    package: str
    command: Callable[[Path, Path, int], list[str]]
    dialect: Dialect
    takes_pairs: bool = True  # so that its answers have to be ours
    takes_adapters: bool = True  # else it serves home/merged

    def is_installed(self, programs: Path) -> bool:
        """Whether its environment is there and has the package; imports nothing."""
        python = programs / "python"
        look = f"import importlib.util as u, sys; sys.exit(u.find_spec('{self.package}') is None)"
        return python.exists() and subprocess.run([python, "-c", look], check=False).returncode == 0


def _ours(pairs: Sequence[Pair]) -> Any:
    return {"pairs": [{"premise": p, "hypothesis": h} for p, h in pairs]}


OURS = Dialect(
    "/api/v1/nli",
    _ours,
    lambda answer: [result["raw_confidence"] for result in answer["results"]],
)


@dataclass(frozen=True)
class Site:
    """home/site is the LYRA_HOME that `ours` copies, where v1 serves; `token` is its caller's."""

    home: Path
    base: str
    token: str


def make_site(home: Path, base: str) -> Site:
    """Make the site of a base, by name, with a version that serves and a user who may only call.

    What torch says of the base is in home/references already, and the version's adapter, the first
    one, in home/adapters: `serving.prepare` writes both.
    """
    site = home / "site"
    shutil.copytree(home / "references", site / "references")
    token = make_caller(site)
    _in_home(site, SERVE_ADAPTED, base, str(home), LYRA_BASE_MODEL=base)
    return Site(home, base, token)


def make_caller(home: Path) -> str:
    """Migrate the LYRA_HOME if need be, and make a user there who may call; the user's token."""
    return _in_home(home, MAKE_CALLER).split()[-1]


def _in_home(home: Path, program: str, *arguments: str, **settings: str) -> str:
    """What a program says that knows of Django and of this LYRA_HOME."""
    django = {"DJANGO_SETTINGS_MODULE": "lyra_site.settings"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=own_environment(home) | django | settings,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


@contextmanager
def ours(
    site: Site, name: str, *, application: str = "lyra_site.wsgi", **settings: str
) -> Iterator[Server]:
    """Our server in a home of its own, started as lyra_site/supervisord.conf does."""
    own, port = site.home / name, free_port()
    shutil.copytree(site.home / "site", own)
    environment = own_environment(own) | {
        "LYRA_BASE_MODEL": site.base,
        "PORT": str(port),
        **settings,
    }
    gunicorn = [sys.executable, "-m", "gunicorn", "--config", "lyra_site/gunicorn_conf.py"]
    target = Target(f"http://{HOST}:{port}{OURS.path}", {"Authorization": f"Token {site.token}"})
    log = site.home / f"{name}.log"
    with running([*gunicorn, application], environment, log) as process:
        yield Server(name, target, OURS, process, log)


@contextmanager
def peer(name: str, programs: Path, home: Path) -> Iterator[Server]:
    """A peer on the adapted model in `home`, by the programs of its environment."""
    kind, port, log = PEERS[name], free_port(), home / f"{name}.log"
    environment = _inherited() | {
        HOME: str(home),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    }
    with running(kind.command(programs, home, port), environment, log) as process:
        target = Target(f"http://{HOST}:{port}{kind.dialect.path}")
        yield Server(name, target, kind.dialect, process, log)


def _bentoml(programs: Path, home: Path, port: int) -> list[str]:
    service = "benchmarks.peers.with_bentoml:Nli"
    return [str(programs / "bentoml"), "serve", service, "--host", HOST, "--port", str(port)]


def _litserve(programs: Path, home: Path, port: int) -> list[str]:
    return [str(programs / "python"), "-m", "benchmarks.peers.with_litserve", str(port)]


def _mlserver(programs: Path, home: Path, port: int) -> list[str]:
    directory = home / "mlserver"
    directory.mkdir()
    server = {"host": HOST, "http_port": port, "grpc_port": free_port()}
    model = {
        "name": "nli",
        "implementation": "benchmarks.peers.with_mlserver.Nli",
        "max_batch_size": MAX_BATCH,
        "max_batch_time": MAX_WAIT_S,
    }
    (directory / "settings.json").write_text(json.dumps(server | {"metrics_port": free_port()}))
    (directory / "model-settings.json").write_text(json.dumps(model))
    return [str(programs / "mlserver"), "start", str(directory)]


def _infinity(programs: Path, home: Path, port: int) -> list[str]:
    where = ["--host", HOST, "--port", str(port), "--url-prefix", "", "--device", "cpu"]
    model = shutil.copytree(home / MERGED, home / "infinity")
    tokenizer = model / "tokenizer_config.json"
    older = {"tokenizer_class": "PreTrainedTokenizerFast"}  # it knows no class of transformers 5
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | older))
    command = [str(programs / "infinity_emb"), "v2", "--no-bettertransformer", "--no-model-warmup"]
    return [*command, "--model-id", str(model), *where]


def _fastapi(programs: Path, home: Path, port: int) -> list[str]:
    app = "benchmarks.peers.with_fastapi:app"
    where = ["--host", HOST, "--port", str(port), "--log-level", "warning"]
    return [str(programs / "python"), "-m", "uvicorn", app, *where]


def _mlserver_request(pairs: Sequence[Pair]) -> Any:
    texts = zip(("premise", "hypothesis"), zip(*pairs, strict=True), strict=True)
    shape = {"shape": [len(pairs), 1], "datatype": "BYTES"}
    return {"inputs": [{"name": name, "data": data, **shape} for name, data in texts]}


def _upstream_request(pairs: Sequence[Pair]) -> Any:
    return {"pairs": [{"premise": p, "nli_hypothesis": h} for p, h in pairs]}


PEERS = {
    "bentoml": Peer(
        "bentoml", _bentoml, Dialect("/classify", lambda pairs: {"pairs": pairs}, list)
    ),
    "litserve": Peer(
        "litserve",
        _litserve,
        Dialect("/predict", lambda pairs: {"pairs": pairs}, lambda answer: answer["confidences"]),
    ),
    "mlserver": Peer(
        "mlserver",
        _mlserver,
        Dialect(
            "/v2/models/nli/infer",
            _mlserver_request,
            lambda answer: answer["outputs"][0]["data"],
        ),
    ),
    "infinity": Peer(
        "infinity_emb",
        _infinity,
        Dialect(
            "/classify",
            lambda pairs: {"input": [f"{p} [SEP] {h}" for p, h in pairs], "model": "model"},
            lambda answer: [max(label["score"] for label in row) for row in answer["data"]],
        ),
        takes_pairs=False,
        takes_adapters=False,
    ),
    "fastapi": Peer(
        "fastapi",
        _fastapi,
        Dialect(
            "/nli",
            _upstream_request,
            lambda answer: [result["confidence"] for result in answer["results"]],
        ),
        takes_adapters=False,
    ),
}


@contextmanager
def running(
    command: Sequence[str],
    environment: dict[str, str],
    log: Path,
    *,
    stopping_s: float = STOPPING_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, all of which is gone after the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(stopping_s)
        with suppress(ProcessLookupError):  # nobody is left of the group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def own_environment(home: Path) -> dict[str, str]:
    return _inherited() | {"LYRA_HOME": str(home)}


def _inherited() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LYRA_") and name not in OUTSIDE
    }
    return kept | ALLOCATOR


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
