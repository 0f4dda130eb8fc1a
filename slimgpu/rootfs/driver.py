"""The GPU driver of this machine for a command without an engine: what NVIDIA's toolkit would mount.

The toolkit puts the libraries into the image's own library directory, makes links for their names and runs the
image's ``ldconfig``. Here nothing of the image is run or changed: each library is mounted under each of its names
below ``/usr/local/nvidia/lib64``, which is appended to ``LD_LIBRARY_PATH``. So Google's Kubernetes nodes do it, and
NVIDIA's base images name that directory already. It has to be the variable, since programs look for ``libcuda.so.1``
in it or in the loader's cache, and nowhere else (Triton does); it comes last in it, because the cache comes after it.

Finding reads files below a root directory only, which for tests are laid out as those of real hosts. **None of this
has run on a machine with a GPU yet.** CUDA's forward compatibility libraries are left to the image.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slimgpu.errors import MissingComponentError, UsageError
from slimgpu.rootfs.command import Mount
from slimgpu.rootfs.driver_names import (
    CAPABILITIES,
    CONTROL_DEVICES,
    DEFAULT_CAPABILITIES,
    LIBRARIES,
    NEEDED_DEVICES,
    PROGRAMS,
    SOCKETS,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slimgpu.rootfs.command import Command

LIBRARY_DIRECTORY: Final = "/usr/local/nvidia/lib64"
_PROGRAM_DIRECTORY: Final = "/usr/bin"
_VERSION: Final = re.compile(r"Kernel Module\b.*?\s(\d+\.\d+(?:\.\d+)?)\s")
_FACT: Final = re.compile(r"^(GPU UUID|Device Minor):\s*(\S+)", re.MULTILINE)
_ELF64: Final = b"\x7fELF\x02"
_DIRECTORIES: Final = (
    *("usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"),
    *("usr/lib/x86_64-linux-gnu/nvidia/current", "usr/lib/aarch64-linux-gnu/nvidia/current"),
    *("lib64", "usr/lib", "lib", "usr/local/nvidia/lib64", "usr/local/nvidia/lib", "home/kubernetes/bin/nvidia/lib64"),
    *("var/lib/nvidia/lib64", "opt/nvidia/lib64", "run/nvidia/driver/usr/lib64"),
    *("run/nvidia/driver/usr/lib/x86_64-linux-gnu", "run/nvidia/driver/usr/lib/aarch64-linux-gnu"),
)
"""Where drivers lie: distributions, Debian's alternatives, Google's hosts, and the GPU operator's container."""
_MAX_INCLUDES: Final = 4


@dataclass(frozen=True, slots=True)
class Library:
    """A library of the driver."""

    path: Path
    capability: str
    names: tuple[str, ...]
    """What programs ask for: its file's name, its soname, and other links to it."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU; its number is its place among them by PCI address, as ``nvidia-smi`` counts."""

    uuid: str
    device: Path


@dataclass(frozen=True, slots=True)
class Driver:
    """What a machine has of it."""

    version: str
    libraries: tuple[Library, ...]
    programs: tuple[tuple[str, Path], ...]
    """By capability."""
    others: tuple[Mount, ...]
    """Control devices, those of MIG, sockets of daemons, and firmware, which every command gets."""
    gpus: tuple[Gpu, ...]


def find_driver(host: Path = Path("/")) -> Driver | None:
    """The driver of the machine whose root is ``host``; None when its kernel has none.

    Raises `MissingComponentError` when there is a kernel module without its libraries or devices.
    """
    version = _version(host)
    if version is None:
        return None
    libraries = tuple(_libraries(host, version))
    if not any(library.names[0].startswith("libcuda.so") for library in libraries):
        raise MissingComponentError(f"the GPU driver {version} has no libcuda.so.{version} here; install its libraries")
    missing = [name for name in NEEDED_DEVICES if not (host / "dev" / name).exists()]
    if missing:
        raise MissingComponentError(f"/dev/{missing[0]} is not there; make it with nvidia-modprobe -c 0 -u")
    return Driver(version, libraries, tuple(_programs(host)), tuple(_others(host, version)), tuple(_gpus(host)))


def _version(host: Path) -> str | None:
    with suppress(OSError):
        match = _VERSION.search((host / "proc/driver/nvidia/version").read_text(errors="replace"))
        return match[1] if match else None
    return None


def _libraries(host: Path, version: str) -> Iterator[Library]:
    """Those that end in the version, and one with a version of its own; the first of each name, as loaders do it."""
    wanted = {name: capability for capability, names in LIBRARIES.items() for name in names}
    found = set()
    for folder in _library_directories(host):
        for path in sorted([*folder.glob(f"lib*.so.{escape(version)}"), *folder.glob("libnvidia-nvvm70.so.*")]):
            stem = path.name.partition(".so")[0]
            if stem in wanted and stem not in found and not path.is_symlink() and _is_elf64(path):
                found.add(stem)
                yield Library(path, wanted[stem], tuple(_names(path)))


def _library_directories(host: Path) -> list[Path]:
    """Those that ldconfig would read, and more where drivers lie."""
    configured = (path.lstrip("/") for path in _configured(host, "etc/ld.so.conf", 0))
    return [host / path for path in dict.fromkeys((*configured, *_DIRECTORIES)) if (host / path).is_dir()]


