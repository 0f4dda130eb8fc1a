"""Tiny images in memory: layers of a few files, and an executable that needs nothing."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import zstandard
from isal import igzip

from slimgpu.oci import media
from slimgpu.oci.config import ImageConfig
from slimgpu.oci.manifest import Descriptor
from slimgpu.oci.mutate import BlobLayer, compose

if TYPE_CHECKING:
    from slimgpu.oci.image import Image, Layer

Compression = Literal["plain", "gzip", "zstd"]

_MEDIA_TYPES: Mapping[Compression, str] = {
    "plain": media.OCI_LAYER,
    "gzip": media.OCI_LAYER_GZIP,
    "zstd": media.OCI_LAYER_ZSTD,
}


@dataclass(frozen=True)
class Entry:
    """One member of a layer's tar."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    mode: int = 0o644
    linkname: str = ""
    uid: int = 0
    gid: int = 0
    mtime: int = 1_700_000_000
    pax: Mapping[str, str] = field(default_factory=dict)

    def info(self) -> tarfile.TarInfo:
        info = tarfile.TarInfo(self.name)
        info.type, info.mode, info.linkname, info.size = self.kind, self.mode, self.linkname, len(self.content)
        info.uid, info.gid, info.mtime, info.pax_headers = self.uid, self.gid, self.mtime, dict(self.pax)
        return info


def directory(name: str, mode: int = 0o755) -> Entry:
    return Entry(name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, kind=tarfile.SYMTYPE, linkname=target, mode=0o777)


def hardlink(name: str, target: str) -> Entry:
    return Entry(name, kind=tarfile.LNKTYPE, linkname=target)


def whiteout(name: str) -> Entry:
    folder, _, base = name.rpartition("/")
    return Entry(f"{folder}/.wh.{base}" if folder else f".wh.{base}")


def make_tar(entries: Iterable[Entry]) -> bytes:
    """As engines write it: with two blocks of zeros at its end, and no padding to a record as Python's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            tar.addfile(entry.info(), io.BytesIO(entry.content))
        end = int(tar.offset)
    return buffer.getvalue()[:end] + bytes(1024)


def compress(data: bytes, compression: Compression) -> bytes:
    if compression == "gzip":
        return bytes(igzip.compress(data, mtime=0))
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(data)
    return data


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_layer(entries: Iterable[Entry], compression: Compression = "gzip") -> Layer:
    """A layer that is held in memory."""
    tar = make_tar(entries)
    blob = compress(tar, compression)
    descriptor = Descriptor(_MEDIA_TYPES[compression], digest_of(blob), len(blob))
    return BlobLayer(descriptor, lambda: nullcontext(iter([blob])), digest_of(tar))


def make_image(
    layers: Sequence[Layer], config: Mapping[str, Any] | None = None, name: str = "test", **platform: str
) -> Image:
    """An OCI image of these layers; ``config`` is its runtime section (Cmd, Env, ...)."""
    document = {
        "architecture": platform.get("architecture", "amd64"),
        "os": platform.get("os", "linux"),
        "created": "2024-01-01T00:00:00Z",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": "2024-01-01T00:00:00Z", "created_by": f"layer {i}"} for i in range(len(layers))],
    }
    return compose(name, ImageConfig(document), layers)


def hello_executable(text: str = "hello\n") -> bytes:
    """A static x86-64 ELF file that prints ``text`` and exits with 0."""
    message = text.encode()
    code_size, base = 34, 0x400000
    start = 64 + 56
    code = b"\xb8\x01\x00\x00\x00\xbf\x01\x00\x00\x00"  # write(1,
    code += b"\xbe" + struct.pack("<I", base + start + code_size)  # text,
    code += b"\xba" + struct.pack("<I", len(message)) + b"\x0f\x05"  # size)
    code += b"\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05" + b"\x90" * 3  # exit(0)
    size = start + code_size + len(message)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    assert len(code) == code_size
    return header + segment + code + message


def hello_image(compression: Compression = "gzip", text: str = "hello\n", name: str = "test") -> Image:
    """Three layers: an executable, some files, and a whiteout over one of them; all differ with ``text``."""
    note = text.encode()
    layers = [
        make_layer([directory("bin"), Entry("bin/hello", hello_executable(text), mode=0o755)], compression),
        make_layer(
            [directory("data"), Entry("data/kept", note * 1000), Entry("data/gone"), symlink("data/link", "kept")],
            compression,
        ),
        make_layer([whiteout("data/gone"), Entry("data/note", note)], compression),
    ]
    return make_image(layers, {"Cmd": ["/bin/hello"], "Env": ["PATH=/bin"]}, name)
