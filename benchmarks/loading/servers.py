"""The servers of a link: Debian's docker-registry, slimgpu's own over a layout, and plain files by ranges.

The plain server, whose clients are the peers, hands bytes over within the kernel (``sendfile``) as slimgpu's does.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from slimgpu.bench.link.helper import helper
from slimgpu.bench.link.keep import keep_arguments
from slimgpu.bench.link.link import free_ports
from slimgpu.bench.registry import debian_registry, layout_registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.bench.link.values import Link

REPOSITORY = "bench/weights"
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Ports:
    """Where each server listens."""

    registry: int
    shelf: int
    files: int


def ports() -> Ports:
    """Three that are free on this machine, as a link without a namespace needs them."""
    return Ports(*free_ports(3))


@contextmanager
def servers(on: Link, at: Ports, storage: Path, layout: Path, files: Path) -> Iterator[None]:
    """All three on the registry's side of ``on``, until the block ends."""
    plain = [sys.executable, str(_HERE / "servers.py"), str(files), on.host(), str(at.files)]
    with (
        debian_registry(on, at.registry, storage),
        layout_registry(on, at.shelf, {REPOSITORY: layout}),
        helper("the server of files", keep_arguments(on.host(), at.files, plain), on.command([])),
    ):
        yield


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


def _main(root: str, host: str, port: str) -> None:
    """Serve the files below a folder."""
    handler = type("_Handler", (_Files,), {"root": Path(root)})
    _Server((host, int(port)), handler).serve_forever()


if __name__ == "__main__":
    _main(*sys.argv[1:])
