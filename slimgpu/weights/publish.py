"""From files to an artifact at its destination: collect, pack, and store what is new."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from slimgpu.errors import SlimgpuError
from slimgpu.progress import SILENT
from slimgpu.store.transport import open_artifact_sink
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.index import ARTIFACT_TYPE, CACHE_TYPE
from slimgpu.weights.pack import Base, pack
from slimgpu.weights.results import PACK_SCHEMA, PackResult, dtype_totals, transform_totals
from slimgpu.weights.sources import collect

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from slimgpu.oci.image import Blob
    from slimgpu.oci.manifest import Descriptor
    from slimgpu.oci.reference import Reference
    from slimgpu.store.context import Context
    from slimgpu.weights.caches import CacheKey
    from slimgpu.weights.pack import Packed


def publish(
    paths: Sequence[Path],
    destination: Reference,
    context: Context,
    *,
    bases: Sequence[Reference] = (),
    subject: Descriptor | None = None,
    key: CacheKey | None = None,
    check: bool = False,
) -> PackResult:
    """Pack ``paths`` and store the artifact at ``destination``.

    Chunks of ``bases``, and of what the destination's name means so far, are not stored again; but with ``check``,
    nothing that the destination has is believed. ``subject`` is the manifest that it is attached to. With ``key`` it
    is a compiler's cache. Raises what `collect`, `pack` and stores raise.
    """
    began = time.monotonic()
    destination = key.place(destination) if key else destination
    sources, links = collect(paths)
    with ExitStack() as stack:
        sink = stack.enter_context(open_artifact_sink(destination, context.cache, check=check))
        known = _bases(bases, None if check else destination, context, stack)

        def finish(blob: Blob) -> None:
            with SILENT.task("storing a blob", blob.descriptor.size) as task:
                sink.put(blob, task)

        packed = pack(
            sources,
            links,
            sink.workspace / "blobs",
            context,
            bases=known,
            finish=finish,
            artifact_type=CACHE_TYPE if key else ARTIFACT_TYPE,
            annotations=key.annotations if key else None,
            subject=subject,
        )
        total = sum(blob.descriptor.size for blob in packed.artifact.layers)
        with context.progress.task("storing the artifact", total) as task:
            digest = sink.write(packed.artifact, task)
    return _result(packed, destination, digest, time.monotonic() - began)


def _bases(bases: Sequence[Reference], destination: Reference | None, context: Context, stack: ExitStack) -> list[Base]:
    """Named ones must be there; whether the destination's name means anything yet, nobody has promised."""
    found = [stack.enter_context(open_weights(base, context)) for base in bases]
    if destination is not None:
        with suppress(SlimgpuError):
            found.append(stack.enter_context(open_weights(destination, context)))
    return [Base(weights.index, weights.artifact.layers) for weights in found]


def _result(packed: Packed, destination: Reference, digest: str, seconds: float) -> PackResult:
    index, manifest = packed.index, packed.artifact.manifest
    return PackResult(
        schema=PACK_SCHEMA,
        reference=str(destination),
        digest=digest,
        artifact_type=manifest.artifact_type or "",
        annotations=dict(manifest.annotations or {}),
        values=index.values,
        files=len(index.files),
        tensors=len(index.tensors),
        bytes=sum(file.size for file in index.files),
        stored=sum(chunk.stored for chunk in index.chunks),
        new=packed.stored,
        dtypes=dtype_totals(index),
        transforms=transform_totals(index),
        seconds=round(seconds, 3),
    )
