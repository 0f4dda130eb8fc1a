"""A containerd of its own over a temporary directory."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.processes import run, service

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONFIG = """
version = 2
root = "{root}/data"
state = "{root}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{root}/containerd.sock"
[ttrpc]
  address = "{root}/containerd.sock.ttrpc"
"""


@dataclass(frozen=True)
class Containerd:
    """How to reach it."""

    address: Path

    def ctr(self, *arguments: str | Path) -> str:
        """What ``ctr ARGUMENTS`` prints."""
        return run("ctr", "--address", self.address, *arguments)


@contextmanager
def running_containerd(root: Path) -> Iterator[Containerd]:
    config = root / "config.toml"
    config.write_text(_CONFIG.format(root=root))
    containerd = Containerd(root / "containerd.sock")

    def ready() -> bool:
        command: list[str | Path] = ["ctr", "--address", containerd.address, "version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    with service(["containerd", "--config", config], ready, root / "containerd.log"):
        yield containerd
