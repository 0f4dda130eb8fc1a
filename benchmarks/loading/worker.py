"""One sample of ``benchmarks/load.py``: a fresh process that imports, loads, and writes down what that took.

What is timed goes from the moment when all imports are done to the one when all tensors are in this process: one byte
of each of their pages has been read, or the device has been synchronized. Digests are taken after that.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Tensors = Mapping[str, Any]
    Task = Mapping[str, Any]

_PAGE = 4096
_COPY = 64 << 20
_WATCH = 0.02
_MODULES = (
    "slimgpu.weights.load",
    "slimgpu.weights.attach",
    "slimgpu.weights.deliver",
    "slimgpu.weights.fetch",
    "slimgpu.store.layout",
    "slimgpu.store.registry_ranges",
)


def main() -> None:
    """Do the task in the first argument, which is JSON."""
    task = json.loads(sys.argv[1])
    load = _KINDS[task["kind"]](task)
    before = _counters()
    ready = time.monotonic()
    with _SharedMemory(task["memory"]) as shared:
        tensors = load()
        _settle(task, tensors)
        ended = time.monotonic()
    result = {
        "seconds": ended - ready,
        "total_seconds": ended - task["started"],
        **{key: value - before[key] for key, value in _counters().items()},
        **_memory(),
        "shared_memory": shared.grown,
        "bytes": sum(map(_size, tensors.values())),
        "tensors": len(tensors),
        "digest": _digest(tensors),
    }
    Path(task["result"]).write_text(json.dumps(result))


# What there is to do; everything up to the returned function is import time


def _peer(task: Task) -> Callable[[], Tensors]:
    from peers import peers  # noqa: PLC0415

    _ready_device(task["device"])
    peer = next(peer for peer in peers() if peer.name == task["peer"])
    importlib.import_module(peer.module)

    def load() -> Tensors:
        if "download" in task:
            _download(task["download"], Path(task["path"]).parent)
        return peer.load(Path(task["path"]), task["device"])

    return load


def _tensorizer_stream(task: Task) -> Callable[[], Tensors]:
    """Its own way over HTTP: the tensors as they arrive."""
    _ready_device(task["device"])
    from tensorizer import TensorDeserializer  # noqa: PLC0415

    def load() -> Tensors:
        with TensorDeserializer(task["url"], device=task["device"], num_readers=task["readers"]) as opened:
            return {name: opened[name].data for name in opened.keys()}  # noqa: SIM118

    return load


def _slimgpu(task: Task) -> Callable[[], Tensors]:
    if task["torch"]:
        _ready_device(task["device"])
    for module in _MODULES:
        importlib.import_module(module)
    weights = importlib.import_module("slimgpu.weights.load")

    def load() -> Tensors:
        tensors = weights.stream(task["reference"], task["device"])
        return {name: tensor.clone() for name, tensor in tensors} if task["clone"] else dict(tensors)

    return load


def _sink(task: Task) -> Callable[[], Tensors]:
    def load() -> Tensors:
        _download(task["download"], None)
        return {}

    return load


def _pinned(task: Task) -> Callable[[], Tensors]:
    """The rate of the bus: one pinned buffer copied to the device again and again."""
    _ready_device(task["device"])
    import torch  # noqa: PLC0415

    source = torch.empty(_COPY, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_COPY, dtype=torch.uint8, device=task["device"])
    target.copy_(source)
    torch.cuda.synchronize()

    def load() -> Tensors:
        for start in range(0, task["bytes"], _COPY):
            count = min(_COPY, task["bytes"] - start)
            target[:count].copy_(source[:count], non_blocking=True)
        return {}

    return load


def _prefetch(task: Task) -> Callable[[], Tensors]:
    """Fill the region and leave it, as ``slimgpu prefetch`` does."""
    from slimgpu.oci.reference import parse_reference  # noqa: PLC0415
    from slimgpu.store.context import Context  # noqa: PLC0415
    from slimgpu.weights.attach import attached  # noqa: PLC0415

    def load() -> Tensors:
        reference = parse_reference(task["reference"])
        with (
            attached(reference, Context(), lambda index: range(len(index.chunks)), keep=True) as filling,
            filling.running(planes=task["device"] != "cpu"),
        ):
            filling.wait(filling.wanted)
        return {}

    return load


_KINDS: dict[str, Callable[[Task], Callable[[], Tensors]]] = {
    "peer": _peer,
    "tensorizer": _tensorizer_stream,
    "slimgpu": _slimgpu,
    "sink": _sink,
    "pinned": _pinned,
    "prefetch": _prefetch,
}


# Downloading as users of the peers do


def _download(download: Task, folder: Path | None) -> None:
    """Fetch files with curl to ``folder`` (None: to nowhere), in ranges if there are more connections than files."""
    sizes: Mapping[str, int] = download["files"]
    total = sum(sizes.values())
    for name in sizes:
        if folder is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pieces = [
        (name, start, end)
        for name, size in sizes.items()
        for start, end in _spans(size, max(1, round(download["connections"] * size / total)))
    ]
    fetchers = [_curl(f"{download['base']}/{name}", *span, folder and folder / name) for name, *span in pieces]
    codes = [fetcher.wait() for fetcher in fetchers]
    if any(codes):
        raise SystemExit("curl failed")


def _spans(size: int, count: int) -> Iterator[tuple[int, int]]:
    length = -(-size // count)
    return ((start, min(start + length, size)) for start in range(0, size, length))


def _curl(url: str, start: int, end: int, path: Path | None) -> subprocess.Popen[bytes]:
    target = os.open(path or os.devnull, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if path is not None:
            os.lseek(target, start, os.SEEK_SET)
        return subprocess.Popen(["curl", "-sf", "-r", f"{start}-{end - 1}", url], stdout=target)
    finally:
        os.close(target)


# Measuring


def _ready_device(device: str) -> None:
    import torch  # noqa: PLC0415

    if torch.device(device).type == "cuda":
        torch.empty(1, device=device)
        torch.cuda.synchronize()


def _settle(task: Task, tensors: Tensors) -> None:
    """Nothing is on its way any more."""
    if task["device"] != "cpu":
        import torch  # noqa: PLC0415

        torch.cuda.synchronize()
        return
    for tensor in tensors.values():
        data = _data(tensor)
        data[::_PAGE].max(initial=0)
        data[-1:].max(initial=0)


def _data(tensor: Any) -> Any:
    """A tensor's bytes as numpy's, without a copy on the CPU."""
    import numpy as np  # noqa: PLC0415

    if isinstance(tensor, memoryview):
        return np.frombuffer(tensor, np.uint8)
    import torch  # noqa: PLC0415

    return tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy()


def _size(tensor: Any) -> int:
    return int(tensor.nbytes)


def _digest(tensors: Tensors) -> str:
    """One digest for names, types, shapes and values."""

    def line(name: str) -> str:
        tensor = tensors[name]
        kind = "" if isinstance(tensor, memoryview) else f"{tensor.dtype} {tuple(tensor.shape)}"
        return f"{name}\0{kind}\0{hashlib.sha256(_data(tensor)).hexdigest()}\n"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return hashlib.sha256("".join(pool.map(line, sorted(tensors))).encode()).hexdigest() if tensors else ""


def _counters() -> dict[str, float]:
    """What only ever grows."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "processor_seconds": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
    }


class _SharedMemory:
    """Watches how much more of a tmpfs is in use at the most while the ``with`` block runs, whoever uses it."""

    def __init__(self, folder: str) -> None:
        self.grown = 0
        self._folder = folder
        self._before = self._used()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _used(self) -> int:
        found = os.statvfs(self._folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        over = False
        while not over:
            over = self._done.wait(_WATCH)
            self.grown = max(self.grown, self._used() - self._before)


def _memory() -> dict[str, int]:
    """Bytes in use now, by their kind, and the most there were of all together."""
    lines = Path("/proc/self/status").read_text().splitlines()
    facts = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    names = {"peak": "VmHWM", "anonymous": "RssAnon", "mapped_files": "RssFile", "mapped_shared": "RssShmem"}
    return {key: int(facts[name]) * 1024 for key, name in names.items()}


if __name__ == "__main__":
    main()
