"""Artifacts in a layout, an archive and a real registry: whole, by ranges, and copied by skopeo."""

from __future__ import annotations

import json
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import NotFoundError, SlimgpuError, UsageError
from slimgpu.oci.mutate import compose_artifact
from slimgpu.oci.reference import parse_reference
from slimgpu.progress import SILENT
from slimgpu.store.transport import open_artifact, open_artifact_sink
from tests.support.images import hello_image
from tests.support.processes import run
from tests.support.relay import relaying
from tests.support.store import (
    Counter,
    assert_same,
    contents,
    make_artifact,
    make_blob,
    opened,
    opened_artifact,
    put,
    put_artifact,
    skopeo_copy,
)

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.store.cache import Cache
    from tests.support.registry import Registry

TRANSPORTS = ["oci", "oci-archive", "docker"]
KIND = "application/vnd.test.weights.v1+json"
NOISE = random.Random(3).randbytes(30_000_000)  # noqa: S311
CONTENTS = [NOISE, NOISE[:1_000_003], b"tiny", b""]


def place(transport: str, folder: Path, registry: Registry) -> str:
    name = uuid.uuid4().hex
    return {
        "oci": f"oci:{folder}/{name}:v1",
        "oci-archive": f"oci-archive:{folder}/{name}.tar:v1",
        "docker": f"docker://{registry.host}/team/{name}:v1",
    }[transport]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_is_written_is_read(transport: str, tmp_path: Path, cache: Cache, registry: Registry) -> None:
    artifact = make_artifact(CONTENTS, KIND)
    name = place(transport, tmp_path, registry)
    digest = put_artifact(artifact, name, cache)
    for called in (name, f"{name}@{digest}", f"{name.rpartition(':')[0]}@{digest}"):
        with opened_artifact(called, cache) as (read, _):
            assert read.raw_manifest == artifact.raw_manifest
            assert read.raw_config == artifact.raw_config
            assert read.platform is None
            assert contents(read) == CONTENTS
    with pytest.raises(NotFoundError):
        opened_artifact(f"{name.rpartition(':')[0]}@sha256:{'0' * 64}", cache).__enter__()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_ranges_are_slices(transport: str, tmp_path: Path, cache: Cache, registry: Registry) -> None:
    artifact = make_artifact(CONTENTS, KIND)
    name = place(transport, tmp_path, registry)
    put_artifact(artifact, name, cache)
    digest = artifact.layers[0].descriptor.digest
    dice = random.Random(5)  # noqa: S311
    spans = [(0, 1), (0, len(NOISE)), (len(NOISE) - 1, 1), (7, 0)]
    spans += [(dice.randrange(len(NOISE) - 3_000_000), dice.randrange(1, 3_000_000)) for _ in range(40)]

    with opened_artifact(name, cache) as (_, source), ThreadPoolExecutor(8) as threads:

        def differs(span: tuple[int, int]) -> bool:
            buffer = bytearray(span[1])
            source.read_into(digest, span[0], memoryview(buffer))
            return buffer != NOISE[span[0] : sum(span)]

        assert not any(threads.map(differs, spans))
        for offset in (len(NOISE) - 5, len(NOISE), len(NOISE) + 10_000_000):
            with pytest.raises(SlimgpuError, match=digest):
                source.read_into(digest, offset, memoryview(bytearray(10)))
        with pytest.raises(SlimgpuError, match="0000"):
            source.read_into(f"sha256:{'0' * 64}", 0, memoryview(bytearray(10)))
        assert not differs((1, 1000))


def test_ranges_share_a_connection(cache: Cache, registry: Registry) -> None:
    artifact = make_artifact([NOISE], KIND)
    with relaying(registry.host) as relay:
        name = f"docker://{relay.host}/{uuid.uuid4().hex}:v1"
        put_artifact(artifact, name, cache)
        with opened_artifact(name, cache) as (_, source):
            before = relay.connections
            buffer = memoryview(bytearray(1_500_000))
            for number in range(20):
                source.read_into(artifact.layers[0].descriptor.digest, number * len(buffer), buffer)
                assert buffer == NOISE[number * len(buffer) : (number + 1) * len(buffer)]
            assert relay.connections == before


@pytest.mark.parametrize("name", ["docker-archive:a.tar", "docker-daemon:a:v1"])
def test_where_only_images_can_be(name: str, cache: Cache) -> None:
    for attempt in (
        open_artifact(parse_reference(name), cache, SILENT),
        open_artifact_sink(parse_reference(name), cache),
    ):
        with pytest.raises(UsageError, match=r"can hold images only; name the artifact as docker://"):
            attempt.__enter__()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_put_ahead_is_put_once(transport: str, tmp_path: Path, cache: Cache, registry: Registry) -> None:
    blobs = [make_blob(random.randbytes(2_000_000)) for _ in range(3)]  # noqa: S311
    artifact = compose_artifact("test", KIND, ("application/vnd.oci.empty.v1+json", b"{}"), blobs)
    with relaying(registry.host) as relay:
        name = place(transport, tmp_path, registry).replace(registry.host, relay.host)
        with open_artifact_sink(parse_reference(name), cache) as sink:
            for blob in blobs:
                sink.put(blob, Counter())
                assert sink.has(blob.descriptor) == (transport != "oci-archive")
            uploaded = relay.sent
            sink.write(artifact, Counter())
        if transport == "docker":
            assert uploaded > 6_000_000
            assert relay.sent - uploaded < 100_000
        with opened_artifact(name, cache) as (read, _):
            assert contents(read) == contents(artifact)


def test_nothing_is_written_by_the_digest_of_a_layout(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match="name what is written by a tag"):
        put_artifact(make_artifact([b"a"]), f"oci:{tmp_path}/a@sha256:{'0' * 64}", cache)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_skopeo_copies_it_unchanged(transport: str, tmp_path: Path, cache: Cache, registry: Registry) -> None:
    artifact = make_artifact(CONTENTS[:3], KIND)
    ours = place(transport, tmp_path, registry)
    put_artifact(artifact, ours, cache)
    raw = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", ours))
    assert raw["artifactType"] == KIND
    for other in TRANSPORTS:
        theirs = place(other, tmp_path, registry)
        skopeo_copy(ours, theirs)
        with opened_artifact(theirs, cache) as (read, _):
            assert read.raw_manifest == artifact.raw_manifest
            assert contents(read) == CONTENTS[:3]


def test_beside_an_image_in_one_layout(tmp_path: Path, cache: Cache) -> None:
    """Without tags: the image is the one of its kind, and what is attached does not replace anything."""
    name = f"oci:{tmp_path}/both"
    image = hello_image()
    put(image, name, cache)
    digests = [put_artifact(make_artifact([b"a"], KIND), name, cache) for _ in range(2)]
    put(image, name, cache)
    with opened(name, cache) as read:
        assert_same(read, image)
    with opened_artifact(f"{name}@{digests[1]}", cache) as (found, _):
        assert contents(found) == [b"a"]
    with pytest.raises(NotFoundError, match="is not in the layout"):
        opened_artifact(f"{name}@{digests[0]}", cache).__enter__()
