"""Small models on the disk, packed into OCI layouts, and sources of ranges that misbehave."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slimgpu.errors import DestinationError, SlimgpuError
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.reference import parse_reference
from slimgpu.progress import SILENT
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from slimgpu.store.ranges import LayoutRanges
from slimgpu.store.transport import open_artifact, open_artifact_sink
from slimgpu.weights import attach, schedule
from slimgpu.weights import region as regions
from slimgpu.weights.artifact import index_of
from slimgpu.weights.attach import attached
from slimgpu.weights.index import Index, parse_index
from slimgpu.weights.keep import BlobKeeper
from slimgpu.weights.load import load, stream
from slimgpu.weights.pack import pack
from slimgpu.weights.sources import collect
from slimgpu.weights.tiers import remove_unused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.store.ranges import RangeSource
    from slimgpu.weights.pack import Base, Packed

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8, "BOOL": 1}


@dataclass(frozen=True)
class Values:
    """A tensor to be written."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that nothing compresses."""
    return np.random.default_rng(seed).bytes(size)


def trained(dtype: str, *shape: int, seed: int = 0) -> Values:
    """Values that are spread like those of trained weights; noise for types that are no floats."""
    count = int(np.prod(shape))
    if dtype not in ("BF16", "F16", "F32", "F64"):
        return Values(dtype, shape, noise(count * WIDTHS[dtype], seed))
    numbers = np.random.default_rng(seed).standard_normal(count) * 0.02
    if dtype == "BF16":
        return Values(dtype, shape, (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes())
    return Values(dtype, shape, numbers.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes())


def safetensors(tensors: Mapping[str, Values]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, values in tensors.items():
        end = at + len(values.data)
        header[name] = {"dtype": values.dtype, "shape": values.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(values.data for values in tensors.values())


def small_model(layers: int = 4, rows: int = 400) -> dict[str, Values]:
    """Tensors of several types; with 400 rows, about 200 kB a layer."""
    found = {"model.embed_tokens.weight": trained("BF16", rows, 128, seed=1)}
    for number in range(layers):
        place = f"model.layers.{number}"
        found[f"{place}.attention.weight"] = trained("BF16", rows, 128, seed=10 + number)
        found[f"{place}.mlp.weight"] = trained("F16", rows, 96, seed=20 + number)
        found[f"{place}.scale"] = trained("F32", rows, seed=30 + number)
        found[f"{place}.quantised"] = trained("I8", 2 * rows, seed=40 + number)
        found[f"{place}.empty"] = Values("F32", (0, 3), b"")
    return {**found, "lm_head.weight": trained("BF16", rows, 128, seed=2)}


def write_model(folder: Path, tensors: Mapping[str, Values] | None = None, shards: int = 2) -> dict[str, Values]:
    """A directory as ``save_pretrained`` leaves it, and a few odd files."""
    tensors = small_model() if tensors is None else tensors
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    places: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        (folder / file).write_bytes(safetensors(part))
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "note": "x" * 2000}))
    (folder / "empty").write_bytes(b"")
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "run.sh").write_text("#!/bin/sh\necho hello\n")
    (folder / "code" / "run.sh").chmod(0o755)
    return dict(tensors)


