"""Which files share a layer.

Files are grouped by where they come from and how often that changes, from the base system to the application, so
that an update re-pulls little. A large package has layers of its own, cut at fixed sizes: the cut depends on the
package alone, so that the same files of it with the same attributes, modification times too, are the same blob in
every image, and no layer is so large that parallel downloads wait for it.

There are two exceptions. Hard links share a layer, so a file that became a link to another package's (rule
``waste.duplicates``) moves to that one's layer. And where more than `MAX_LAYERS` would come out, the sizes are doubled
until it fits, and then depend on the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from slimgpu.analysis.facts import Owner
    from slimgpu.rootfs.filesystem import FileSystem
    from slimgpu.rootfs.tree import Node

OWN_LAYER: Final = 64_000_000
"""A package of at least so many bytes has layers of its own."""
CUT: Final = 256_000_000
"""A layer is closed when the next file would take it beyond this; only a single file is ever larger."""
MAX_LAYERS: Final = 100
"""Engines stack no more than about 125 (overlay2), and images are built on top of ours."""

_SYSTEM: Final = ("bin", "boot", "etc", "lib", "lib32", "lib64", "libx32", "media", "mnt", "run", "sbin", "usr", "var")
_FRAMEWORKS: Final = frozenset(
    {
        "bitsandbytes",
        "cupy-cuda12x",
        "cupy-cuda13x",
        "deepspeed",
        "flash-attn",
        "flashinfer-cubin",
        "flashinfer-jit-cache",
        "flashinfer-python",
        "jax",
        "jax-cuda12-pjrt",
        "jax-cuda12-plugin",
        "jax-cuda13-pjrt",
        "jax-cuda13-plugin",
        "jaxlib",
        "onnxruntime-gpu",
        "sgl-kernel",
        "sglang",
        "tensorflow",
        "tensorrt",
        "tensorrt-cu12-libs",
        "tensorrt-cu13-libs",
        "tensorrt-llm",
        "torch",
        "torchaudio",
        "torchvision",
        "triton",
        "vllm",
        "xformers",
    }
)


class Origin(IntEnum):
    """Where files come from, in the order of the layers: what changes least lies lowest."""

    BASE = 0
    CUDA = 1
    FRAMEWORK = 2
    DEPENDENCIES = 3
    APPLICATION = 4

    @property
    def label(self) -> str:
        """The name in the history of the image."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class _Sizes:
    """From where on a package has layers of its own, and where layers are cut."""

    own: int
    cut: int


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer to be written: its name for people and its paths in their order, directories left out."""

    name: str
    paths: tuple[str, ...]


def group_layers(files: FileSystem, owners: Mapping[str, Owner]) -> list[LayerPlan]:
    """The layers of a file system, lowest first; the last one is the application's, even when it is empty."""
    units = _units(files, owners)
    sizes = _Sizes(OWN_LAYER, CUT)
    while len(plans := _plans(units, files, sizes)) > MAX_LAYERS:
        sizes = _Sizes(2 * sizes.own, 2 * sizes.cut)
    return plans


def _units(files: FileSystem, owners: Mapping[str, Owner]) -> dict[tuple[Origin, str], list[str]]:
    """What stays together, as far as sizes allow: the paths of each package, and those of none."""
    units: dict[tuple[Origin, str], list[str]] = {}
    homes: dict[int, tuple[Origin, str]] = {}
    for path, node in files.nodes.items():
        if not node.children:
            # Hard links need the file that they link to in their own layer.
            key = homes.setdefault(id(node.inode), _unit(path, owners.get(path)))
            units.setdefault(key, []).append(path)
    return units


def _plans(units: Mapping[tuple[Origin, str], list[str]], files: FileSystem, sizes: _Sizes) -> list[LayerPlan]:
    plans: list[LayerPlan] = []
    for origin in Origin:
        own = {name: paths for (where, name), paths in units.items() if where is origin}
        plans += _layers_of(origin, own, files, sizes)
    return plans


def _unit(path: str, owner: Owner | None) -> tuple[Origin, str]:
    if owner is None:
        top = path.partition("/")[0]
        return (Origin.BASE, "") if top in _SYSTEM and not path.startswith("usr/local/") else (Origin.APPLICATION, "")
    if owner.name.startswith(("nvidia-", "cuda-", "libcu", "libnccl", "libnpp", "libnv")):
        return Origin.CUDA, owner.name
    if owner.kind == "apt":
        return Origin.BASE, owner.name
    return (Origin.FRAMEWORK if owner.name in _FRAMEWORKS else Origin.DEPENDENCIES), owner.name


def _layers_of(origin: Origin, units: Mapping[str, list[str]], files: FileSystem, sizes: _Sizes) -> Iterator[LayerPlan]:
    """Large packages by themselves, largest first, then all the others together."""
    found = {name: _size(paths, files) for name, paths in units.items()}
    large = sorted((n for n in units if n and found[n] >= sizes.own), key=lambda name: (-found[name], name))
    for name in large:
        yield from _cut(f"{origin.label} {name}", units[name], files, sizes.cut)
    alone = set(large)
    rest = [path for name, paths in units.items() if name not in alone for path in paths]
    if rest or origin is Origin.APPLICATION:
        yield from _cut(origin.label, _in_tree_order(rest, files), files, sizes.cut)


def _in_tree_order(paths: Iterable[str], files: FileSystem) -> list[str]:
    wanted = set(paths)
    return [path for path in files.nodes if path in wanted]


def _size(paths: Iterable[str], files: FileSystem) -> int:
    inodes = {id(node.inode): _bytes(node) for node in (files.nodes[path] for path in paths)}
    return sum(inodes.values())


def _bytes(node: Node) -> int:
    return node.inode.entry.size if node.inode.entry.kind is Kind.FILE else 0


def _cut(name: str, paths: list[str], files: FileSystem, size: int) -> Iterator[LayerPlan]:
    """Close a layer before the file that would take it beyond ``size``; hard links stay together."""
    parts: list[list[str]] = [[]]
    filled = 0
    part_of: dict[int, list[str]] = {}
    for path in paths:
        node = files.nodes[path]
        if id(node.inode) in part_of:
            part_of[id(node.inode)].append(path)
            continue
        if parts[-1] and filled + _bytes(node) > size:
            parts.append([])
            filled = 0
        filled += _bytes(node)
        parts[-1].append(path)
        part_of[id(node.inode)] = parts[-1]
    for number, part in enumerate(parts, 1):
        yield LayerPlan(f"{name} {number}/{len(parts)}" if len(parts) > 1 else name, tuple(part))
