"""Archives and layouts through the one entry, without any tool."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from slimgpu.errors import DestinationError, DigestError, ImageError, NotFoundError, SlimgpuError, UsageError
from slimgpu.oci.manifest import Platform
from slimgpu.oci.mutate import BlobLayer
from slimgpu.oci.reference import parse_reference
from slimgpu.store.cache import Cache
from slimgpu.store.transport import open_sink
from tests.support.images import Compression, Entry, digest_of, hello_image, make_image, make_layer, make_tar, symlink
from tests.support.store import assert_same, opened, put, tars

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ["oci", "oci-archive", "docker-archive"]
ARCHIVES = KINDS[1:]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
def test_written_and_read_again(kind: str, compression: Compression, tmp_path: Path, cache: Cache) -> None:
    image = hello_image(compression)
    digest = put(image, f"{kind}:{tmp_path}/out:name", cache)
    assert digest == digest_of(image.raw_config if kind == "docker-archive" else image.raw_manifest)
    for name in (f"{kind}:{tmp_path}/out:name", f"{kind}:{tmp_path}/out"):
        with opened(name, cache) as read:
            assert_same(read, image)
            assert read.raw_config == image.raw_config
            assert read.name == name
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "cache"}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_the_same_bytes_every_time(kind: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        put(hello_image("zstd"), f"{kind}:{tmp_path}/{folder}/out:name", Cache(tmp_path / folder / "cache"))
    data = (tmp_path / "one" / "out").read_bytes()
    assert data == (tmp_path / "two" / "out").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


def test_equal_layers_are_stored_once(tmp_path: Path, cache: Cache) -> None:
    layer = make_layer([Entry("a", b"a" * 5000)], "gzip")
    image = make_image([layer, make_layer([Entry("b")]), layer])
    for kind in KINDS:
        put(image, f"{kind}:{tmp_path}/{kind}:name", cache)
        with opened(f"{kind}:{tmp_path}/{kind}", cache) as read:
            assert_same(read, image)
    with tarfile.open(tmp_path / "docker-archive") as tar:
        assert len(tar.getnames()) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_conflicts_are_told_before_any_work(kind: str, tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "file").write_text("mine")
    for name, message in (
        ("file", "file (exists; remove it|is in use)"),
        ("file/below", "file/below cannot be written"),
    ):
        with pytest.raises(DestinationError, match=message):
            open_sink(parse_reference(f"{kind}:{tmp_path}/{name}"), cache).__enter__()
    reference = parse_reference(f"{kind}:{tmp_path}/out")
    with open_sink(reference, cache) as sink:
        assert sink.workspace.parent == tmp_path
        with pytest.raises(DestinationError, match="is being written by another slimgpu"):
            open_sink(reference, cache).__enter__()
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_write_leaves_nothing(kind: str, tmp_path: Path, cache: Cache) -> None:
    good = hello_image("plain")
    other = make_layer([Entry("x", b"other")], "plain")
    first = good.layers[0]
    assert isinstance(other, BlobLayer)
    wrong = replace(other, descriptor=first.descriptor, diff_id=first.diff_id)
    image = type(good)(
        good.name, good.manifest, good.raw_manifest, good.config, good.raw_config, [wrong, *good.layers[1:]]
    )  # type: ignore[call-arg]
    with pytest.raises(DigestError):
        put(image, f"{kind}:{tmp_path}/out:name", cache)
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_there(kind: str, tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(NotFoundError, match=f"{tmp_path}/missing does not exist; check the path"):
        opened(f"{kind}:{tmp_path}/missing", cache).__enter__()
    put(hello_image(), f"{kind}:{tmp_path}/out:name", cache)
    with pytest.raises(NotFoundError, match=r"its (tags|images) are: name"):
        opened(f"{kind}:{tmp_path}/out:other", cache).__enter__()


@pytest.mark.parametrize("kind", KINDS)
def test_the_wrong_kind_of_path(kind: str, tmp_path: Path, cache: Cache) -> None:
    put(hello_image(), f"oci:{tmp_path}/dir:name", cache)
    put(hello_image(), f"oci-archive:{tmp_path}/oci.tar:name", cache)
    put(hello_image(), f"docker-archive:{tmp_path}/docker.tar:name", cache)
    right = {"oci": "dir", "oci-archive": "oci.tar", "docker-archive": "docker.tar"}
    for path in set(right.values()) - {right[kind]}:
        with pytest.raises((NotFoundError, ImageError), match=f"{kind}:{tmp_path}/{path} (is|has) (not|no) "):
            opened(f"{kind}:{tmp_path}/{path}", cache).__enter__()


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_compressed_archive(kind: str, pack: Any, tmp_path: Path, cache: Cache) -> None:
    image = hello_image()
    put(image, f"{kind}:{tmp_path}/out:name", cache)
    packed = pack((tmp_path / "out").read_bytes())
    (tmp_path / "packed").write_bytes(packed)
    with opened(f"{kind}:{tmp_path}/packed", cache) as read:
        assert_same(read, image)
    assert not list((cache.root / "tmp").iterdir())
    (tmp_path / "packed").write_bytes(packed[:-20])
    with pytest.raises(ImageError, match=r"(out:name|packed) is"):
        opened(f"{kind}:{tmp_path}/packed", cache).__enter__()


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_truncated_archive(kind: str, tmp_path: Path, cache: Cache) -> None:
    put(hello_image("plain"), f"{kind}:{tmp_path}/out:name", cache)
    data = (tmp_path / "out").read_bytes()
    for size in range(0, len(data) - 1024, 997):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(SlimgpuError, match=f"{kind}:{tmp_path}/cut "):
            opened(f"{kind}:{tmp_path}/cut", cache).__enter__()


@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_a_layer(kind: str, tmp_path: Path, cache: Cache) -> None:
    image = make_image([make_layer([Entry("a", b"unmistakable" * 100)], "plain")])
    put(image, f"{kind}:{tmp_path}/out:name", cache)
    path = tmp_path / "out"
    if kind == "oci":
        path = path / "blobs" / image.layers[0].descriptor.digest.replace(":", "/")
    path.write_bytes(path.read_bytes().replace(b"unmistakable", b"unmistakably"))
    with opened(f"{kind}:{tmp_path}/out", cache) as read, pytest.raises(DigestError, match="layer sha256"):
        tars(read)


def test_a_missing_layer_in_a_layout(tmp_path: Path, cache: Cache) -> None:
    image = hello_image()
    put(image, f"oci:{tmp_path}/out:name", cache)
    digest = image.layers[1].descriptor.digest
    (tmp_path / "out" / "blobs" / digest.replace(":", "/")).unlink()
    with pytest.raises(ImageError, match=f"oci:{tmp_path}/out lacks the blob {digest}"):
        opened(f"oci:{tmp_path}/out", cache).__enter__()


def docker_archive(path: Path, entries: object, *members: Entry) -> None:
    path.write_bytes(make_tar([Entry("manifest.json", json.dumps(entries).encode()), *members]))


def simple(name: str, *, layer: str = "layer.tar") -> tuple[dict[str, Any], list[Entry]]:
    """An image's entry of manifest.json, and its members."""
    tar = make_tar([Entry(name)])
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [digest_of(tar)]}}).encode()
    entry = {"Config": f"{name}.json", "RepoTags": [f"{name}:v1"], "Layers": [layer]}
    return entry, [Entry(f"{name}.json", config), Entry("layer.tar", tar)]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "manifest.json in .* is not valid: the document"),
        ([{"Config": 1}], r"manifest.json in .* is not valid: 0.Config"),
        ([], "holds 0 images"),
        ([{"Config": "nothing.json", "Layers": []}], "lacks its member 'nothing.json'"),
        ([{"Config": "../../etc/passwd", "Layers": []}], "lacks its member '../../etc/passwd'"),
        ([{"Config": "/etc/passwd", "Layers": []}], "lacks its member '/etc/passwd'"),
        ([{"Config": "a.json", "Layers": []}], "lists 0 layers but a.json has 1"),
        ([{"Config": "a.json", "Layers": ["../layer.tar"]}], "lacks its member '../layer.tar'"),
        ([{"Config": "a.json", "Layers": ["passwd"]}], "lacks its member 'passwd'"),
        ([{"Config": "layer.tar", "Layers": []}], "is not JSON"),
        ([{"Config": f"{'0' * 64}.json", "Layers": ["layer.tar"]}], "has the digest"),
    ],
)
def test_a_hostile_docker_archive(entries: object, message: str, tmp_path: Path, cache: Cache) -> None:
    members = [*simple("a")[1], symlink("passwd", "/etc/passwd"), Entry(f"{'0' * 64}.json", b"{}")]
    docker_archive(tmp_path / "a.tar", entries, *members)
    with pytest.raises(SlimgpuError, match=message):
        opened(f"docker-archive:{tmp_path}/a.tar", cache).__enter__()


