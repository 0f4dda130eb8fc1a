"""Short ways to write, read and copy images by name."""

from __future__ import annotations

import hashlib
import random
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from slimgpu.oci.manifest import Descriptor, Platform
from slimgpu.oci.mutate import CheckedBlob, compose_artifact
from slimgpu.oci.reference import parse_reference
from slimgpu.progress import SILENT
from slimgpu.store.inflate import inflate
from slimgpu.store.transport import open_artifact, open_artifact_sink, open_image, open_sink
from tests.support.processes import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.oci.image import Artifact, Blob, Image
    from slimgpu.store.cache import Cache
    from slimgpu.store.ranges import RangeSource

AMD64 = Platform("amd64", "linux")


class Counter:
    """A task that adds up."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, amount: int) -> None:
        self.done += amount


def put(image: Image, name: str, cache: Cache) -> str:
    """Write the image to the reference ``name``; the progress must add up to its layers' sizes."""
    counter = Counter()
    with open_sink(parse_reference(name), cache) as sink:
        digest = sink.write(image, counter)
    assert counter.done == sum(layer.descriptor.size for layer in image.layers)
    return digest


@contextmanager
def opened(name: str, cache: Cache, platform: Platform = AMD64) -> Iterator[Image]:
    with open_image(parse_reference(name), platform, cache, SILENT) as image:
        yield image


def make_blob(data: bytes) -> Blob:
    """A blob of an artifact that is held in memory."""
    descriptor = Descriptor("application/octet-stream", f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    return CheckedBlob(descriptor, lambda: nullcontext(iter([data])))


def make_artifact(
    contents: Sequence[bytes], kind: str = "application/vnd.test", subject: Descriptor | None = None
) -> Artifact:
    """An artifact of these blobs and an empty configuration, never the same."""
    noise = {"noise": random.randbytes(8).hex()}  # noqa: S311
    blobs = [make_blob(data) for data in contents]
    return compose_artifact(
        "test", kind, ("application/vnd.oci.empty.v1+json", b"{}"), blobs, subject=subject, annotations=noise
    )


def put_artifact(artifact: Artifact, name: str, cache: Cache) -> str:
    """Write the artifact to the reference ``name``; the progress must add up to its blobs' sizes."""
    counter = Counter()
    with open_artifact_sink(parse_reference(name), cache) as sink:
        digest = sink.write(artifact, counter)
    assert counter.done == sum(layer.descriptor.size for layer in artifact.layers)
    return digest


@contextmanager
def opened_artifact(name: str, cache: Cache) -> Iterator[tuple[Artifact, RangeSource]]:
    with open_artifact(parse_reference(name), cache, SILENT) as found:
        yield found


def contents(artifact: Artifact) -> list[bytes]:
    """What every blob holds."""
    found = []
    for blob in artifact.layers:
        with blob.open() as chunks:
            found.append(b"".join(chunks))
    return found


def tars(image: Image) -> list[str]:
    """What every layer's tar really hashes to."""
    found = []
    for layer in image.layers:
        hasher = hashlib.sha256()
        with layer.open() as chunks:
            for chunk in inflate(chunks, layer.descriptor.digest):
                hasher.update(chunk)
        found.append(f"sha256:{hasher.hexdigest()}")
    return found


def assert_same(image: Image, expected: Image) -> None:
    """The same files and the same configuration, read to the last byte."""
    assert image.config.diff_ids == expected.config.diff_ids
    assert image.config.runtime.get("Cmd") == expected.config.runtime.get("Cmd")
    assert tars(image) == list(expected.config.diff_ids)


def skopeo_copy(source: str, destination: str, *options: str) -> None:
    """Copy with skopeo, which talks plain HTTP to the registries of tests."""
    run("skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", *options,
        source, destination)  # fmt: skip
