"""The registry behind a link, without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import requests

from slimgpu.bench.link.values import MACHINE
from slimgpu.bench.registry import LayoutShelves, debian_registry, layout_registry
from slimgpu.errors import MissingComponentError, NotFoundError
from slimgpu.oci import media
from slimgpu.oci.manifest import Descriptor
from slimgpu.store.cache import Cache
from tests.support.images import hello_image
from tests.support.processes import free_port
from tests.support.store import make_artifact, opened, put, put_artifact

if TYPE_CHECKING:
    from pathlib import Path

_SUBJECT = Descriptor(media.OCI_MANIFEST, f"sha256:{'1' * 64}", 3)
_ARTIFACT = make_artifact([b"weights"], "application/vnd.test", _SUBJECT)


@pytest.fixture
def layouts(tmp_path: Path) -> dict[str, Path]:
    cache = Cache(tmp_path / "cache")
    put(hello_image(), f"oci:{tmp_path}/before:v1", cache)
    put(hello_image("zstd", "slim\n"), f"oci:{tmp_path}/slim:v1", cache)
    put_artifact(_ARTIFACT, f"oci:{tmp_path}/weights:v2", cache)
    return {"before": tmp_path / "before", "slim": tmp_path / "slim", "org/weights": tmp_path / "weights"}


def test_each_layout_is_a_repository(layouts: dict[str, Path]) -> None:
    port = free_port()
    with layout_registry(MACHINE, port, layouts):
        tags = {name: requests.get(f"http://127.0.0.1:{port}/v2/{name}/tags/list", timeout=10) for name in layouts}
        assert {name: answer.json()["tags"] for name, answer in tags.items()} == {
            "before": ["v1"],
            "slim": ["v1"],
            "org/weights": ["v2"],
        }
        assert requests.get(f"http://127.0.0.1:{port}/v2/after/tags/list", timeout=10).status_code == 404
        digest = _ARTIFACT.layers[0].descriptor.digest
        blob = requests.get(f"http://127.0.0.1:{port}/v2/org/weights/blobs/{digest}", timeout=10)
        assert blob.content == b"weights"
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/v2/", timeout=10)


def test_images_are_pulled_from_it(layouts: dict[str, Path], tmp_path: Path) -> None:
    port = free_port()
    with (
        layout_registry(MACHINE, port, layouts),
        opened(f"docker://127.0.0.1:{port}/slim:v1", Cache(tmp_path)) as image,
    ):
        assert [layer.descriptor.media_type for layer in image.layers] == [media.OCI_LAYER_ZSTD] * 3


def test_referrers_belong_to_their_repository(layouts: dict[str, Path]) -> None:
    shelves = LayoutShelves(layouts)
    assert len(shelves.referrers("org/weights", _SUBJECT.digest)) == 1
    assert shelves.referrers("before", _SUBJECT.digest) == ()
    assert shelves.referrers("after", _SUBJECT.digest) == ()
    assert shelves.manifest("after", "v1") is None


@pytest.mark.parametrize(("repository", "folder"), [("Before", "before"), ("a=b", "before"), ("before", "missing")])
def test_what_cannot_be_served_is_named(layouts: dict[str, Path], repository: str, folder: str) -> None:
    path = layouts["before"].parent / folder
    with (
        pytest.raises(NotFoundError, match=repository if folder == "before" else str(path)),
        layout_registry(MACHINE, free_port(), {repository: path}),
    ):
        pass


def test_a_port_that_is_taken_is_told(layouts: dict[str, Path]) -> None:
    port = free_port()
    with (
        layout_registry(MACHINE, port, layouts),
        pytest.raises(MissingComponentError, match=f"the registry ended: nothing can listen on 127.0.0.1:{port}"),
        layout_registry(MACHINE, port, layouts),
    ):
        pass


def test_debian_s_registry_takes_pushes(tmp_path: Path) -> None:
    port = free_port()
    with debian_registry(MACHINE, port, tmp_path / "storage"):
        put(hello_image(), f"docker://127.0.0.1:{port}/before:v1", Cache(tmp_path / "cache"))
    with (
        debian_registry(MACHINE, port, tmp_path / "storage"),
        opened(f"docker://127.0.0.1:{port}/before:v1", Cache(tmp_path / "other")) as image,
    ):
        assert len(image.layers) == 3


def test_a_registry_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(MissingComponentError, match="docker-registry must be installed"),
        debian_registry(MACHINE, free_port(), tmp_path / "storage"),
    ):
        pass
