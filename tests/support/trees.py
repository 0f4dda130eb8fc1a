"""Layers and images from a terse listing.

A layer maps paths to what is there: bytes or str (a file), None (a directory), or one of the values below. Trees go
through `slimgpu.rootfs.tarwrite`, which its own tests hold against the standard library; layouts are written with
nothing of slimgpu, so that reading one is a test.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import zstandard

from slimgpu.analysis.facts import Facts, gather
from slimgpu.analysis.unpack import unpack
from slimgpu.elf.shrink import NOTHING, Wanted
from slimgpu.oci.manifest import Platform
from slimgpu.oci.reference import parse_reference
from slimgpu.progress import SILENT
from slimgpu.rootfs import tarwrite
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.filesystem import FileSystem
from slimgpu.rootfs.index import index_layer
from slimgpu.rootfs.tree import merge
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from slimgpu.store.transport import open_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from slimgpu.oci.image import Image

MTIME = 1_700_000_000 * 10**9
AMD64 = Platform("amd64", "linux")


@dataclass(frozen=True)
class Symlink:
    """A symlink's text."""

    target: str


@dataclass(frozen=True)
class Hardlink:
    """A hard link to a path of this or a lower layer."""

    target: str


@dataclass(frozen=True)
class File:
    """A file with attributes of its own."""

    content: bytes = b""
    mode: int = 0o644
    mtime: int = MTIME
    uid: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Special:
    """A device or a fifo."""

    kind: Kind
    device: tuple[int, int] = (0, 0)


What = bytes | str | None | Symlink | Hardlink | File | Special
Layer = Mapping[str, What]


def entry_of(path: str, what: What) -> tuple[Entry, bytes]:
    """One line of a listing as an entry and its content."""
    plain = Entry(path=path, kind=Kind.FILE, mode=0o644, mtime=MTIME)
    if what is None:
        return replace(plain, kind=Kind.DIRECTORY, mode=0o755), b""
    if isinstance(what, Symlink):
        return replace(plain, kind=Kind.SYMLINK, mode=0o777, link=what.target), b""
    if isinstance(what, Hardlink):
        return replace(plain, kind=Kind.HARDLINK, link=what.target), b""
    if isinstance(what, Special):
        return replace(plain, kind=what.kind, device=what.device), b""
    if not isinstance(what, File):
        what = File(os.fsencode(what))
    size = len(what.content)
    entry = replace(plain, mode=what.mode, mtime=what.mtime, uid=what.uid, xattrs=what.xattrs, size=size)
    return entry, what.content


def tar_of(layer: Layer | Iterable[tuple[str, What]]) -> bytes:
    """A layer's tar; a list of pairs can name a path twice."""
    parts: list[bytes] = []
    for path, what in layer.items() if isinstance(layer, Mapping) else layer:
        entry, content = entry_of(path, what)
        parts += [tarwrite.header(entry), content, tarwrite.padding(len(content))]
    return b"".join([*parts, tarwrite.END])


def indexed(directory: Path, tar: bytes, jobs: int = 2) -> tuple[Path, list[Entry]]:
    """A tar written to the directory, and its index."""
    path = directory / f"{hashlib.sha256(tar).hexdigest()}.tar"
    path.write_bytes(tar)
    with ThreadPoolExecutor(jobs) as pool:
        return path, index_layer(path, "the layer", pool)


def filesystem(directory: Path, *layers: Layer) -> FileSystem:
    """The layers stacked, lowest first; to be opened with ``with``."""
    read = [indexed(directory, tar_of(layer)) for layer in layers]
    stacks = [entries for _, entries in read]
    names = [f"layer {number}" for number in range(1, len(stacks) + 1)]
    return FileSystem(merge(stacks, names), [path for path, _ in read], stacks)