def test_a_huge_document(tmp_path: Path, cache: Cache) -> None:
    entry, members = simple("a")
    huge = Entry("a.json", b" " * (64 * 1024 * 1024 + 1))
    docker_archive(tmp_path / "a.tar", [entry], *members, huge)
    with pytest.raises(ImageError, match=r"a.json in .* is 67108865 bytes long"):
        opened(f"docker-archive:{tmp_path}/a.tar", cache).__enter__()


def test_one_of_several_images(tmp_path: Path, cache: Cache) -> None:
    one, members = simple("one")
    two, more = simple("two", layer="2.tar")
    more = [*more[:1], Entry("2.tar", more[1].content)]
    docker_archive(tmp_path / "a.tar", [one, two], *members, *more)
    for tag in ("two:v1", "docker.io/library/two:v1", "@1"):
        with opened(f"docker-archive:{tmp_path}/a.tar:{tag}", cache) as read:
            assert tars(read) == [digest_of(more[1].content)]
    with pytest.raises(NotFoundError, match=r"add the name of one: one:v1, two:v1"):
        opened(f"docker-archive:{tmp_path}/a.tar", cache).__enter__()
    for tag in ("two", "three:v1", "@2", "Not A Name"):
        with pytest.raises(NotFoundError, match=r"is not in the archive; its images are: one:v1, two:v1"):
            opened(f"docker-archive:{tmp_path}/a.tar:{tag}", cache).__enter__()