def _configured(host: Path, path: str, depth: int) -> Iterator[str]:
    lines: list[str] = []
    with suppress(OSError):
        lines = (host / path).read_text(errors="replace").splitlines()
    for line in lines:
        words = line.partition("#")[0].split()
        if words[:1] == ["include"] and depth < _MAX_INCLUDES:
            for pattern in words[1:]:
                absolute = pattern if pattern.startswith("/") else os.path.join(os.path.dirname(path), pattern)  # noqa: PTH118, PTH120 - a pattern
                for match in sorted(host.glob(absolute.lstrip("/"))):
                    yield from _configured(host, str(match.relative_to(host)), depth + 1)
        elif words and words[0].startswith("/"):
            yield words[0]


def _is_elf64(path: Path) -> bool:
    """Hosts keep libraries for 32-bit programs under the same names."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(_ELF64)) == _ELF64
    return False


def _names(path: Path) -> Iterator[str]:
    """Its own, and those of links to it beside it; packages of some hosts leave out the last one for libcuda."""
    found = [path.name]
    links = {
        link.name: str(link.readlink())
        for link in path.parent.glob(f"{path.name.partition('.so')[0]}.so*")
        if link.is_symlink()
    }
    while more := [name for name, target in links.items() if target in found and name not in found]:
        found += more
    if path.name.startswith("libcuda.so."):
        found += ["libcuda.so", "libcuda.so.1"]
    yield from dict.fromkeys(found)


def _programs(host: Path) -> Iterator[tuple[str, Path]]:
    for capability, names in PROGRAMS.items():
        for name in names:
            places = (host / folder / name for folder in ("usr/bin", "usr/local/nvidia/bin", "bin", "opt/bin"))
            yield from ((capability, place) for place in [*filter(Path.is_file, places)][:1])


def _others(host: Path, version: str) -> Iterator[Mount]:
    devices = [host / "dev" / name for name in CONTROL_DEVICES]
    devices += sorted((host / "dev/nvidia-caps").glob("nvidia-cap*"))
    sockets = [host / path for path in SOCKETS]
    yield from (_same(host, path, writable=True) for path in (*devices, *sockets) if path.exists())
    for folder in ("lib/firmware/nvidia", "usr/lib/firmware/nvidia"):
        firmware = sorted((host / folder / version).glob("gsp*.bin"))
        if firmware:
            yield from (_same(host, path) for path in firmware)
            return


def _same(host: Path, path: Path, *, writable: bool = False) -> Mount:
    """At the same place inside."""
    return Mount(path, f"/{path.relative_to(host)}", writable)


def _gpus(host: Path) -> Iterator[Gpu]:
    for facts in sorted((host / "proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            known = dict(_FACT.findall(facts.read_text(errors="replace")))
            device = host / "dev" / f"nvidia{known.get('Device Minor', '')}"
            if device.exists():
                yield Gpu(known.get("GPU UUID", ""), device)


def with_driver(command: Command, driver: Driver) -> Command:
    """The command with the driver mounted.

    NVIDIA_VISIBLE_DEVICES (all when unset) and NVIDIA_DRIVER_CAPABILITIES of its environment say which GPUs and what
    else; `UsageError` when they name what there is not.
    """
    chosen = command.environment.get("NVIDIA_VISIBLE_DEVICES", "all")
    if chosen in ("", "void"):
        return command
    wanted = _capabilities(command.environment.get("NVIDIA_DRIVER_CAPABILITIES") or DEFAULT_CAPABILITIES)
    libraries = [
        Mount(library.path, f"{LIBRARY_DIRECTORY}/{name}")
        for library in driver.libraries
        if library.capability in wanted
        for name in library.names
    ]
    programs = [Mount(path, f"{_PROGRAM_DIRECTORY}/{path.name}") for kind, path in driver.programs if kind in wanted]
    devices = [Mount(gpu.device, f"/dev/{gpu.device.name}", writable=True) for gpu in _visible(chosen, driver.gpus)]
    searched = [part for part in command.environment.get("LD_LIBRARY_PATH", "").split(":") if part]
    if LIBRARY_DIRECTORY not in searched:
        searched.append(LIBRARY_DIRECTORY)
    return replace(
        command,
        environment={**command.environment, "LD_LIBRARY_PATH": ":".join(searched)},
        mounts=(*libraries, *programs, *driver.others, *devices, *command.mounts),
    )


def _capabilities(text: str) -> frozenset[str]:
    names = frozenset(part.strip() for part in text.split(",") if part.strip())
    unknown = sorted(names - {*CAPABILITIES, "all"})
    if unknown:
        raise UsageError(
            f"NVIDIA_DRIVER_CAPABILITIES names {unknown[0]!r}; use all or some of {', '.join(CAPABILITIES)}"
        )
    return frozenset(CAPABILITIES) if "all" in names else names


def _visible(chosen: str, gpus: tuple[Gpu, ...]) -> Iterable[Gpu]:
    """In the order of the machine, which is the one that programs count in."""
    if chosen == "all":
        return gpus
    if chosen == "none":
        return ()
    picked = set()
    for name in chosen.split(","):
        matches = [number for number, gpu in enumerate(gpus) if name == str(number) or _is_uuid(name, gpu)]
        if len(matches) != 1:
            known = ", ".join(f"{number} ({gpu.uuid})" for number, gpu in enumerate(gpus)) or "none"
            raise UsageError(f"NVIDIA_VISIBLE_DEVICES names {name!r}, and this machine's GPUs are {known}")
        picked.update(matches)
    return [gpus[number] for number in sorted(picked)]


def _is_uuid(name: str, gpu: Gpu) -> bool:
    """A UUID may be cut short."""
    return name.startswith("GPU-") and gpu.uuid.startswith(name)
