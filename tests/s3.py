"""The part of S3 that artifact storage uses, on a port of this machine; it can be told to fail."""

import threading
from collections.abc import Iterator
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from botocore.config import Config

BUCKET = "bucket"


class Server(ThreadingHTTPServer):
    """Objects in memory. `refuses`: the status every request gets instead of an answer;
    `breaks_off`: bodies end in the middle."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.refuses = 0
        self.breaks_off = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def go_away(self) -> None:
        """Nothing listens on the port any more."""
        self.shutdown()
        self.server_close()


@pytest.fixture
def s3(settings) -> Iterator[Server]:
    """Artifacts are in S3, as `LYRA_ARTIFACTS=s3://bucket/lyra` has it; nothing is tried twice."""
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    options = {
        "bucket_name": BUCKET,
        "location": "lyra",
        "file_overwrite": False,
        "endpoint_url": server.url,
        "access_key": "key",
        "secret_key": "secret",
        "region_name": "here",
        "client_config": Config(retries={"total_max_attempts": 1}),
    }
    backend = {"BACKEND": "adapters_app.s3.S3ArtifactStorage", "OPTIONS": options}
    settings.STORAGES = settings.STORAGES | {"artifacts": backend}
    yield server
    server.go_away()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self._may():
            self.server.objects[self._key()] = content
            self._answer(200, headers={"ETag": _etag(content)})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if not self._may():
            return
        key, query = self._key(), parse_qs(urlsplit(self.path).query)
        if not key:
            self._answer(200, self._listing(query["prefix"][0]).encode())
        elif key in self.server.objects:
            content = self.server.objects[key]
            modified = {"Last-Modified": formatdate(usegmt=True), "ETag": _etag(content)}
            self._answer(200, content, headers=modified)
        else:
            self._answer(404)

    def do_DELETE(self) -> None:
        if self._may():
            self.server.objects.pop(self._key(), None)
            self._answer(204)

    def log_message(self, *_: object) -> None:
        """Not to the test's output."""

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").removeprefix("/")

    def _may(self) -> bool:
        if self.server.refuses:
            self._answer(self.server.refuses)
        return not self.server.refuses

    def _listing(self, prefix: str) -> str:
        """One page, as with Delimiter=/."""
        names = {key[len(prefix) :] for key in self.server.objects if key.startswith(prefix)}
        files = sorted(name for name in names if "/" not in name)
        directories = sorted({name.split("/")[0] for name in names if "/" in name})
        found = "".join(
            f"<Contents><Key>{escape(prefix + name)}</Key></Contents>" for name in files
        )
        found += "".join(
            f"<CommonPrefixes><Prefix>{escape(prefix + name)}/</Prefix></CommonPrefixes>"
            for name in directories
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"

    def _answer(
        self, status: int, content: bytes = b"", *, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.server.breaks_off else content)


def _etag(content: bytes) -> str:
    return f'"{md5(content, usedforsecurity=False).hexdigest()}"'
