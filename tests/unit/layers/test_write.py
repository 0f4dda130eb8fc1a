from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import ImageError
from slimgpu.layers.compress import Format
from slimgpu.layers.group import LayerPlan
from slimgpu.layers.tarstream import gathered, layer_entries, tar_chunks, tar_size
from slimgpu.layers.write import write_layers
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.tarread import TarReader
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from tests.support.trees import MTIME, File, Hardlink, Special, Symlink, filesystem

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.layers.write import WrittenLayer
    from slimgpu.oci.manifest import Descriptor
    from tests.support.trees import Layer

_LAYER: Layer = {
    "etc": None,
    "etc/conf": b"c" * 513,
    "usr/lib/big": bytes(range(256)) * 9000,
    "usr/lib/hard": Hardlink("usr/lib/big"),
    "usr/lib/link": Symlink("big"),
    "usr/lib/caps": File(b"x", mode=0o4755, xattrs=(("security.capability", b"\0\xff"),)),
    "app/main.py": b"print()",
    "app/empty": None,
    "dev/null": Special(Kind.CHARACTER, (1, 3)),
    "usr/bin/tool": b"t",
}
_PLANS = [
    LayerPlan("base", ("dev/null", "etc/conf", "usr/lib/big", "usr/lib/hard", "usr/lib/link")),
    LayerPlan("application", ("app/empty", "app/main.py", "usr/bin/tool", "usr/lib/caps")),
]


def written(tmp_path: Path, form: Format = Format.TAR, jobs: int = 2) -> list[WrittenLayer]:
    with filesystem(tmp_path, _LAYER) as files:
        return write_layers(files, _PLANS, form, tmp_path / "blobs", Context(Cache(), jobs))


def stored(layer: WrittenLayer) -> bytes:
    with layer.layer.open() as chunks:
        return b"".join(chunks)


def test_the_standard_library_reads_every_layer(tmp_path: Path) -> None:
    for layer in written(tmp_path):
        tar = stored(layer)
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            for member, entry in zip(archive.getmembers(), layer.entries, strict=True):
                assert member.name == entry.path
                if entry.kind is Kind.FILE:
                    file = archive.extractfile(member)
                    assert file is not None
                    assert f"sha256:{hashlib.sha256(file.read()).hexdigest()}" == entry.digest
        assert len(tar) == tar_size(layer.entries)
        assert tar.endswith(bytes(1024))


def test_what_is_written_is_what_was_said(tmp_path: Path) -> None:
    for layer in written(tmp_path):
        read = [replace(entry, offset=0) for entry in TarReader(stored(layer), "it")]
        said = [replace(e, offset=0, digest="", magic=b"") for e in layer.entries]
        assert read == said


def test_parents_come_first_and_the_top_layer_names_all_directories(tmp_path: Path) -> None:
    with filesystem(tmp_path, {**_LAYER, "usr": None, "opt": File(b""), "etc/none": None}) as files:
        base, top = (layer_entries(plan.paths, files, top=plan is _PLANS[-1]) for plan in _PLANS)
    assert [entry.path for entry in base] == [
        *("dev", "dev/null", "etc", "etc/conf", "usr", "usr/lib", "usr/lib/big", "usr/lib/hard", "usr/lib/link")
    ]
    assert [entry.path for entry in top] == [
        *("app", "app/empty", "app/main.py", "etc", "etc/none", "usr", "usr/bin", "usr/bin/tool"),
        *("usr/lib", "usr/lib/caps"),
    ], "dev was in no layer, so that it has no time of its own"
    assert {entry.path: entry.kind for entry in base}["usr/lib/hard"] is Kind.HARDLINK


def test_directories_have_their_time_in_the_top_layer_only(tmp_path: Path) -> None:
    layer: Layer = {"usr": None, "usr/a": b"a", "srv": None, "srv/b": b"b", "low": None}
    with filesystem(tmp_path, layer) as files:
        low = layer_entries(["low", "usr/a"], files, top=False)
        high = layer_entries(["srv/b"], files, top=True)
    assert [(entry.path, entry.mtime) for entry in low] == [("low", 0), ("usr", 0), ("usr/a", MTIME)]
    assert [(entry.path, entry.mtime) for entry in high] == [
        *(("low", MTIME), ("srv", MTIME), ("srv/b", MTIME), ("usr", MTIME))
    ]


