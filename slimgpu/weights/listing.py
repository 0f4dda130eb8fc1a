"""What an artifact holds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from slimgpu.oci.digest import digest_bytes
from slimgpu.weights.artifact import index_of
from slimgpu.weights.results import (
    LIST_SCHEMA,
    ListedBlob,
    ListedFile,
    ListedLink,
    ListedTensor,
    Listing,
    dtype_totals,
    transform_totals,
)

if TYPE_CHECKING:
    from slimgpu.oci.image import Artifact


def list_artifact(artifact: Artifact) -> Listing:
    """Everything in the artifact; `ImageError` for one that holds neither weights nor a cache."""
    index = index_of(artifact)
    chunks = Counter(chunk.blob for chunk in index.chunks)
    return Listing(
        schema=LIST_SCHEMA,
        reference=artifact.name,
        digest=digest_bytes(artifact.raw_manifest),
        artifact_type=artifact.manifest.artifact_type or "",
        annotations=dict(artifact.manifest.annotations or {}),
        index_version=index.schema_version,
        values=index.values,
        bytes=sum(file.size for file in index.files),
        stored=sum(chunk.stored for chunk in index.chunks),
        files=tuple(ListedFile(file.path, file.size, file.digest, file.executable) for file in index.files),
        links=tuple(ListedLink(link.path, link.target) for link in index.links),
        dtypes=dtype_totals(index),
        transforms=transform_totals(index),
        blobs=tuple(ListedBlob(blob.digest, blob.size, chunks[number]) for number, blob in enumerate(index.blobs)),
        tensors=tuple(
            ListedTensor(t.name, t.dtype, t.shape, t.size, index.files[t.file].path, t.digest) for t in index.tensors
        ),
    )
