"""skopeo reads what we write, and we read what skopeo writes, whatever holds the image."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import pytest

from slimgpu.oci import media
from tests.support.images import Compression, hello_image
from tests.support.processes import run
from tests.support.store import assert_same, opened, put, skopeo_copy

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.oci.image import Image
    from slimgpu.store.cache import Cache
    from tests.support.engine import Engine
    from tests.support.registry import Registry

TRANSPORTS = ["oci", "oci-archive", "docker-archive", "docker"]


def own_image(compression: Compression = "gzip") -> Image:
    """Never the same, for skopeo remembers which compressed form of a layer it has met where."""
    return hello_image(compression, text=f"{uuid.uuid4()}\n")


def place(transport: str, folder: Path, registry: Registry) -> str:
    name = uuid.uuid4().hex
    return {
        "oci": f"oci:{folder}/{name}:v1",
        "oci-archive": f"oci-archive:{folder}/{name}.tar:v1",
        "docker-archive": f"docker-archive:{folder}/{name}.tar:team/{name}:v1",
        "docker": f"docker://{registry.host}/team/{name}:v1",
    }[transport]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
def test_skopeo_reads_what_we_write(
    transport: str, compression: Compression, tmp_path: Path, cache: Cache, registry: Registry
) -> None:
    image = own_image(compression)
    ours = place(transport, tmp_path, registry)
    put(image, ours, cache)
    skopeo_copy(ours, f"oci:{tmp_path}/theirs:v1")
    with opened(f"oci:{tmp_path}/theirs:v1", cache) as copied:
        assert_same(copied, image)


@pytest.mark.parametrize(
    ("transport", "compression"),
    [
        *((transport, "gzip") for transport in TRANSPORTS),
        *((transport, "zstd") for transport in TRANSPORTS if transport != "docker-archive"),  # this skopeo refuses
    ],
)
def test_we_read_what_skopeo_writes(
    transport: str, compression: Compression, tmp_path: Path, cache: Cache, registry: Registry
) -> None:
    image = own_image(compression)
    put(image, f"oci:{tmp_path}/ours:v1", cache)
    theirs = place(transport, tmp_path, registry)
    skopeo_copy(f"oci:{tmp_path}/ours:v1", theirs)
    with opened(theirs, cache) as copied:
        assert_same(copied, image)


@pytest.mark.parametrize("source", TRANSPORTS)
@pytest.mark.parametrize("destination", TRANSPORTS)
def test_every_transport_to_every_other(
    source: str, destination: str, tmp_path: Path, cache: Cache, registry: Registry
) -> None:
    image = own_image()
    first, second = place(source, tmp_path, registry), place(destination, tmp_path, registry)
    put(image, first, cache)
    with opened(first, cache) as read:
        put(read, second, cache)
    with opened(second, cache) as copied:
        assert_same(copied, image)


def test_schema_2_images_keep_their_digest(tmp_path: Path, cache: Cache, registry: Registry) -> None:
    put(own_image(), f"oci:{tmp_path}/ours:v1", cache)
    theirs = f"docker://{registry.host}/schema2:v1"
    skopeo_copy(f"oci:{tmp_path}/ours:v1", theirs, "--format", "v2s2")
    told = json.loads(run("skopeo", "inspect", "--tls-verify=false", theirs))["Digest"]
    with opened(theirs, cache) as image:
        assert image.manifest.media_type == "application/vnd.docker.distribution.manifest.v2+json"
        copied = put(image, f"docker://{registry.host}/schema2-copy:v1", cache)
    assert copied == told


def test_zstd_chunked_as_skopeo_writes_it(tmp_path: Path, cache: Cache, registry: Registry) -> None:
    image = own_image("plain")
    put(image, f"oci:{tmp_path}/ours:v1", cache)
    theirs = f"docker://{registry.host}/chunked:v1"
    skopeo_copy(f"oci:{tmp_path}/ours:v1", theirs, "--dest-compress-format", "zstd:chunked")
    with opened(theirs, cache) as copied:
        assert {layer.descriptor.media_type for layer in copied.layers} == {media.OCI_LAYER_ZSTD}
        assert_same(copied, image)


def test_docker_daemon_both_ways(tmp_path: Path, cache: Cache, engine: Engine) -> None:
    image = own_image()
    name = f"daemon-{uuid.uuid4().hex}"
    put(image, f"docker-daemon:{name}:v1", cache)
    skopeo_copy(f"docker-daemon:{name}:v1", f"oci:{tmp_path}/theirs:v1", "--src-daemon-host", engine.host)
    with opened(f"oci:{tmp_path}/theirs:v1", cache) as copied:
        assert_same(copied, image)
    skopeo_copy(f"oci:{tmp_path}/theirs:v1", f"docker-daemon:{name}:v2", "--dest-daemon-host", engine.host)
    with opened(f"docker-daemon:{name}:v2", cache) as copied:
        assert_same(copied, image)
