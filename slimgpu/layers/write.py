"""Writing layers: a file system's groups as blobs, several at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.layers.compress import Format, compress
from slimgpu.layers.tarstream import gathered, layer_entries, tar_chunks, tar_size
from slimgpu.oci.image import Layer
from slimgpu.oci.manifest import Descriptor
from slimgpu.oci.mutate import BlobLayer, open_file
from slimgpu.parallel import Workers, readahead
from slimgpu.rootfs.entry import Entry
from slimgpu.store.files import write_blob

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.layers.group import LayerPlan
    from slimgpu.progress import Task
    from slimgpu.rootfs.filesystem import FileSystem
    from slimgpu.store.context import Context

_PIECE: Final = 1024 * 1024
_AT_ONCE: Final = 3
"""Layers written side by side; each uses several threads itself."""


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A layer that lies as a blob in a directory."""

    name: str
    layer: Layer
    entries: Sequence[Entry]
    """What its tar holds, in order."""


def write_layers(
    files: FileSystem, plans: Sequence[LayerPlan], layer_format: Format, directory: Path, context: Context
) -> list[WrittenLayer]:
    """Write each planned layer to ``directory`` as ``sha256/<hex>``, the last one on top; gives them in order."""
    last = len(plans) - 1
    stacks = [layer_entries(plan.paths, files, top=number == last) for number, plan in enumerate(plans)]
    sizes = [tar_size(entries) for entries in stacks]
    with context.progress.task("writing layers", sum(sizes)) as task, Workers(_AT_ONCE, "layer") as pool:
        watched = pool.watch(task)

        def one(plan: LayerPlan, entries: Sequence[Entry], size: int) -> WrittenLayer:
            tar = _counted(gathered(tar_chunks(entries, files), _PIECE), watched)
            return WrittenLayer(plan.name, _write(tar, size, layer_format, directory, context.jobs), entries)

        return list(pool.map(one, plans, stacks, sizes))


def _write(tar: Iterator[bytes], size: int, layer_format: Format, directory: Path, jobs: int) -> Layer:
    hasher = hashlib.sha256()
    compressed = compress(_hashed(readahead(tar), hasher), layer_format, size, jobs)
    digest, stored, path = write_blob(directory, readahead(compressed))
    descriptor = Descriptor(layer_format.media_type, digest, stored)
    return BlobLayer(descriptor, open_file(path), f"sha256:{hasher.hexdigest()}")


def _hashed(chunks: Iterator[bytes], hasher: hashlib._Hash) -> Iterator[bytes]:
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk


def _counted(chunks: Iterator[bytes], task: Task) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        task.advance(len(chunk))
