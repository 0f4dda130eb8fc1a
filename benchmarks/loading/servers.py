"""The servers of a link: Debian's docker-registry, `slimgpu.store.serve` over a layout, and plain files by ranges.

The plain server, whose clients are the peers, hands bytes over within the kernel (``sendfile``) as slimgpu's does.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from link import Link

REPOSITORY = "bench/weights"
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Ports:
    """Where each server listens."""

    registry: int
    shelf: int
    files: int


def free_ports() -> Ports:
    """Three ports that are free on this machine, as a link without a namespace needs them."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        return Ports(*(int(probe.getsockname()[1]) for probe in probes))


@contextmanager
def servers(link: Link, ports: Ports, storage: Path, layout: Path, files: Path) -> Iterator[None]:
    """All three on ``link``, until the block ends."""
    me = (sys.executable, str(_HERE / "servers.py"))
    with (
        registry(storage, ports.registry, link.prefix),
        _running((*link.prefix, *me, "shelf", str(layout), str(ports.shelf)), ports.shelf, "/v2/", link.prefix),
        _running((*link.prefix, *me, "files", str(files), str(ports.files)), ports.files, "/", link.prefix),
    ):
        yield


@contextmanager
def registry(storage: Path, port: int, prefix: Sequence[str] = ()) -> Iterator[None]:
    """Debian's docker-registry over ``storage``."""
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "cache": {}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "benchmark"},
    }
    storage.mkdir(parents=True, exist_ok=True)
    path = storage / "config.yml"
    path.write_text(json.dumps(config))  # which is YAML, too
    with _running((*prefix, "docker-registry", "serve", str(path)), port, "/v2/", prefix):
        yield


@contextmanager
def _running(command: Sequence[str], port: int, path: str, prefix: Sequence[str]) -> Iterator[None]:
    """A server that answers; where it runs, only what is started there too can ask it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        retry = ("--retry", "100", "--retry-connrefused", "--retry-delay", "0", "--retry-max-time", "20")
        ask = [*prefix, "curl", "-s", "-o", os.devnull, *retry, f"http://127.0.0.1:{port}{path}"]
        if subprocess.run(ask, check=False).returncode or process.poll() is not None:
            raise click.ClickException(f"the server {' '.join(command)} does not answer")
        yield
    finally:
        process.terminate()
        process.wait()


class _Files(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root: ClassVar[Path]

    def do_HEAD(self) -> None:
        """How long a file is."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """A file or one range of it."""
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, end = self._span(size)
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("Accept-Ranges", "bytes")
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.end_headers()
            self.wfile.flush()
            while with_body and start < end:
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)

    def _span(self, size: int) -> tuple[int, int]:
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1, size) if last else size

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *arguments: Any) -> None:
        """A client went away."""


@click.group()
def main() -> None:
    """Started by ``benchmarks/load.py``."""


@main.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.argument("port", type=int)
def files(root: Path, port: int) -> None:
    """Serve the files below ROOT."""
    handler = type("_Handler", (_Files,), {"root": root})
    _Server(("127.0.0.1", port), handler).serve_forever()


@main.command()
@click.argument("layout", type=click.Path(path_type=Path))
@click.argument("port", type=int)
def shelf(layout: Path, port: int) -> None:
    """Serve an OCI layout as slimgpu does."""
    from slimgpu.store.serve import serving  # noqa: PLC0415
    from slimgpu.store.shelf import LayoutShelf  # noqa: PLC0415

    with serving(LayoutShelf(layout), port=port):
        threading.Event().wait()


if __name__ == "__main__":
    main()
