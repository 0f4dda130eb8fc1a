"""The loaders that slimgpu's weights are held against, each behind the same two calls.

A loader's `prepare` is not timed: it makes the form that the loader reads, if that is not safetensors. Its `load` ends
with every tensor in memory of its own on ``device``, so that no arm gets away with a mapping of the page cache; the one
that only maps says so in its name.
Packages are imported where they are used; those without an arm are in `NOT_INSTALLABLE`, so that they are reported as
missing, not left out. On the CPU all of it was run; the ways to CUDA follow each package's documentation.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from torch import Tensor

NOT_INSTALLABLE = {
    "serverless-llm-store": (
        "no wheels on the index; the source of 0.8.0 lacks requirements.txt, and that of 0.6.0 compiles against a CUDA "
        "toolkit and takes gflags, glog and gRPC from their repositories"
    ),
}
"""Peers that have no arm, and why."""

_COPY_BUFFERS = 4
_COPY_BYTES = 32 << 20
_READ_BYTES = 4 << 20


class Peer(Protocol):
    """A loader of tensors."""

    name: str
    package: str
    """Its distribution on the package index."""
    module: str
    devices: frozenset[str]

    def prepare(self, directory: Path, scratch: Path) -> Path:
        """What `load` reads, made of the safetensors files in ``directory``."""

    def load(self, path: Path, device: str) -> dict[str, Tensor]:
        """Every tensor on ``device``, when its copies are done."""


def _files(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.glob("*.safetensors"))


def _settle(device: str) -> None:
    import torch  # noqa: PLC0415

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


class _Unchanged:
    """A loader that reads safetensors as they are."""

    def prepare(self, directory: Path, scratch: Path) -> Path:
        """The directory itself."""
        del scratch
        return directory


class Safetensors(_Unchanged):
    """`load_file`; on the CPU with a copy, as it only maps the file."""

    name = "safetensors"
    package = "safetensors"
    module = "safetensors.torch"
    devices = frozenset({"cpu", "cuda"})

    def load(self, path: Path, device: str) -> dict[str, Tensor]:
        """One file after the other."""
        from safetensors.torch import load_file  # noqa: PLC0415

        tensors: dict[str, Tensor] = {}
        for file in _files(path):
            loaded = load_file(file, device=device)
            tensors |= {name: tensor.clone() for name, tensor in loaded.items()} if device == "cpu" else loaded
        _settle(device)
        return tensors


class SafetensorsMapped(_Unchanged):
    """`load_file` as it is on the CPU: tensors are the mapped file, which is read when they are first used."""

    name = "safetensors, mapped"
    package = "safetensors"
    module = "safetensors.torch"
    devices = frozenset({"cpu"})

    def load(self, path: Path, device: str) -> dict[str, Tensor]:
        """One file after the other; nothing is read yet."""
        from safetensors.torch import load_file  # noqa: PLC0415

        tensors: dict[str, Tensor] = {}
        for file in _files(path):
            tensors |= load_file(file, device=device)
        return tensors


class SafetensorsRead(_Unchanged):
    """The same format without a mapping: read by all cores, for CUDA through pinned memory: its best way."""

    name = "safetensors, read"
    package = "safetensors"
    module = "safetensors.torch"
    devices = frozenset({"cpu", "cuda"})

    def load(self, path: Path, device: str) -> dict[str, Tensor]:
        """Through a ring of pinned buffers to CUDA, straight into place on the CPU."""
        tensors: dict[str, Tensor] = {}
        for file in _files(path):
            tensors |= _placed(Path(file), device)
        _settle(device)
        return tensors


def _placed(file: Path, device: str) -> dict[str, Tensor]:
    """One buffer with the bytes of a file, and views of it."""
    import torch  # noqa: PLC0415
    from safetensors import safe_open  # noqa: PLC0415

    with file.open("rb", buffering=0) as source, safe_open(file, "pt") as opened:
        start = 8 + int.from_bytes(source.read(8), "little")
        whole = torch.empty(file.stat().st_size - start, dtype=torch.uint8, device=device)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            if whole.device.type == "cuda":
                _through_ring(pool, source.fileno(), start, whole)
            else:
                _fill(pool, source.fileno(), start, memoryview(whole.numpy()))
        views = {}
        offset = 0
        for name in opened.offset_keys():
            model = opened.get_tensor(name)
            views[name] = whole[offset : offset + model.nbytes].view(model.dtype).view(model.shape)
            offset += model.nbytes
        return views


def _fill(pool: Executor, source: int, start: int, target: memoryview) -> None:
    """Read ``target`` full in pieces, all at once."""

    def read(offset: int) -> None:
        end = min(offset + _READ_BYTES, len(target))
        while offset < end:
            count = os.preadv(source, [target[offset:end]], start + offset)
            if not count:
                raise EOFError("the file ends early")
            offset += count

    for _ in pool.map(read, range(0, len(target), _READ_BYTES)):
        pass


def _through_ring(pool: Executor, source: int, start: int, whole: Tensor) -> None:
    """Copy to the device from pinned buffers, one of which is read into while others are on their way."""
    import torch  # noqa: PLC0415

    ring = [torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(_COPY_BUFFERS)]
    done = [torch.cuda.Event() for _ in ring]
    for number, offset in enumerate(range(0, len(whole), _COPY_BYTES)):
        slot = number % _COPY_BUFFERS
        done[slot].synchronize()
        part = whole[offset : offset + _COPY_BYTES]
        _fill(pool, source, start + offset, memoryview(ring[slot][: len(part)].numpy()))
        part.copy_(ring[slot][: len(part)], non_blocking=True)
        done[slot].record()
    torch.cuda.synchronize()


class RunaiStreamer(_Unchanged):
    """Run:ai's model streamer, which reads with threads of its own (``RUNAI_STREAMER_CONCURRENCY``)."""

    name = "runai-model-streamer"
    package = "runai-model-streamer"
    module = "runai_model_streamer"
    devices = frozenset({"cpu", "cuda"})

    def load(self, path: Path, device: str) -> dict[str, Tensor]:
        """All files in one stream; it gives each tensor as the caller's own."""
        from runai_model_streamer import SafetensorsStreamer  # noqa: PLC0415

        with SafetensorsStreamer() as streamer:
            streamer.stream_files(_files(path), device=device)
            tensors = dict(streamer.get_tensors())
        _settle(device)
        return tensors


