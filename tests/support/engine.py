"""A Docker engine of its own: dockerd with overlay2 over a temporary directory, without any network."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.processes import run, service

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Engine:
    """How to reach the engine."""

    host: str

    @property
    def env(self) -> Mapping[str, str]:
        return {**os.environ, "DOCKER_HOST": self.host}

    def docker(self, *arguments: str | Path) -> str:
        """What ``docker ARGUMENTS`` prints."""
        return run("docker", *arguments, env=self.env)


@contextmanager
def running_engine(root: Path) -> Iterator[Engine]:
    """The engine, whose socket and data lie in ``root`` (a short path: sockets have at most 107 bytes)."""
    socket = f"unix://{root}/engine.sock"
    engine = Engine(socket)
    command: list[str | Path] = [
        "dockerd",
        "--data-root", root / "data", "--exec-root", root / "exec", "--pidfile", root / "pid", "-H", socket,
        "--storage-driver", "overlay2", "--bridge", "none", "--iptables=false", "--ip6tables=false",
    ]  # fmt: skip

    def ready() -> bool:
        return subprocess.run(["docker", "info"], env=engine.env, capture_output=True, check=False).returncode == 0

    with service(command, ready, root / "engine.log"):
        yield engine
