"""A real registry: names, digests, damage on its disk, HTTPS."""

from __future__ import annotations

import json
import random
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from slimgpu.errors import DestinationError, DigestError, ImageError, NotFoundError, RegistryError
from slimgpu.oci import media
from slimgpu.oci.manifest import Platform
from slimgpu.oci.reference import parse_reference
from slimgpu.store.transport import open_sink
from tests.support.images import Entry, digest_of, hello_image, make_image, make_layer
from tests.support.processes import free_port
from tests.support.registry import running_tls_registry
from tests.support.store import assert_same, opened, put, tars

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.oci.image import Image, Layer
    from slimgpu.store.cache import Cache
    from tests.support.registry import Registry


@pytest.fixture
def repository(registry: Registry) -> str:
    return f"docker://{registry.host}/{uuid.uuid4().hex}"


def unique_image() -> Image:
    return make_image([make_layer([Entry("name", uuid.uuid4().bytes)]), *hello_image().layers])


def test_by_tag_and_by_digest(repository: str, cache: Cache) -> None:
    image = unique_image()
    digest = put(image, f"{repository}:v1", cache)
    assert digest == digest_of(image.raw_manifest)
    for name in (f"{repository}:v1", f"{repository}@{digest}", f"{repository}:gone@{digest}"):
        with opened(name, cache) as read:
            assert read.raw_manifest == image.raw_manifest
            assert_same(read, image)


def test_written_by_digest_only_when_it_is_that_digest(repository: str, cache: Cache) -> None:
    image = unique_image()
    digest = digest_of(image.raw_manifest)
    assert put(image, f"{repository}@{digest}", cache) == digest
    with pytest.raises(DestinationError, match=f"names something else than {digest}; write to a tag"):
        put(image, f"{repository}@sha256:{'0' * 64}", cache)


def test_large_layers_are_read_by_several_threads(repository: str, cache: Cache) -> None:
    noise = random.Random(7).randbytes  # noqa: S311
    image = make_image([make_layer([Entry("noise", noise(12_000_000))], "plain") for _ in range(6)])
    put(image, f"{repository}:v1", cache)

    def size(layer: Layer) -> int:
        return sum(len(chunk) for chunk in stored(layer))

    with opened(f"{repository}:v1", cache) as read, ThreadPoolExecutor(6) as threads:
        assert list(threads.map(size, read.layers)) == [layer.descriptor.size for layer in image.layers]


def test_nothing_by_that_name(repository: str, registry: Registry, cache: Cache) -> None:
    with pytest.raises(NotFoundError, match=rf"{repository}:v1 does not exist: {registry.host} has no v1 in"):
        opened(f"{repository}:v1", cache).__enter__()
    put(unique_image(), f"{repository}:v1", cache)
    with pytest.raises(NotFoundError, match=r"has no v2 in .*; check the repository and the tag"):
        opened(f"{repository}:v2", cache).__enter__()


def test_an_index_is_resolved_by_platform(repository: str, registry: Registry, cache: Cache) -> None:
    amd, arm = unique_image(), make_image(unique_image().layers, architecture="arm64")
    manifests = []
    for image, architecture in ((amd, "amd64"), (arm, "arm64")):
        digest = put(image, f"{repository}:{architecture}", cache)
        manifests.append(
            {
                "mediaType": media.OCI_MANIFEST,
                "digest": digest,
                "size": len(image.raw_manifest),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    index = json.dumps({"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": manifests})
    url = f"http://{registry.host}/v2/{repository.rpartition('/')[2]}/manifests/all"
    requests.put(url, index, headers={"Content-Type": media.OCI_INDEX}, timeout=10).raise_for_status()
    with opened(f"{repository}:all", cache, Platform("arm64", "linux", "v8")) as read:
        assert read.raw_manifest == arm.raw_manifest
    with pytest.raises(ImageError, match=r"no image for linux/s390x; it offers linux/amd64, linux/arm64"):
        opened(f"{repository}:all", cache, Platform("s390x", "linux")).__enter__()


def stored(layer: Layer) -> Iterator[bytes]:
    with layer.open() as chunks:
        yield from chunks


def test_a_layer_damaged_on_the_registry(repository: str, registry: Registry, cache: Cache) -> None:
    image = unique_image()
    put(image, f"{repository}:v1", cache)
    layer = image.layers[0].descriptor
    blob = registry.blob(layer.digest)
    blob.write_bytes(bytes(layer.size))
    with opened(f"{repository}:v1", cache) as read, pytest.raises(DigestError, match=f"layer {layer.digest} has"):
        list(stored(read.layers[0]))


def test_a_layer_missing_on_the_registry(repository: str, registry: Registry, cache: Cache) -> None:
    image = unique_image()
    put(image, f"{repository}:v1", cache)
    layer = image.layers[0].descriptor
    registry.blob_link(repository.rpartition("/")[2], layer.digest).unlink()
    with opened(f"{repository}:v1", cache) as read, pytest.raises(ImageError, match=f"lacks the blob {layer.digest}"):
        tars(read)


def test_nobody_answers(cache: Cache) -> None:
    host = f"127.0.0.1:{free_port()}"
    with pytest.raises(RegistryError, match=rf"docker://{host}/a:v1 is out of reach: {host} cannot be reached"):
        opened(f"docker://{host}/a:v1", cache).__enter__()
    with pytest.raises(RegistryError, match="is out of reach"):
        open_sink(parse_reference(f"docker://{host}/a:v1"), cache).__enter__()


def test_https_on_this_machine(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    image = unique_image()
    with tempfile.TemporaryDirectory(prefix="slimgpu-") as root, running_tls_registry(Path(root)) as (tls, certificate):
        name = f"docker://{tls.host}/a:v1"
        with pytest.raises(RegistryError, match=r"127.0.0.1 does not answer with a trusted certificate over HTTPS"):
            put(image, name, cache)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        put(image, name, cache)
        with opened(name, cache) as read:
            assert_same(read, image)
