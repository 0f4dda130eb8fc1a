"""Reading images in tar archives: ``oci-archive:`` (a layout in a tar) and ``docker-archive:`` (``docker save``).

Source: https://github.com/moby/docker-image-spec/blob/v1.3.1/spec.md#combined-image-json--filesystem-changeset-format
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError, alias_generators

from slimgpu.errors import ImageError, NotFoundError, UsageError
from slimgpu.oci import media
from slimgpu.oci.config import ImageConfig
from slimgpu.oci.digest import check_bytes, digest_bytes
from slimgpu.oci.manifest import Descriptor, Manifest, dump
from slimgpu.oci.mutate import open_file, parse_image
from slimgpu.oci.reference import PathTransport, parse_reference
from slimgpu.store.cache import unpacked
from slimgpu.store.documents import check_document_size
from slimgpu.store.layout import read_layout
from slimgpu.store.tarindex import ArchivedBlobs, TarIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from slimgpu.oci.image import Image
    from slimgpu.oci.manifest import Platform
    from slimgpu.oci.mutate import OpenBlob
    from slimgpu.oci.reference import PathReference
    from slimgpu.progress import Progress
    from slimgpu.store.cache import Cache
    from slimgpu.store.layout import BlobFile, Blobs

_MAGIC: Final = b"ustar"
_MAGIC_OFFSET: Final = 257
_COMPRESSED: Final = {b"\x1f\x8b": media.OCI_LAYER_GZIP, b"\x28\xb5\x2f\xfd": media.OCI_LAYER_ZSTD}
_HEX: Final = re.compile(r"(?:^|/)([0-9a-f]{64})(?:\.json)?$")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One image of ``manifest.json``; all names are members of the archive."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(alias_generator=alias_generators.to_pascal)
    config: str
    layers: tuple[str, ...] | None = None
    repo_tags: tuple[str, ...] | None = None


_ENTRIES: TypeAdapter[tuple[_Entry, ...]] = TypeAdapter(tuple[_Entry, ...])


@contextmanager
def open_archive(reference: PathReference, platform: Platform, cache: Cache, progress: Progress) -> Iterator[Image]:
    """The image in the archive file; a compressed archive is first unpacked to a temporary file."""
    name = str(reference)
    with _uncompressed(reference.path, name, cache, progress) as path:
        index = TarIndex(path, name)
        if reference.transport is PathTransport.OCI_ARCHIVE:
            yield read_layout(name, ArchivedBlobs(index), reference.identifier, platform)
        else:
            yield read_docker_archive(index, reference.tag)


@contextmanager
def open_archived_layout(reference: PathReference, cache: Cache, progress: Progress) -> Iterator[Blobs]:
    """The blobs of the layout in the archive file."""
    name = str(reference)
    with _uncompressed(reference.path, name, cache, progress) as path:
        yield ArchivedBlobs(TarIndex(path, name))


@contextmanager
def _uncompressed(path: Path, name: str, cache: Cache, progress: Progress) -> Iterator[Path]:
    if not path.is_file():
        raise NotFoundError(f"{name} is not a file; an image in a directory is named oci:{path}")
    with path.open("rb") as file:
        head = file.read(_MAGIC_OFFSET + len(_MAGIC))
    if head.endswith(_MAGIC):
        yield path
        return
    with cache.temporary_directory("archive") as directory:
        plain = directory / "archive.tar"
        with (
            progress.task(f"unpack {path.name}", path.stat().st_size) as task,
            open_file(path)() as chunks,
            plain.open("wb") as file,
        ):
            for chunk in unpacked(_counted(chunks, task.advance), name):
                file.write(chunk)
        yield plain


def _counted(chunks: Iterator[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        advance(len(chunk))


def read_docker_archive(index: TarIndex, tag: str | None) -> Image:
    """The image named ``tag`` (``repo:tag``, ``@0`` for the first; None: the only one).

    The archive has no manifest, so an OCI manifest is made that describes the layers as they are stored. Raises
    `ImageError` naming the archive and the member that is missing or wrong.
    """
    entry = _pick(_entries(index), tag, index.name)
    raw_config = _read_config(index, entry.config)
    config = ImageConfig.parse(raw_config, index.name)
    members = entry.layers or ()
    if len(members) != len(config.diff_ids):
        raise ImageError(
            f"{index.name} lists {len(members)} layers but {entry.config} has {len(config.diff_ids)}; save it again"
        )
    places = [_find(index, member) for member in members]
    pairs = zip(places, config.diff_ids, strict=True)
    descriptors = tuple(_describe(place, diff_id) for place, diff_id in pairs)
    manifest = Manifest(
        schema_version=2,
        media_type=media.OCI_MANIFEST,
        config=Descriptor(media.OCI_CONFIG, digest_bytes(raw_config), len(raw_config)),
        layers=descriptors,
    )
    by_digest = {d.digest: place for d, place in zip(descriptors, places, strict=True)}
    return parse_image(index.name, dump(manifest), raw_config, lambda layer: _open(by_digest[layer.digest]))


def _open(place: BlobFile) -> OpenBlob:
    return open_file(place.path, place.offset, place.size)


def _entries(index: TarIndex) -> Sequence[_Entry]:
    try:
        data = index.document("manifest.json")
    except FileNotFoundError as error:
        raise ImageError(f"{index.name} has no manifest.json; a layout in a tar is named oci-archive:FILE") from error
    check_document_size(len(data), f"manifest.json in {index.name}")
    try:
        return _ENTRIES.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ImageError(f"manifest.json in {index.name} is not valid: {where}: {first['msg']}") from error


def _pick(entries: Sequence[_Entry], tag: str | None, name: str) -> _Entry:
    if tag is None:
        chosen = entries
    elif tag.startswith("@"):
        chosen = [entry for number, entry in enumerate(entries) if tag == f"@{number}"]
    else:
        wanted = _full_name(tag)
        chosen = [e for e in entries if any(_full_name(t) == wanted for t in e.repo_tags or ())]
    if len(chosen) == 1:
        return chosen[0]
    tags = ", ".join(sorted(t for entry in entries for t in entry.repo_tags or ())) or "none"
    if tag is not None:
        raise NotFoundError(f"{name} is not in the archive; its images are: {tags}")
    raise NotFoundError(f"{name} holds {len(entries)} images; add the name of one: {tags} (or @0 for the first)")


def _full_name(tag: str) -> str:
    """``nginx`` as ``docker://docker.io/library/nginx:latest``; what is no name stays as it is."""
    try:
        return str(parse_reference(f"docker://{tag}"))
    except UsageError:
        return tag


def _read_config(index: TarIndex, member: str) -> bytes:
    place = _find(index, member)
    what = f"{member} in {index.name}"
    check_document_size(place.size, what)
    named = _HEX.search(member)
    data = place.read()
    return check_bytes(data, f"sha256:{named[1]}", what) if named else data


def _find(index: TarIndex, member: str) -> BlobFile:
    try:
        return index.find(member)
    except FileNotFoundError as error:
        raise ImageError(f"{index.name} lacks its member {member!r}; save the image again") from error


def _describe(place: BlobFile, diff_id: str) -> Descriptor:
    """A plain layer is named by its diff id, so reading it checks that; a compressed one is hashed now."""
    with _open(place)() as chunks:
        head = next(chunks, b"")
    for signature, media_type in _COMPRESSED.items():
        if head.startswith(signature):
            return Descriptor(media_type, _hash(place), place.size)
    return Descriptor(media.OCI_LAYER, diff_id, place.size)


def _hash(place: BlobFile) -> str:
    hasher = hashlib.sha256()
    with _open(place)() as chunks:
        for chunk in chunks:
            hasher.update(chunk)
    return f"sha256:{hasher.hexdigest()}"
