"""Shrinks the files named on the command line for H100, as `shrink.py` measures it.

``python worker.py DESTINATION JOBS FILE...``; a destination of ``-`` makes the new content and throws it away.
With one job it prints the peak memory of this process as JSON: all of it, and without the pages of mapped files.
"""

from __future__ import annotations

import json
import mmap
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self

from slimgpu.elf.arch import parse_target
from slimgpu.elf.choice import Policy
from slimgpu.elf.shrink import Wanted, shrink, shrink_file

_WANTED = Wanted(Policy((parse_target("h100"),)), symbols=True)
_SAMPLE_SECONDS = 0.002


def main() -> None:
    """Shrink, alone or with a pool of processes."""
    destination, jobs, files = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    work = partial(_shrink, destination)
    if jobs > 1:
        with ProcessPoolExecutor(jobs) as pool:
            list(pool.map(work, files))
        return
    with _Memory() as memory:
        for file in files:
            work(file)
    json.dump({"own": memory.own, "all": _status("VmHWM")}, sys.stdout)


def _shrink(destination: str, file: str) -> None:
    source = Path(file)
    if destination != "-":
        shrink_file(source, Path(destination, file.replace("/", "_")), _WANTED)
        return
    with source.open("rb") as opened, Path("/dev/null").open("wb", buffering=0) as out:
        data = memoryview(mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ))
        splice = shrink(data, _WANTED).splice
        pieces = splice.content(lambda offset, size: data[offset : offset + size]) if splice else (data,)
        out.writelines(map(bytes, pieces))  # as bytes, since /dev/null would not read them


class _Memory:
    """The peak of what the process has for itself, sampled while the block runs."""

    def __init__(self) -> None:
        self.own = _status("RssAnon")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self.own = max(self.own, _status("RssAnon"))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