def test_a_lower_layer_does_not_depend_on_what_else_is_in_the_image(tmp_path: Path) -> None:
    def base_of(more: Layer) -> Descriptor:
        plans = [LayerPlan("base", ("usr/lib/x",)), LayerPlan("application", tuple(more))]
        with filesystem(tmp_path, {"usr": None, "usr/lib": None, "usr/lib/x": b"x", **more}) as files:
            return write_layers(files, plans, Format.ZSTD, tmp_path / "blobs", Context(Cache(), 2))[0].layer.descriptor

    assert base_of({}) == base_of({"usr/bin/y": b"y"}) == base_of({"usr/lib/z": b"z"})


@pytest.mark.parametrize("form", [Format.ZSTD, Format.GZIP])
def test_workers_make_no_difference(tmp_path: Path, form: Format) -> None:
    found = [[layer.layer.descriptor for layer in written(tmp_path, form, jobs)] for jobs in (1, 2, 7)]
    assert found[0] == found[1] == found[2]


def test_blobs_lie_under_their_digests(tmp_path: Path) -> None:
    for layer in written(tmp_path, Format.ZSTD):
        descriptor = layer.layer.descriptor
        path = tmp_path / "blobs/sha256" / descriptor.digest[7:]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        assert path.stat().st_size == descriptor.size
    assert len(list((tmp_path / "blobs/sha256").iterdir())) == 2


@pytest.mark.parametrize("place", [0, 1000, 2_303_999])
def test_a_cached_layer_that_changed_is_noticed(tmp_path: Path, place: int) -> None:
    with filesystem(tmp_path, _LAYER) as files:
        entry = files.nodes["usr/lib/big"].inode.entry
        with files.tars[0].open("r+b") as tar:
            tar.seek(entry.offset + place)
            tar.write(b"\xaa")
        with pytest.raises(ImageError, match="the cached content of usr/lib/big has changed"):
            write_layers(files, _PLANS, Format.ZSTD, tmp_path / "blobs", Context(Cache(), 2))
    assert not list((tmp_path / "blobs").rglob("*.partial"))


def test_a_cached_layer_that_became_shorter_is_noticed(tmp_path: Path) -> None:
    with filesystem(tmp_path, _LAYER) as files:
        with files.tars[0].open("r+b") as tar:
            tar.truncate(files.nodes["usr/lib/big"].inode.entry.offset + 100)
        with pytest.raises(ImageError, match="ends early"):
            write_layers(files, _PLANS, Format.GZIP, tmp_path / "blobs", Context(Cache(), 2))


def test_sparse_files_are_written_out(tmp_path: Path) -> None:
    with filesystem(tmp_path, {"f": b"head" + bytes(96) + b"tail"}) as files:
        node = files.nodes["f"]
        offset = node.inode.entry.offset
        data = files.tars[0].read_bytes()
        files.tars[0].write_bytes(data[:offset] + b"headtail")
        node.inode.entry = replace(node.inode.entry, extents=((0, 4), (100, 4)))
        entries = layer_entries(["f"], files, top=False)
        tar = b"".join(tar_chunks(entries, files))
    (entry,) = TarReader(tar, "it")
    assert (entry.size, entry.extents) == (104, None)
    assert tar[entry.offset : entry.offset + 104] == b"head" + bytes(96) + b"tail"


@pytest.mark.parametrize("size", [1, 5, 100])
def test_gathering_changes_no_byte(size: int) -> None:
    pieces = [b"", b"abc", b"d" * 7, b"", b"e"]
    found = list(gathered(iter(pieces), size))
    assert b"".join(found) == b"".join(pieces)
    assert all(len(piece) >= size for piece in found[:-1])


def test_an_entrys_path_is_never_a_foreign_one(tmp_path: Path) -> None:
    """A file brought through a symlink is written under its real path."""
    lower: Layer = {"usr/lib": None, "lib": Symlink("usr/lib")}
    with filesystem(tmp_path, lower, {"lib/x": b"x", "lib/y": Hardlink("lib/x")}) as files:
        entries = layer_entries(["lib", "usr/lib/x", "usr/lib/y"], files, top=True)
    assert [(entry.path, entry.link) for entry in entries if entry.kind is not Kind.DIRECTORY] == [
        ("lib", "usr/lib"),
        ("usr/lib/x", ""),
        ("usr/lib/y", "usr/lib/x"),
    ]
    assert isinstance(entries[0], Entry)