def digest(data: bytes) -> str:
    """The sha256 digest, by hashlib alone."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compressed(tar: bytes, form: str) -> tuple[str, bytes]:
    """Media type and blob of a layer as ``gzip``, ``zstd`` or ``tar``."""
    if form == "gzip":
        return "application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(tar, 1, mtime=0)
    if form == "zstd":
        return "application/vnd.oci.image.layer.v1.tar+zstd", zstandard.compress(tar)
    return "application/vnd.oci.image.layer.v1.tar", tar


def write_layout(
    root: Path,
    tars: Sequence[bytes],
    runtime: Mapping[str, Any] | None = None,
    *,
    form: str = "gzip",
    blobs: Mapping[int, bytes] | None = None,
) -> str:
    """An OCI layout of these layers, and its name; ``blobs`` puts other bytes in the place of a layer's."""
    folder = root / "blobs" / "sha256"
    folder.mkdir(parents=True)

    def put(data: bytes, media_type: str, held: bytes | None = None) -> dict[str, Any]:
        (folder / digest(data).partition(":")[2]).write_bytes(data if held is None else held)
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    layers = []
    for number, tar in enumerate(tars):
        media_type, blob = compressed(tar, form)
        layers.append(put(blob, media_type, (blobs or {}).get(number)))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": dict(runtime or {}),
        "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
        "history": [{"created_by": f"step {number}"} for number in range(1, len(tars) + 1)],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }
    entry = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return f"oci:{root}"


@contextmanager
def opened(reference: str, cache: Cache | None = None) -> Iterator[Image]:
    """The image of a reference."""
    with open_image(parse_reference(reference), AMD64, cache or Cache(), SILENT) as image:
        yield image


@contextmanager
def facts_of(
    directory: Path,
    *layers: Layer,
    runtime: Mapping[str, Any] | None = None,
    heed_jit: bool = True,
    jobs: int = 2,
    wanted: Wanted = NOTHING,
) -> Iterator[tuple[Image, Facts, Context]]:
    """An image of these layers, unpacked, with its facts."""
    number = sum(1 for _ in directory.glob("image-*"))
    reference = write_layout(directory / f"image-{number}", [tar_of(layer) for layer in layers], runtime, form="tar")
    context = Context(Cache(), jobs)
    with opened(reference, context.cache) as image, unpack(image, context) as files:
        yield image, gather(files, image, context, wanted, heed_jit=heed_jit), context


def status(*stanzas: str) -> str:
    """A dpkg database: each stanza is a name, and maybe more fields on further lines."""
    texts = []
    for stanza in stanzas:
        name, _, more = stanza.partition("\n")
        lines = [f"Package: {name}", "Status: install ok installed", "Architecture: amd64", "Version: 1.0"]
        texts.append("\n".join([*lines, *more.splitlines()]) + "\n")
    return "\n".join(texts)


def debian(packages: Mapping[str, Mapping[str, What]], fields: Mapping[str, str] | None = None) -> dict[str, What]:
    """Files of a layer with installed packages: their content, the database and the lists."""
    layer: dict[str, What] = {}
    stanzas = []
    for name, files in packages.items():
        extra = (fields or {}).get(name, "")
        stanzas.append(f"{name}\n{extra}" if extra else name)
        layer |= files
        directories = {parent for path in files for parent in _parents(path)}
        listed = sorted({"/.", *(f"/{path}" for path in (*directories, *files))})
        layer[f"var/lib/dpkg/info/{name}.list"] = "\n".join(listed) + "\n"
        layer[f"var/lib/dpkg/info/{name}.md5sums"] = ""
    return {**layer, "var/lib/dpkg/status": status(*stanzas)}


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


SITE = "usr/local/lib/python3.11/site-packages"


def distribution(
    name: str, version: str, files: Mapping[str, What], requires: Sequence[str] = (), site: str = SITE
) -> dict[str, What]:
    """Files of a layer with an installed distribution; ``files`` lie below ``site``."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata = "\n".join([*lines, *(f"Requires-Dist: {text}" for text in requires)]) + "\n\nText: not a field\n"
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/METADATA", f"{info}/RECORD"))
    return {
        **{f"{site}/{path}": what for path, what in files.items()},
        f"{site}/{info}/METADATA": metadata,
        f"{site}/{info}/RECORD": record,
    }
