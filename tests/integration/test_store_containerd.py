"""containerd imports and pulls what we write, with zstd layers too, which the Docker engine cannot read."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from tests.support.images import Compression, hello_image
from tests.support.store import put

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.store.cache import Cache
    from tests.support.containerd import Containerd
    from tests.support.registry import Registry


def run_once(containerd: Containerd, image: str, folder: Path) -> str:
    """What the image prints, by way of a file: ``ctr`` may end before it has copied what its pipe holds."""
    log, name = folder / "printed", uuid.uuid4().hex
    containerd.ctr("run", "--rm", "--snapshotter", "overlayfs", "--log-uri", f"file://{log}", image, name)
    return log.read_text()


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
def test_pulls_and_runs(
    compression: Compression, tmp_path: Path, cache: Cache, registry: Registry, containerd: Containerd
) -> None:
    name = f"{registry.host}/containerd/{uuid.uuid4().hex}:v1"
    digest = put(hello_image(compression, text=f"{name}\n"), f"docker://{name}", cache)
    containerd.ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", name)
    assert digest in containerd.ctr("images", "list", f"name=={name}")
    assert run_once(containerd, name, tmp_path) == f"{name}\n"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_imports_our_oci_archive(
    compression: Compression, tmp_path: Path, cache: Cache, containerd: Containerd
) -> None:
    base = f"local/{uuid.uuid4().hex}"
    put(hello_image(compression, text=f"{base}\n"), f"oci-archive:{tmp_path}/image.tar:v1", cache)
    containerd.ctr("images", "import", "--base-name", base, "--snapshotter", "overlayfs", tmp_path / "image.tar")
    assert run_once(containerd, f"{base}:v1", tmp_path) == f"{base}\n"


def test_imports_our_docker_archive(tmp_path: Path, cache: Cache, containerd: Containerd) -> None:
    name = f"docker.io/library/{uuid.uuid4().hex}:v1"
    put(hello_image(text=f"{name}\n"), f"docker-archive:{tmp_path}/image.tar:{name}", cache)
    containerd.ctr("images", "import", "--snapshotter", "overlayfs", tmp_path / "image.tar")
    assert run_once(containerd, name, tmp_path) == f"{name}\n"
