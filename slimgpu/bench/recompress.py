"""The same image with its layers compressed anew, layer by layer: what zstd alone brings."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from slimgpu.layers.compress import compress
from slimgpu.oci.manifest import Descriptor
from slimgpu.oci.mutate import BlobLayer, compose, open_file
from slimgpu.progress import SILENT

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.layers.compress import Format
    from slimgpu.oci.image import Image, Layer
    from slimgpu.store.context import Context


def recompressed(image: Image, layer_format: Format, blobs: Path, context: Context) -> Image:
    """The image with every layer in ``layer_format``; the layers go to ``blobs/sha256``, the tars in them are the same.

    Raises what reading the image raises.
    """
    folder = blobs / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    stored = sum(layer.descriptor.size for layer in image.layers)
    with context.progress.task(f"the image with {layer_format} layers", stored) as task:
        layers = []
        for layer in image.layers:
            layers.append(_recompress(layer, layer_format, folder, context))
            task.advance(layer.descriptor.size)
    return compose(image.name, image.config, layers, image.manifest.annotations)


def _recompress(layer: Layer, layer_format: Format, folder: Path, context: Context) -> BlobLayer:
    with SILENT.task("", None) as task:
        tar = context.cache.layer(layer, task)
    hasher, size = hashlib.sha256(), 0
    partial = folder / "partial"
    with partial.open("wb") as file, open_file(tar)() as chunks:
        for data in compress(chunks, layer_format, tar.stat().st_size, context.jobs):
            hasher.update(data)
            size += file.write(data)
    path = folder / hasher.hexdigest()
    os.replace(partial, path)  # noqa: PTH105 - in one step
    descriptor = Descriptor(layer_format.media_type, f"sha256:{hasher.hexdigest()}", size)
    return BlobLayer(descriptor, open_file(path), layer.diff_id)
