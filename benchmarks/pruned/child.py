"""What runs in a fresh process: ``python child.py RESULT probe | workload NAME DEVICE | measure DEVICE``.

RESULT becomes a JSON document. Nothing here or in the workloads depends on slimgpu, and torch is imported by the tasks,
so that a measurement begins before it.
"""

# ruff: noqa: PLC0415 - when torch is imported is what is measured

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import resource
import sys
import sysconfig
import time
import zlib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

_PACKAGES = ("torch", "nvidia", "torchvision", "triton", "transformers", "vllm")
_KIB = 1024
_BLOCK = 512


def probe() -> dict[str, Any]:
    """The interpreter's packages and GPU, and where its modules come from."""
    places = [place for name in _PACKAGES for place in _places(name)]
    if not _places("torch"):
        return {"torch": ""}
    import torch

    present = torch.cuda.is_available()
    return {
        "torch": torch.__file__,
        "path": list(dict.fromkeys(os.path.realpath(entry) for entry in sys.path[1:] if not _standard(entry))),
        "roots": sorted({os.path.realpath(Path(place).parent) for place in places}),
        "versions": _versions(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpu": torch.cuda.get_device_name() if present else "",
        "capability": list(torch.cuda.get_device_capability()) if present else [],
        "memory": torch.cuda.mem_get_info()[1] if present else 0,
    }


def _places(package: str) -> list[str]:
    spec = find_spec(package)
    return list(spec.submodule_search_locations or ()) if spec else []


def _standard(entry: str) -> bool:
    """Whether it is the standard library's, which every interpreter has by itself."""
    library = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    return entry in library | {f"{path}/lib-dynload" for path in library} or entry.endswith(".zip")


def _versions() -> dict[str, str]:
    names = ("torch", "nvidia-", "triton", "transformers", "vllm", "numpy")
    found = {str(item.metadata["Name"]).lower(): item.version for item in metadata.distributions()}
    return {name: found[name] for name in sorted(found) if name.startswith(names)}


def workload(name: str, device: str) -> dict[str, Any]:
    """Every case of a workload: the digests of what it gave, or why it gave nothing."""
    started = time.perf_counter()
    import torch

    cases: dict[str, Any] = {}
    unavailable = ""
    try:
        from workloads import WORKLOADS

        _deterministic()
        for case, make in WORKLOADS[name](device):
            cases[case] = _run(f"{name} {case}", make)
    except Exception as error:  # noqa: BLE001 - a package that is missing, say; told as the reason
        unavailable = _reason(error)
    return {
        "torch": torch.__file__,
        "cases": cases,
        "unavailable": unavailable,
        "seconds": round(time.perf_counter() - started, 3),
        "mapped": sorted(mapped()),
    }


def _deterministic(*, strict: bool = True) -> None:
    import torch

    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(mode=True, warn_only=not strict)


def _run(name: str, make: Callable[[], object]) -> dict[str, Any]:
    """One case, strictly deterministic if torch can do it so."""
    try:
        try:
            return {"outputs": _calculate(name, make)}
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            _deterministic(strict=False)
            try:
                return {"outputs": _calculate(name, make)}
            finally:
                _deterministic()
    except Exception as error:  # noqa: BLE001 - an operation that this GPU or package lacks; told as the reason
        return {"unavailable": _reason(error)}


def _calculate(name: str, make: Callable[[], object]) -> dict[str, str]:
    import torch

    torch.manual_seed(zlib.crc32(name.encode()))
    result = make()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return dict(digests(result))


def digests(result: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Each tensor of a result with the SHA-256 of its type, shape and bytes; other values as text."""
    import torch

    if isinstance(result, torch.Tensor):
        yield name, _digest(result)
    elif isinstance(result, dict):
        for key, value in result.items():
            yield from digests(value, f"{name}.{key}".lstrip("."))
    elif isinstance(result, (list, tuple)):
        for number, value in enumerate(result):
            yield from digests(value, f"{name}.{number}".lstrip("."))
    elif isinstance(result, Exception):
        yield name, f"{type(result).__name__}: {_reason(result)}"
    else:
        yield name, str(result)


def _digest(tensor: torch.Tensor) -> str:
    import torch

    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return _digest(tensor.indices()) + _digest(tensor.values())
    if tensor.layout == torch.sparse_csr:
        return "".join(_digest(part()) for part in (tensor.crow_indices, tensor.col_indices, tensor.values))
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)} ".encode())
    digest.update(ctypes.string_at(plain.data_ptr(), plain.numel() * plain.element_size()) if plain.numel() else b"")
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """Why, in one line without what differs from process to process."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return re.sub(r"0x[0-9a-f]+|(?<!\w)/[^\s'\"]+", "...", first)[:300]


_MEMORY = {"anonymous, in the end": "RssAnon", "of files, in the end": "RssFile", "peak": "VmHWM"}


def measure(device: str) -> dict[str, Any]:
    """How long the first of everything takes, and how much memory is used after it."""
    clock = _Clock(device)
    import torch

    clock.lap("import torch")
    if device == "cuda":
        torch.cuda.synchronize()
        clock.lap("context")
    ones = torch.ones(1024, 1024, device=device).add_(1)
    clock.lap("first kernel")
    product = ones @ ones
    clock.lap("first matmul")
    image, weight = (torch.ones(*shape, device=device) for shape in ((8, 64, 64, 64), (64, 64, 3, 3)))
    convolved = torch.nn.functional.conv2d(image, weight)
    clock.lap("first convolution")
    return {
        "torch": torch.__file__,
        "seconds": clock.seconds,
        "gpu_used": clock.gpu_used,
        "memory": clock.memory | {name: _status()[field] for name, field in _MEMORY.items()},
        "read": resource.getrusage(resource.RUSAGE_SELF).ru_inblock * _BLOCK,
        "digests": [_digest(product), _digest(convolved)],
        "mapped": mapped(),
    }


class _Clock:
    """Laps in seconds, and the memory used at the end of each (device-wide for the GPU)."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, int] = {}
        self.gpu_used: dict[str, int] = {}
        self._cuda = device == "cuda"
        self._began = time.perf_counter()

    def lap(self, name: str) -> None:
        torch = sys.modules["torch"]
        context = self._cuda and name != "import torch"
        if context:
            torch.cuda.synchronize()
        self.seconds[name] = round(time.perf_counter() - self._began, 4)
        self.memory[name] = _status()["VmRSS"]
        if context:
            free, total = torch.cuda.mem_get_info()
            self.gpu_used[name] = total - free
        self._began = time.perf_counter()


def _status() -> dict[str, int]:
    """What the kernel says of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split(":") for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * _KIB for name, value in pairs}


def mapped() -> dict[str, int]:
    """Files that are mapped into this process, with how many bytes of each."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) > 5 and fields[5].startswith("/"):  # noqa: PLR2004 - it has a name
            first, last = (int(end, 16) for end in fields[0].split("-"))
            name = fields[5].removesuffix(" (deleted)")
            found[name] = found.get(name, 0) + last - first
    return found


_TASKS: dict[str, Callable[..., dict[str, Any]]] = {"probe": probe, "workload": workload, "measure": measure}

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(_TASKS[sys.argv[2]](*sys.argv[3:])))