class FastSafetensors(_Unchanged):
    """fastsafetensors without GPUDirect Storage, which needs a driver of its own."""

    name = "fastsafetensors"
    package = "fastsafetensors"
    module = "fastsafetensors"
    devices = frozenset({"cpu", "cuda"})

    def load(self, path: Path, device: str) -> dict[str, Tensor]:
        """Tensors lie in its buffer, as its users have them; the buffer lives as long as the dictionary."""
        from fastsafetensors import fastsafe_open  # noqa: PLC0415

        opened = fastsafe_open(_files(path), nogds=True, device=device)
        tensors = _Kept({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
        tensors.owner = opened
        _settle(device)
        return tensors


class _Kept(dict[str, "Tensor"]):
    """Tensors and what their memory belongs to."""

    owner: Any = None

    def __del__(self) -> None:
        self.clear()
        if self.owner is not None:
            self.owner.__exit__(None, None, None)


class InstantTensor(_Unchanged):
    """InstantTensor, for CUDA only; ``buffered`` because the page cache is warm where it is compared warm."""

    name = "instanttensor"
    package = "instanttensor"
    module = "instanttensor"
    devices = frozenset({"cuda"})

    def __init__(self, *, buffered: bool = False) -> None:
        self._buffered = buffered
        self.name = "instanttensor, buffered" if buffered else "instanttensor"

    def load(self, path: Path, device: str) -> dict[str, Tensor]:
        """Direct reads by default, as the package does."""
        from instanttensor import BackendPolicy, safe_open  # noqa: PLC0415

        backend = BackendPolicy.BUFFERED if self._buffered else None
        number = device if ":" in device else f"{device}:0"
        with safe_open(_files(path), "pt", number, backend=backend) as opened:
            tensors = dict(opened.tensors())
        _settle(device)
        return tensors


class Tensorizer:
    """CoreWeave's tensorizer, in its own format."""

    name = "tensorizer"
    package = "tensorizer"
    module = "tensorizer"
    devices = frozenset({"cpu", "cuda"})

    def prepare(self, directory: Path, scratch: Path) -> Path:
        """One file with all tensors."""
        from safetensors.torch import load_file  # noqa: PLC0415
        from tensorizer import TensorSerializer  # noqa: PLC0415

        path = scratch / "model.tensors"
        tensors: dict[str, Tensor] = {}
        for file in _files(directory):
            tensors |= load_file(file)
        serializer = TensorSerializer(str(path))
        serializer.write_state_dict(tensors)
        serializer.close()
        return path

    def load(self, path: Path, device: str) -> dict[str, Tensor]:
        """With a reader for each core."""
        from tensorizer import TensorDeserializer  # noqa: PLC0415

        with TensorDeserializer(str(path), device=device, num_readers=os.cpu_count() or 1) as opened:
            tensors = {name: opened[name].data for name in opened.keys()}  # noqa: SIM118
        _settle(device)
        return tensors


def peers() -> list[Peer]:
    """Every loader, whether it is installed or not."""
    return [
        Safetensors(),
        SafetensorsMapped(),
        SafetensorsRead(),
        RunaiStreamer(),
        FastSafetensors(),
        InstantTensor(),
        InstantTensor(buffered=True),
        Tensorizer(),
    ]