def write_hugging_face_cache(root: Path) -> Path:
    """A model as ``huggingface_hub`` keeps it: blobs by digest, and a snapshot of links; gives the snapshot."""
    model = root / "models--ada--small"
    plain = root / "plain"
    write_model(plain)
    snapshot = model / "snapshots" / ("0" * 40)
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    for file in sorted(path for path in plain.rglob("*") if path.is_file()):
        blob = model / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.replace(blob)
        link = snapshot / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def content(root: Path) -> dict[str, tuple[str, bytes | str, bool]]:
    """Everything below a directory: files with their bytes and executable bit, and links with their target."""
    found: dict[str, tuple[str, bytes | str, bool]] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()), False)
        elif path.is_file():
            found[name] = ("file", path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


def pack_into(
    layout: Path, *paths: Path, tag: str = "v1", jobs: int = 2, bases: Sequence[Base] = ()
) -> tuple[str, Packed]:
    """Pack files into an OCI layout; gives the reference."""
    name = f"oci:{layout}:{tag}"
    return name, pack_to(name, *paths, jobs=jobs, bases=bases)


def pack_to(name: str, *paths: Path, jobs: int = 2, bases: Sequence[Base] = ()) -> Packed:
    """Pack files to wherever a reference says."""
    sources, links = collect(paths)
    cache = Cache()
    with open_artifact_sink(parse_reference(name), cache) as sink:
        packed = pack(sources, links, sink.workspace / "blobs", Context(cache, jobs), bases=bases)
        sink.write(packed.artifact, Silence())
    return packed


class Silence:
    """A task that counts."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, amount: int) -> None:
        self.done += amount


@contextmanager
def opened(name: str) -> Iterator[tuple[Index, RangeSource]]:
    with open_artifact(parse_reference(name), Cache(), SILENT) as (artifact, source):
        yield index_of(artifact), source


@dataclass
class Store:
    """A source of ranges in memory, which does as ``behave`` says before it answers rightly."""

    name: str
    blobs: Mapping[str, bytes]
    behave: Callable[[Store, int, memoryview], bool] = lambda *_: False
    """Gets the number of the request and the buffer; True when it has answered."""
    asked: list[tuple[int, int]] = field(default_factory=list)
    inside: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read_into(self, digest: str, offset: int, buffer: memoryview) -> None:
        with self.lock:
            number = len(self.asked)
            self.asked.append((offset, len(buffer)))
            self.inside += 1
        try:
            if not self.behave(self, number, buffer):
                buffer[:] = self.blobs[digest][offset : offset + len(buffer)]
        finally:
            with self.lock:
                self.inside -= 1


@dataclass
class Shelf:
    """A target in memory, which notes every chunk that it is given."""

    index: Index
    chunks: dict[int, bytes] = field(default_factory=dict)
    states: Counter[int] = field(default_factory=Counter)

    def has(self, chunk: int) -> bool:
        return chunk in self.chunks

    def write(self, chunk: int, data: memoryview, state: int) -> None:
        assert digest_bytes(bytes(data)) == self.index.chunks[chunk].raw
        self.chunks[chunk] = bytes(data)
        self.states[state] += 1

    def file(self, path: str) -> bytes:
        file = next(file for file in self.index.files if file.path == path)
        return b"".join(self.chunks[number] for number in file.chunks)


def blobs_of(folder: Path) -> dict[str, bytes]:
    """All blobs of a folder by digest."""
    return {f"sha256:{path.name}": path.read_bytes() for path in (folder / "sha256").iterdir()}


def child(role: str, *arguments: str | Path | int, **environment: str) -> subprocess.Popen[str]:
    """A process of its own that does what one of the functions below does."""
    command = [sys.executable, "-m", "tests.support.weights", role, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(process: subprocess.Popen[str]) -> None:
    """Return when a child is ready."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def go(process: subprocess.Popen[str]) -> None:
    """Have a child begin."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def ended(process: subprocess.Popen[str]) -> str:
    """What a child has printed, when it ended well."""
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, (process.returncode, out, error)
    return out


def kill(process: subprocess.Popen[str], signal_number: int = signal.SIGKILL) -> None:
    process.send_signal(signal_number)
    process.communicate(timeout=60)


def digests(tensors: Mapping[str, memoryview]) -> str:
    """One line for all tensors."""
    lines = [f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in sorted(tensors.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _slow_down(seconds: float) -> None:
    """Let every chunk be a range, a few of them with ``CREW``, of which each takes so long to read from a layout."""
    if "CREW" in os.environ:
        attach._MANY = 0  # type: ignore[misc]
        schedule.RANGE = 64 * 1024  # type: ignore[misc]
    else:
        schedule.RANGE = 1  # type: ignore[misc]
        schedule._GAP = -1  # type: ignore[misc]
    read_into = LayoutRanges.read_into

    def slow(self: LayoutRanges, digest: str, offset: int, buffer: memoryview) -> None:
        time.sleep(seconds)
        read_into(self, digest, offset, buffer)

    LayoutRanges.read_into = slow  # type: ignore[method-assign]


def _say(*words: object) -> None:
    sys.stdout.write(f"{' '.join(map(str, words))}\n")
    sys.stdout.flush()


def _load(ref: str, seconds: str = "0", only: str | None = None) -> None:
    """Load, and say what was got."""
    _slow_down(float(seconds))
    _say("ready")
    sys.stdin.readline()
    try:
        _say(digests(load(ref, only=only)))
    except SlimgpuError as error:
        _say(type(error).__name__, error)


def _suspend(ref: str, seconds: str, how: str) -> None:
    """End in the middle of a stream that something still holds: a module, an error, or a fork's parent."""
    _slow_down(float(seconds))
    builtins.held = tensors = stream(ref)  # type: ignore[attr-defined]
    _say(next(tensors)[0])
    if how == "error":
        for _ in tensors:
            raise KeyError
    if how == "fork":
        if not os.fork():
            sys.exit(7)
        _say(os.waitstatus_to_exitcode(os.wait()[1]))
        _say(digests({name: data for name, data in tensors if name == "lm_head.weight"}))


def _prefetch(ref: str, seconds: str = "0") -> None:
    """Fill the region, keep it, and stay until told to end."""
    _slow_down(float(seconds))
    _say("ready")
    with attached(parse_reference(ref), Context(), lambda index: range(len(index.chunks)), keep=True) as filling:
        with filling.running(planes=False):
            for number in range(len(filling.wanted)):
                filling.wait([number])
                _say(number)
        _say("full")
        sys.stdin.readline()


def _fill_region(folder: str, index_file: str) -> None:
    """Fill a region with noise."""
    index = _read_index(index_file)
    try:
        with regions.opened(Path(folder), *index.dump(), index) as region:
            assert not any(map(region.has, range(len(index.chunks))))
            for number, chunk in enumerate(index.chunks):
                region.write(number, memoryview(noise(chunk.size, number)))
    except DestinationError as error:
        _say(error)


def _churn_region(folder: str, index_file: str, rounds: str) -> None:
    """Make or open, use and remove a region, again and again."""
    index = _read_index(index_file)
    for _ in range(int(rounds)):
        with regions.opened(Path(folder), *index.dump(), index) as region:
            assert (Path(folder) / "index").exists()
            region.write(0, memoryview(noise(index.chunks[0].size)))
            assert region.has(0)
        remove_unused(Path(folder))


def _read_index(path: str) -> Index:
    media_type, _, data = Path(path).read_bytes().partition(b"\n")
    return parse_index(media_type.decode(), data, path)


def _churn_keeper(root: str, seed: str) -> None:
    """Keep, recall and forget blobs within a bound that is less than all of them."""
    keeper = BlobKeeper(Path(root), 400_000)
    for step in range(60):
        number = (int(seed) * 7 + step * 3) % 10
        digest, blob, buffer = f"sha256:{number:064x}", noise(50_000, number), bytearray(50_000)
        if not keeper.read_into(digest, 0, memoryview(buffer)) or buffer != blob:
            # Digests tell what is wrong: zeros, where another process made room in between.
            keeper.keep(digest, 0, memoryview(blob))
        if step % 9 == int(seed):
            keeper.forget(digest)


if __name__ == "__main__":
    {
        "load": _load,
        "suspend": _suspend,
        "prefetch": _prefetch,
        "fill-region": _fill_region,
        "churn-region": _churn_region,
        "churn-keeper": _churn_keeper,
    }[sys.argv[1]](*sys.argv[2:])
