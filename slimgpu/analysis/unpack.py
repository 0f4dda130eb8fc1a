"""From an image to its file system: layers spooled and indexed through the cache, then stacked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slimgpu.parallel import Workers
from slimgpu.rootfs import index
from slimgpu.rootfs.filesystem import FileSystem
from slimgpu.rootfs.tree import merge

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from slimgpu.oci.image import Image, Layer
    from slimgpu.progress import Task
    from slimgpu.rootfs.entry import Entry
    from slimgpu.store.cache import Cache
    from slimgpu.store.context import Context


def unpack(image: Image, context: Context) -> FileSystem:
    """The image's file system, its layers spooled to the cache first where they are not there yet."""
    names = [f"layer {number} of {image.name}" for number in range(1, len(image.layers) + 1)]
    total = sum(layer.descriptor.size for layer in image.layers)
    with (
        context.progress.task("unpacking layers", total) as task,
        Workers(context.jobs, "layer") as layers,
        Workers(context.jobs, "hash") as hashing,
    ):
        watched = layers.watch(task)

        def one(layer: Layer, name: str) -> tuple[Path, list[Entry]]:
            return _unpack_layer(layer, name, context.cache, hashing, watched)

        unpacked = list(layers.map(one, image.layers, names))
    layers_entries = [entries for _, entries in unpacked]
    return FileSystem(merge(layers_entries, names), [tar for tar, _ in unpacked], layers_entries)


def _unpack_layer(layer: Layer, name: str, cache: Cache, executor: Executor, task: Task) -> tuple[Path, list[Entry]]:
    tar = cache.layer(layer, task)
    data = cache.derived(index.FORMAT, layer.diff_id, lambda: index.dump(index.index_layer(tar, name, executor)))
    return tar, index.load(data)
