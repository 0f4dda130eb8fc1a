"""Fresh processes over the original or the pruned libraries, and the proof of which ones they loaded."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHILD = Path(__file__).resolve().with_name("child.py")
_SCRATCH = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME", "HF_HOME")
"""Variables that say where a process keeps what it compiled: a directory for each process, so that each compiles."""

_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "HF_HUB_OFFLINE": "1",
    "NCCL_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TRITON_DISABLE_LINE_INFO": "1",  # it names files, which lie elsewhere in the copy
    "USE_TF": "0",
}


_LIVE: set[subprocess.Popen[bytes]] = set()


class ChildError(Exception):
    """A fresh process gave no result: it died, hung, or loaded what it should not."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Libraries to run on: where modules come from, and where none may come from."""

    name: str
    path: tuple[str, ...]
    """What ``sys.path`` holds after the standard library's place."""
    own: tuple[Path, ...]
    """Directories, one of which torch has to come from."""
    foreign: tuple[Path, ...]
    """Directories that no mapped file may lie in."""
    work: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, task: Sequence[str], timeout: float, more: Mapping[str, str] | None = None) -> dict[str, Any]:
        """A task of ``child.py`` in a fresh process; raises `ChildError` when there is no result to trust."""
        path = os.pathsep.join(self.path)
        with tempfile.TemporaryDirectory(prefix="process-", dir=self.work) as scratch:
            own = {name: str(Path(scratch, name.lower())) for name in _SCRATCH}
            environment = _ENVIRONMENT | own | {"PYTHONPATH": path} | dict(self.environment) | dict(more or {})
            # Without site, nothing but PYTHONPATH and the standard library can be imported.
            document = run_child(("-S",), task, environment, timeout, Path(scratch))
        self._check(document)
        return document

    def _check(self, document: Mapping[str, Any]) -> None:
        torch = Path(document["torch"])
        if not _beneath(torch, self.own):
            raise ChildError(f"torch came from {torch}, not from the {self.name} libraries")
        astray = [name for name in document["mapped"] if _beneath(Path(name), self.foreign)]
        if astray:
            raise ChildError(f"a process of the {self.name} libraries loaded {astray[0]} ({len(astray)} such files)")


def run_child(
    options: Sequence[str], task: Sequence[str], environment: Mapping[str, str], timeout: float, scratch: Path
) -> dict[str, Any]:
    """Run ``child.py`` and read what it wrote; raises `ChildError`."""
    result = scratch / "result.json"
    command = (sys.executable, *options, str(_CHILD), str(result), *task)
    with (scratch / "said").open("w+b") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
            env=os.environ | environment,
        )
        _LIVE.add(process)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ChildError(f"it ran longer than {timeout:.0f} s") from None
        finally:
            _end(process)
            _LIVE.discard(process)
        if code:
            raise ChildError(f"{_exit(code)}: {_last_line(said)}")
    document: dict[str, Any] = json.loads(result.read_text())
    return document


def end_all() -> None:
    """End every fresh process, so that no thread waits for one."""
    for process in list(_LIVE):
        _kill(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process, if it lives, and what it started."""
    _kill(process)
    process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _exit(code: int) -> str:
    return f"it died of {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}"


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")


def _beneath(path: Path, directories: Sequence[Path]) -> bool:
    return any(path.is_relative_to(directory) for directory in directories)