def test_names_in_a_docker_archive(tmp_path: Path, cache: Cache) -> None:
    for number, (tag, written) in enumerate([("team/app", ["team/app:latest"]), ("a:v1", ["a:v1"]), (None, None)]):
        path = tmp_path / f"{number}.tar"
        put(hello_image(), f"docker-archive:{path}" + (f":{tag}" if tag else ""), cache)
        with tarfile.open(path) as tar:
            (entry,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert entry["RepoTags"] == written
    for tag in ("Upper:v1", f"a@sha256:{'0' * 64}", "a:b:c"):
        with pytest.raises(UsageError, match="write docker-archive:FILE:repo:tag"):
            open_sink(parse_reference(f"docker-archive:{tmp_path}/x.tar:{tag}"), cache).__enter__()


def test_what_each_destination_stores(tmp_path: Path, cache: Cache) -> None:
    stores = {}
    for kind in KINDS:
        with open_sink(parse_reference(f"{kind}:{tmp_path}/{kind}"), cache) as sink:
            stores[kind] = sink.stores
    assert stores == {"oci": "compressed", "oci-archive": "compressed", "docker-archive": "plain"}


def test_an_oci_archive_of_several_platforms(tmp_path: Path, cache: Cache) -> None:
    put(make_image(hello_image().layers, architecture="arm64"), f"oci:{tmp_path}/out:arm", cache)
    put(hello_image(), f"oci:{tmp_path}/out:amd", cache)
    index = json.loads((tmp_path / "out" / "index.json").read_bytes())
    for manifest in index["manifests"]:
        del manifest["annotations"]
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    with tarfile.open(tmp_path / "out.tar", "w") as tar:
        tar.add(tmp_path / "out", arcname=".")
    with opened(f"oci-archive:{tmp_path}/out.tar", cache, Platform("arm64", "linux")) as read:
        assert read.config.platform.architecture == "arm64"
    with pytest.raises(ImageError, match="it offers linux/arm64, linux/amd64"):
        opened(f"oci-archive:{tmp_path}/out.tar", cache, Platform("s390x", "linux")).__enter__()
