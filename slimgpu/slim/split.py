"""Weights on their way out of an image: packed straight from its layers to an artifact that is attached to it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slimgpu.analysis.weights import Original, Originals
from slimgpu.errors import ImageError, UsageError
from slimgpu.oci import media
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.image import Blob
from slimgpu.oci.manifest import Descriptor
from slimgpu.oci.mutate import compose_artifact
from slimgpu.rootfs.entry import Kind
from slimgpu.weights.digests import values_digest
from slimgpu.weights.index import ARTIFACT_TYPE, Index, TensorEntry
from slimgpu.weights.order import rank
from slimgpu.weights.pack import pack
from slimgpu.weights.pointer import Pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from slimgpu.oci.image import Artifact, Image
    from slimgpu.rootfs.filesystem import FileSystem
    from slimgpu.slim.plan import Plan
    from slimgpu.store.context import Context

_OWNER_RUNS = 0o100


@dataclass(frozen=True, slots=True)
class Split:
    """Packed weights; their blobs lie in the folder that they were packed to."""

    pointer: Pointer
    config: tuple[str, bytes]
    """Media type and bytes of the index."""
    blobs: Sequence[Blob]

    @property
    def stored(self) -> int:
        """Bytes of the blobs."""
        return sum(blob.descriptor.size for blob in self.blobs)

    def artifact(self, subject: Image | None) -> Artifact:
        """The artifact, attached to the image ``subject``; None where its manifest is not kept."""
        attached = None if subject is None else _descriptor(subject)
        return compose_artifact(self.pointer.ref, ARTIFACT_TYPE, self.config, self.blobs, subject=attached)


def _descriptor(image: Image) -> Descriptor:
    media_type = image.manifest.media_type or media.OCI_MANIFEST
    return Descriptor(media_type, digest_bytes(image.raw_manifest), len(image.raw_manifest))


def split(
    plan: Plan, files: FileSystem, folder: Path, context: Context, finish: Callable[[Blob], None] = lambda _: None
) -> Split | None:
    """Pack what the plan splits off; new blobs go to ``folder/sha256/<hex>``, and each to ``finish``.

    None when the plan splits nothing off. Files with the same bytes are packed once. The same image and plan give the
    same index, and so the same pointer, every time.
    """
    paths = sorted(plan.lent)
    if not paths:
        return None
    _check(paths, plan, files)
    first = _first_of_each(paths, files)
    with Originals(files) as originals:
        sources = [
            _Source(path, _is_executable(files, path), originals.content(path)) for path in paths if first[path] == path
        ]
        packed = pack(sources, (), folder, context, finish=finish)
    _check_content(packed.index, files)
    index = _with_copies(packed.index, first, files)
    config = index.dump()
    pointer = Pointer(plan.weights.ref, digest_bytes(config[1]))
    return Split(pointer, config, packed.artifact.layers)


@dataclass(frozen=True, slots=True)
class _Source:
    """A file of the image, see `slimgpu.weights.sources.Source`."""

    path: str
    executable: bool
    content: Original

    def open(self) -> AbstractContextManager[Original]:
        return nullcontext(self.content)


def _is_executable(files: FileSystem, path: str) -> bool:
    return bool(files.nodes[path].inode.entry.mode & _OWNER_RUNS)


def _check(paths: Sequence[str], plan: Plan, files: FileSystem) -> None:
    for path in paths:
        node = files.nodes.get(path)
        if node is None or node.inode.entry.kind is not Kind.FILE or node.inode.entry.extents is not None:
            raise UsageError(f"the plan packs {path!r}, which is no ordinary file of {plan.image}; make a new plan")


def _first_of_each(paths: Sequence[str], files: FileSystem) -> Mapping[str, str]:
    """For each path the first one with the same bytes; an ONNX model is told by its name, too."""
    seen: dict[tuple[str, bool], str] = {}
    return {
        path: seen.setdefault((files.nodes[path].inode.entry.digest, path.lower().endswith(".onnx")), path)
        for path in paths
    }


def _check_content(index: Index, files: FileSystem) -> None:
    for file in index.files:
        if file.digest != files.nodes[file.path].inode.entry.digest:
            raise ImageError(f"the cached content of {file.path} has changed; empty the cache and run again")


def _with_copies(index: Index, first: Mapping[str, str], files: FileSystem) -> Index:
    """The index as if every path had been packed by itself."""
    paths = sorted(first)
    packed = {file.path: number for number, file in enumerate(index.files)}
    inside: dict[int, list[TensorEntry]] = {}
    for tensor in index.tensors:
        inside.setdefault(tensor.file, []).append(tensor)
    tensors = [
        replace(tensor, file=number)
        for number, path in enumerate(paths)
        for tensor in inside.get(packed[first[path]], ())
    ]
    tensors.sort(key=lambda tensor: (rank(tensor.name), tensor.file, tensor.offset))
    return replace(
        index,
        values=values_digest(tensors),
        files=tuple(
            replace(index.files[packed[first[path]]], path=path, executable=_is_executable(files, path))
            for path in paths
        ),
        tensors=tuple(tensors),
    )
