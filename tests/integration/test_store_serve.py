"""Real clients pull from our own read-only registry."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import NotFoundError, RegistryError
from slimgpu.oci import media
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.manifest import Descriptor, Platform
from slimgpu.oci.reference import parse_reference
from slimgpu.progress import SILENT
from slimgpu.store.serve import serving
from slimgpu.store.shelf import LayoutShelf
from slimgpu.store.transport import find_referrers
from tests.support.images import Compression, hello_image, make_image
from tests.support.processes import run
from tests.support.registry import write_docker_config
from tests.support.store import (
    assert_same,
    contents,
    make_artifact,
    opened,
    opened_artifact,
    put,
    put_artifact,
    skopeo_copy,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.store.cache import Cache
    from tests.support.containerd import Containerd


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The layout's name under which registries' clients find it."""
    with serving(LayoutShelf(root)) as server:
        yield f"{server.host}:{server.port}/team/{uuid.uuid4().hex}"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_skopeo(compression: Compression, tmp_path: Path, cache: Cache) -> None:
    image = hello_image(compression, text=f"{uuid.uuid4()}\n")
    put(image, f"oci:{tmp_path}/ours:v1", cache)
    with served(tmp_path / "ours") as name:
        assert json.loads(run("skopeo", "inspect", "--tls-verify=false", f"docker://{name}:v1"))["RepoTags"] == ["v1"]
        skopeo_copy(f"docker://{name}:v1", f"oci:{tmp_path}/theirs:v1")
    with opened(f"oci:{tmp_path}/theirs:v1", cache) as copied:
        assert_same(copied, image)


def test_podman(tmp_path: Path, cache: Cache) -> None:
    write_docker_config(Path(os.environ["DOCKER_CONFIG"]), {})
    image = hello_image(text=f"{uuid.uuid4()}\n")
    put(image, f"oci:{tmp_path}/ours:v1", cache)
    with tempfile.TemporaryDirectory(prefix="podman-") as root, served(tmp_path / "ours") as name:
        podman = ["podman", "--root", f"{root}/root", "--runroot", f"{root}/run", "--storage-driver", "vfs"]
        pulled = run(*podman, "pull", "--quiet", "--tls-verify=false", f"{name}:v1").strip()
    assert pulled == digest_bytes(image.raw_config).removeprefix("sha256:")


def test_containerd(tmp_path: Path, cache: Cache, containerd: Containerd) -> None:
    text = f"{uuid.uuid4()}\n"
    put(hello_image(text=text), f"oci:{tmp_path}/ours:v1", cache)
    with served(tmp_path / "ours") as name:
        containerd.ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", f"{name}:v1")
        assert containerd.ctr("run", "--rm", "--snapshotter", "overlayfs", f"{name}:v1", uuid.uuid4().hex) == text


def test_images_for_two_platforms(tmp_path: Path, cache: Cache) -> None:
    """The index is known by its tag, what it leads to by digest only."""
    amd = hello_image()
    arm = make_image(amd.layers, architecture="arm64")
    for image, architecture in ((amd, "amd64"), (arm, "arm64")):
        put(image, f"oci:{tmp_path}/{architecture}:v1", cache)
    entries = [
        Descriptor(media.OCI_MANIFEST, digest_bytes(i.raw_manifest), len(i.raw_manifest), platform=i.config.platform)
        for i in (amd, arm)
    ]
    put(amd, f"oci:{tmp_path}/both:v1", cache)
    put(arm, f"oci:{tmp_path}/both:arm", cache)
    manifests = [
        {"mediaType": e.media_type, "digest": e.digest, "size": e.size,
         "platform": {"os": "linux", "architecture": str(e.platform).rpartition("/")[2]}}
        for e in entries
    ]  # fmt: skip
    data = json.dumps({"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": manifests}).encode()
    (tmp_path / "both/blobs" / digest_bytes(data).replace(":", "/")).write_bytes(data)
    listed = {"mediaType": media.OCI_INDEX, "digest": digest_bytes(data), "size": len(data),
              "annotations": {"org.opencontainers.image.ref.name": "all"}}  # fmt: skip
    (tmp_path / "both/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    with served(tmp_path / "both") as name, opened(f"docker://{name}:all", cache, Platform("arm64", "linux")) as read:
        assert read.raw_manifest == arm.raw_manifest


def test_ourselves(tmp_path: Path, cache: Cache) -> None:
    image = hello_image()
    subject = Descriptor(media.OCI_MANIFEST, digest_bytes(image.raw_manifest), len(image.raw_manifest))
    weights = make_artifact([b"weights" * 1_000_000, b""], "application/vnd.test.weights", subject)
    put(image, f"oci:{tmp_path}/ours:v1", cache)
    digest = put_artifact(weights, f"oci:{tmp_path}/ours", cache)
    with served(tmp_path / "ours") as name:
        with opened(f"docker://{name}:v1", cache) as read:
            assert_same(read, image)
        (attached,) = find_referrers(parse_reference(f"docker://{name}:v1"), subject.digest, None, cache, SILENT)
        assert attached.digest == digest
        with opened_artifact(f"docker://{name}@{digest}", cache) as (found, source):
            assert contents(found) == contents(weights)
            buffer = bytearray(1000)
            source.read_into(weights.layers[0].descriptor.digest, 7_000_000 - 1000, memoryview(buffer))
            assert buffer == (b"weights" * 1000)[-1000:]
            with pytest.raises(RegistryError, match="answered 416"):
                source.read_into(weights.layers[0].descriptor.digest, 7_000_000, memoryview(buffer))
        with pytest.raises(NotFoundError, match="has no v2 in"):
            opened(f"docker://{name}:v2", cache).__enter__()
        with pytest.raises(RegistryError, match="answered 405"):
            put(image, f"docker://{name}:v1", cache)
