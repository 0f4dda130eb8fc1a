"""Debian's docker-registry on this machine, for as long as a demo needs one."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SECONDS = 20
_CONFIGURATION = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{root}"}}, cache: {{}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@contextmanager
def running_registry(root: Path) -> Iterator[str]:
    """``127.0.0.1:port`` of a registry that keeps its blobs in ``root``."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as configuration:
        configuration.write(_CONFIGURATION.format(root=root, port=port))
        configuration.flush()
        process = subprocess.Popen(
            ["docker-registry", "serve", configuration.name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _wait(process, port)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    sys.exit("docker-registry did not start")
