"""Weights on a node: a process that fetches them beside the image, and how a container gets at them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from slimgpu.coldstart.run import VARIABLE
from slimgpu.errors import SlimgpuError
from slimgpu.events import Event, Stage
from slimgpu.rootfs.command import Mount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.bench.order import Weights
    from slimgpu.events import Events

PREFIX: Final = "slimgpu-bench-"
"""Of the directories in shared memory that a benchmark makes."""
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where regions lie on Linux
_MEMORY: Final = "SLIMGPU_MEMORY_DIR"
_CACHE: Final = "SLIMGPU_CACHE_DIR"
_ENDS_WITHIN: Final = 10.0


@dataclass(frozen=True, slots=True)
class Handover:
    """What a container is given of the weights."""

    mounts: tuple[Mount, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node keeps weights."""

    cache: Path
    memory: Path
    files: Path

    def environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLIMGPU_")},
            _CACHE: str(self.cache),
            _MEMORY: str(self.memory),
        }


class Fetch:
    """Weights on their way."""

    def __init__(self, weights: Weights, place: _Place, process: subprocess.Popen[bytes], events: Events) -> None:
        self._weights = weights
        self._place = place
        self._process = process
        self._there = threading.Event()
        self._began = time.monotonic()
        self._watch = threading.Thread(target=self._tell, args=(events,), daemon=True)
        self._watch.start()

    def _tell(self, events: Events) -> None:
        """`prefetch` prints where the weights are once they are there, and stays; others end."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() or self._process.wait() == 0:
            events.tell(Event(Stage.FETCH, self._began, time.monotonic(), self._weights.kind))
            self._there.set()

    def handover(self) -> Handover:
        """What the container needs: at once where its program attaches, else as soon as all files are there.

        Raises `SlimgpuError` when they could not be fetched.
        """
        if self._weights.attach:
            folders = (self._place.memory, self._place.cache)
            mounts = tuple(Mount(folder, str(folder), writable=True) for folder in folders)
            names = {VARIABLE: self._weights.ref, _MEMORY: str(folders[0]), _CACHE: str(folders[1])}
            return Handover(mounts, names)
        self._watch.join()
        if not self._there.is_set():
            raise SlimgpuError(f"{self._weights.ref} could not be fetched; what was said is above")
        return Handover(tuple(self._files()))

    def _files(self) -> Iterator[Mount]:
        root = PurePosixPath(self._weights.root)
        for path in sorted(self._place.files.rglob("*")):
            if path.is_file():  # what a link leads to lies there under the link's name, too
                yield Mount(path.resolve(), str(root / path.relative_to(self._place.files)))


@contextmanager
def fetching(weights: Weights, folder: Path, events: Events) -> Iterator[Fetch]:
    """Fetch ``weights`` beside whatever else happens, to below ``folder`` and shared memory, until the block ends.

    Everything that came is gone then. `Stage.FETCH` is told when all of it is there.
    """
    with TemporaryDirectory(prefix=PREFIX, dir=_SHARED_MEMORY) as memory:
        place = _Place(folder / "cache", Path(memory), folder / "files")
        process = subprocess.Popen(  # noqa: S603 - ourselves
            _command(weights, place),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=place.environment(),
            process_group=0,  # Ctrl-C is for us
        )
        with process:
            try:
                yield Fetch(weights, place, process, events)
            finally:
                _end(process)


def _command(weights: Weights, place: _Place) -> list[str]:
    if weights.kind == "files":
        return [sys.executable, "-m", "slimgpu.bench.download", weights.ref, str(place.files)]
    slimgpu = [sys.executable, "-m", "slimgpu", "-q"]
    if weights.attach:
        return [*slimgpu, "prefetch", weights.ref, "--no-keep", "--until-eof"]
    return [*slimgpu, "weights", "pull", weights.ref, str(place.files)]


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()  # which ends a prefetch that stays
    try:
        process.wait(_ENDS_WITHIN if process.poll() is None else 0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
