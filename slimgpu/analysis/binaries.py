"""The ELF facts of every file in an image, read by a pool of processes and kept in the cache by layer."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import TYPE_CHECKING, Final

import zstandard

from slimgpu.elf.read import ElfFacts, is_elf, read_elf
from slimgpu.errors import ImageError
from slimgpu.parallel import ordered_map, process_pool
from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from slimgpu.oci.image import Image
    from slimgpu.progress import Task
    from slimgpu.rootfs.entry import Entry
    from slimgpu.rootfs.filesystem import FileSystem
    from slimgpu.store.context import Context

_FORMAT: Final = "elf-3"
_BATCH: Final = 32

LayerFacts = dict[int, ElfFacts]
"""By the offset of the content in the layer's tar."""


def read_binaries(files: FileSystem, image: Image, context: Context) -> dict[str, ElfFacts]:
    """Facts by path, for each well-formed ELF file for the CPU; malformed ones are left out."""
    wanted = [[e for e in entries if _is_readable(e)] for entries in files.layers]
    with context.progress.task("reading ELF files", sum(map(len, wanted)), "files") as task:
        layers = [
            _load(context.cache.derived(_FORMAT, layer.diff_id, partial(_read_layer, tar, entries, context.jobs, task)))
            for layer, tar, entries in zip(image.layers, files.tars, wanted, strict=True)
        ]
    return {
        path: facts
        for path, node in files.files()
        if (facts := layers[node.inode.layer].get(node.inode.entry.offset)) is not None
    }


def _is_readable(entry: Entry) -> bool:
    return entry.kind is Kind.FILE and entry.extents is None and is_elf(entry.magic)


def _read_layer(tar: Path, entries: Sequence[Entry], jobs: int, task: Task) -> bytes:
    places = [(entry.offset, entry.size) for entry in entries]
    batches = [places[i : i + _BATCH] for i in range(0, len(places), _BATCH)]
    if len(batches) <= 1:
        return _dump([pair for batch in batches for pair in _read_batch(tar, batch)])
    found = []
    with process_pool(min(jobs, len(batches)), __name__) as pool:
        for pairs in ordered_map(pool, partial(_read_batch, tar), batches, 2 * jobs):
            found += pairs
            task.advance(_BATCH)
    return _dump(found)


def _read_batch(tar: Path, places: Sequence[tuple[int, int]]) -> list[tuple[int, ElfFacts]]:
    found = []
    for offset, size in places:
        try:
            found.append((offset, read_elf(tar, offset, size, f"{tar} at {offset}")))
        except ImageError:
            continue  # no loader could load it either
    return found


def _dump(found: Sequence[tuple[int, ElfFacts]]) -> bytes:
    rows = [(offset, *dataclasses.astuple(facts)) for offset, facts in found]
    return zstandard.compress(json.dumps(rows).encode(), 3)


def _load(data: bytes) -> LayerFacts:
    found = {}
    for offset, bits, machine, soname, needed, *rest in json.loads(zstandard.decompress(data)):
        found[offset] = ElfFacts(bits, machine, soname, tuple(needed), *rest)
    return found
