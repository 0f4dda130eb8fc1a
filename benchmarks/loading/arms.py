"""Which loaders are compared in which circumstances, and what each needs before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loading.servers import REPOSITORY
from peers import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loading.servers import Ports

    from slimgpu.bench.link.values import Link

CONNECTIONS = 16
NO_NETWORK_ARM = {
    "runai-model-streamer": "streams from S3, Azure and Google's storage only; none of them is here",
    "fastsafetensors": "reads local files only; see the downloads",
}


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to get all tensors."""

    name: str
    what: str
    kind: str
    """See `loading.worker`."""
    task: dict[str, Any] = field(default_factory=dict)
    reads: tuple[Path, ...] = ()
    """Files whose pages are in the page cache, or are not, when it starts."""
    packages: tuple[tuple[str, str], ...] = ()
    """Module and distribution of what must be installed."""
    prefetched: bool = False
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Circumstances in which arms are compared."""

    name: str
    arms: tuple[Arm, ...]
    cold: bool = False
    gigabits: float = 0
    """Of the link that all goes over."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What was prepared: the model in each of its forms."""

    model: Path
    layout: Path
    tensors: Path
    """The model in tensorizer's form."""
    storage: Path
    """The registry's."""
    memory: Path
    """A folder in shared memory."""
    device: str
    size: int

    @property
    def safetensors(self) -> tuple[Path, ...]:
        """The model's files."""
        return tuple(sorted(self.model.glob("*.safetensors")))

    @property
    def blobs(self) -> tuple[Path, ...]:
        """The artifact's files."""
        return tuple(path for path in sorted(self.layout.rglob("*")) if path.is_file())


def local(bench: Bench) -> tuple[Arm, ...]:
    """From this machine."""
    found = [_peer(bench, name) for name in _local_peers(bench.device)]
    found += _own(bench, f"oci:{bench.layout}:latest", "layout", "OCI layout", bench.blobs)
    if bench.device != "cpu":
        pinned = {"bytes": bench.size}
        found.append(Arm("pinned copy", "control: the bus alone", "pinned", pinned, packages=_TORCH))
    return tuple(found)


def in_memory(bench: Bench) -> tuple[Arm, ...]:
    """From the region that a prefetch has filled."""
    arms = _own(bench, f"oci:{bench.layout}:latest", "memory", "prefetched region", ())
    return tuple(replace(arm, prefetched=True) for arm in arms)


_TORCH = (("torch", "torch"),)


def _local_peers(device: str) -> list[str]:
    kind = device.partition(":")[0]
    return [peer.name for peer in peers() if kind in peer.devices]


def _peer(bench: Bench, name: str, **more: Any) -> Arm:
    peer = next(peer for peer in peers() if peer.name == name)
    is_tensorizer = peer.package == "tensorizer"
    task = {"peer": name, "path": str(bench.tensors if is_tensorizer else bench.model), **more}
    reads = (bench.tensors,) if is_tensorizer else bench.safetensors
    what = "its own format, a reader a core" if is_tensorizer else "safetensors files"
    return Arm(name, what, "peer", task, reads, (*_TORCH, (peer.module, peer.package)))


def _own(bench: Bench, reference: str, name: str, where: str, reads: tuple[Path, ...]) -> list[Arm]:
    """Slimgpu as it is, and for the CPU with a copy of each tensor to memory of its own."""
    task = {"reference": reference, "clone": False}
    arms = [Arm(f"slimgpu, {name}", f"{where}; {_SHARED}", "slimgpu", task, reads)]
    if bench.device != "cpu":
        return [Arm(f"slimgpu, {name}", where, "slimgpu", task, reads, _TORCH)]
    cloned = Arm(
        f"slimgpu, {name}, cloned", f"{where}; each tensor copied", "slimgpu", task | {"clone": True}, reads, _TORCH
    )
    return [*arms, cloned]


_SHARED = "tensors share memory between processes"


def over(link: Link, ports: Ports, bench: Bench) -> tuple[Arm, ...]:
    """From servers on a link; what they read is in the page cache."""
    base = "http://{}:{}".format(*link.address(ports.files))
    model = _downloads(bench.safetensors, base, "model")
    stored = _downloads(bench.blobs, base, "layout", bench.layout)
    sinks = [
        _sink("sink, safetensors", "control: curl to nowhere, 16 ranges", model(CONNECTIONS)),
        _sink("sink, artifact", "control: the same of the artifact's blobs", stored(CONNECTIONS)),
    ]
    loader = "safetensors, mapped" if bench.device == "cpu" else "safetensors, read"
    downloads = [
        _downloaded(bench, "curl", "a stream a file to tmpfs", loader, model(0)),
        _downloaded(bench, "16 ranges", "16 curls to tmpfs", loader, model(CONNECTIONS)),
    ]
    if bench.device == "cpu":
        downloads.append(_downloaded(bench, "16 ranges", "16 curls to tmpfs", "safetensors", model(CONNECTIONS)))
    stream = {"url": f"{base}/{bench.tensors.name}", "readers": CONNECTIONS}
    packages = (*_TORCH, ("tensorizer", "tensorizer"))
    files = (*bench.safetensors, bench.tensors, *bench.blobs)
    found = [
        *sinks,
        *downloads,
        Arm("tensorizer, http", "its own format, 16 readers", "tensorizer", stream, packages=packages),
        *_registries(link, ports, bench),
    ]
    return tuple(replace(arm, reads=files) for arm in found)


def _registries(link: Link, ports: Ports, bench: Bench) -> list[Arm]:
    registry, shelf = ("docker://{}:{}/".format(*link.address(port)) for port in (ports.registry, ports.shelf))
    stored = _own(bench, f"{registry}{REPOSITORY}:latest", "registry", "docker-registry", ())
    served = _own(bench, f"{shelf}{REPOSITORY}:latest", "served", "slimgpu weights serve", ())
    passing = replace(
        served[0],
        name="slimgpu, served, passing",
        what="the same, nothing kept on the disk",
        environment={"SLIMGPU_WEIGHTS_CACHE_SIZE": "0"},
    )
    return [stored[0], *served, passing]


def _downloads(
    files: Sequence[Path], base: str, folder: str, root: Path | None = None
) -> Callable[[int], dict[str, Any]]:
    names = {f"{folder}/{path.relative_to(root or path.parent)}": path.stat().st_size for path in files}

    def download(connections: int) -> dict[str, Any]:
        return {"base": base, "files": names, "connections": connections}

    return download


def _sink(name: str, what: str, download: dict[str, Any]) -> Arm:
    return Arm(name, what, "sink", {"download": download})


def _downloaded(bench: Bench, name: str, what: str, loader: str, download: dict[str, Any]) -> Arm:
    into = bench.memory / "download"
    arm = _peer(bench, loader, download=download)
    task = arm.task | {"path": str(into / "model")}
    return Arm(f"{name} + {loader}", f"{what}, then {loader}", arm.kind, task, packages=arm.packages)
