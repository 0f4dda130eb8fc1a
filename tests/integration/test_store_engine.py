"""The Docker engine loads, runs and saves what we write."""

from __future__ import annotations

import gzip
import json
import shutil
import uuid
from typing import TYPE_CHECKING

import pytest
import zstandard

from slimgpu.errors import DigestError, MissingComponentError, NotFoundError, UsageError
from slimgpu.oci.reference import parse_reference
from slimgpu.store.transport import open_sink
from tests.support.images import Compression, Entry, hello_image, make_image, make_layer
from tests.support.processes import free_port
from tests.support.store import assert_same, opened, put

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.store.cache import Cache
    from tests.support.engine import Engine


@pytest.fixture
def name() -> str:
    return f"engine-{uuid.uuid4().hex}"


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
def test_loads_and_runs(name: str, compression: Compression, cache: Cache, engine: Engine) -> None:
    image = hello_image(compression, text=f"hello from {name}\n")
    digest = put(image, f"docker-daemon:{name}:v1", cache)
    assert engine.docker("run", "--rm", "--network", "none", f"{name}:v1") == f"hello from {name}\n"
    assert engine.docker("images", "--no-trunc", "--quiet", f"{name}:v1").strip() == digest
    with opened(f"docker-daemon:{name}:v1", cache) as read:
        assert_same(read, image)
    with opened(f"docker-daemon:{digest}", cache) as read:
        assert_same(read, image)


def test_docker_load_takes_our_archive(name: str, tmp_path: Path, cache: Cache, engine: Engine) -> None:
    image = hello_image(text=f"loaded {name}\n")
    put(image, f"docker-archive:{tmp_path}/image.tar:{name}", cache)
    assert f"{name}:latest" in engine.docker("load", "--input", tmp_path / "image.tar")
    assert engine.docker("run", "--rm", "--network", "none", name) == f"loaded {name}\n"


def test_an_archive_without_a_name_is_loaded_by_its_id(tmp_path: Path, cache: Cache, engine: Engine) -> None:
    digest = put(hello_image(text="nameless\n"), f"docker-archive:{tmp_path}/image.tar", cache)
    assert digest in engine.docker("load", "--input", tmp_path / "image.tar")


@pytest.mark.parametrize("packed", ["plain", "gzip", "zstd"])
def test_reads_docker_save(name: str, packed: str, tmp_path: Path, cache: Cache, engine: Engine) -> None:
    """With two images and equal layers, which docker save of this age writes as a link to the first."""
    base = make_layer([Entry("base", b"base" * 100)])
    twice = make_image([base, make_layer([Entry("x", b"1")]), base, make_layer([Entry("x", b"1")])], {"Cmd": ["/a"]})
    other = hello_image()
    put(twice, f"docker-daemon:{name}-twice:v1", cache)
    put(other, f"docker-daemon:{name}-other:v1", cache)
    saved = tmp_path / "saved.tar"
    engine.docker("save", "--output", saved, f"{name}-twice:v1", f"{name}-other:v1")
    if packed == "gzip":
        saved.write_bytes(gzip.compress(saved.read_bytes()))
    if packed == "zstd":
        saved.write_bytes(zstandard.compress(saved.read_bytes()))
    for tag, image in ((f"{name}-twice:v1", twice), (f"docker.io/library/{name}-other:v1", other)):
        with opened(f"docker-archive:{saved}:{tag}", cache) as read:
            assert_same(read, image)
    assert not list((cache.root / "tmp").iterdir())
    with (
        pytest.raises(NotFoundError, match=rf"holds 2 images; add the name of one: {name}-other:v1, {name}-twice:v1"),
        opened(f"docker-archive:{saved}", cache),
    ):
        pass


def test_an_archive_in_the_layout_of_newer_engines(name: str, tmp_path: Path, cache: Cache, engine: Engine) -> None:
    """Since 25 docker save writes ``blobs/sha256``, with a containerd store the layers are compressed."""
    import tarfile  # noqa: PLC0415

    image = hello_image("gzip", text=f"new {name}\n")
    put(image, f"oci:{tmp_path}/layout:v1", cache)
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    paths = [f"blobs/sha256/{layer.descriptor.digest[7:]}" for layer in image.layers]
    config = f"blobs/sha256/{image.manifest.config.digest[7:]}"
    (tmp_path / "layout" / "manifest.json").write_text(
        json.dumps([{"Config": config, "RepoTags": [f"{name}:v1"], "Layers": paths}])
    )
    assert blobs.is_dir()
    with tarfile.open(tmp_path / "new.tar", "w") as tar:
        tar.add(tmp_path / "layout", arcname=".")
    with opened(f"docker-archive:{tmp_path}/new.tar", cache) as read:
        assert [layer.descriptor for layer in read.layers] == [layer.descriptor for layer in image.layers]
        assert_same(read, image)
    shutil.rmtree(tmp_path / "layout")
    engine.docker("load", "--input", tmp_path / "new.tar")
    with opened(f"docker-daemon:{name}:v1", cache) as read:
        assert_same(read, image)


def test_no_such_image(cache: Cache, engine: Engine) -> None:
    assert engine
    with pytest.raises(NotFoundError, match=r"docker-daemon:nothing:here does not exist in the engine"):
        opened("docker-daemon:nothing:here", cache).__enter__()


def test_no_engine(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    host = f"tcp://127.0.0.1:{free_port()}"
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(MissingComponentError, match=rf"no Docker engine answers at {host}; start it"):
        opened("docker-daemon:a:b", cache).__enter__()
    with pytest.raises(MissingComponentError, match="no Docker engine"):
        open_sink(parse_reference("docker-daemon:a:b"), cache).__enter__()


def test_an_image_id_is_no_destination(cache: Cache) -> None:
    with pytest.raises(UsageError, match="is an image id, not a name"):
        open_sink(parse_reference(f"docker-daemon:sha256:{'0' * 64}"), cache).__enter__()


def test_a_damaged_layer_is_not_loaded(name: str, tmp_path: Path, cache: Cache, engine: Engine) -> None:
    image = hello_image("plain", text=f"damaged {name}\n")
    put(image, f"oci:{tmp_path}/image:v1", cache)
    blob = tmp_path / "image" / "blobs" / image.layers[1].descriptor.digest.replace(":", "/")
    blob.write_bytes(blob.read_bytes().replace(b"damaged", b"DAMAGED"))
    with opened(f"oci:{tmp_path}/image", cache) as read, pytest.raises(DigestError, match="layer sha256"):
        put(read, f"docker-daemon:{name}:v1", cache)
    assert engine.docker("images", "--quiet", f"{name}:v1") == ""
