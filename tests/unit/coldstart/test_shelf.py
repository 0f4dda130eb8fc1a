from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from slimgpu.coldstart.shelf import CacheShelf
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.manifest import Descriptor
from slimgpu.oci.mutate import compose_artifact
from slimgpu.oci.reference import RegistryReference
from slimgpu.store.cache import Cache
from slimgpu.weights.manifests import FOLDER, ManifestKeeper
from slimgpu.weights.tiers import disk_tier

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.oci.image import Artifact

_REFERENCE = RegistryReference("host:5000", "team/model", "v1")
_BLOB = bytes(range(256)) * 16


class _Blob:
    descriptor = Descriptor("application/x", digest_bytes(_BLOB), len(_BLOB))


def artifact(subject: Descriptor | None = None) -> Artifact:
    return compose_artifact("a", "application/a", ("application/c", b"{}"), [_Blob()], subject=subject)  # type: ignore[list-item]


@pytest.fixture
def kept(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path)
    ManifestKeeper(tmp_path / FOLDER).keep(_REFERENCE, artifact().raw_manifest)
    return cache


def test_manifests_by_tag_and_by_digest(kept: Cache) -> None:
    shelf = CacheShelf(kept)
    data = artifact().raw_manifest
    wanted = ("application/vnd.oci.image.manifest.v1+json", data)
    assert shelf.manifest("team/model", "v1") == wanted
    assert shelf.manifest("team/model", digest_bytes(data)) == wanted
    assert shelf.tags("team/model") == ["v1"]
    for repository, identifier in (("team/model", "v2"), ("team", "v1"), ("team/model", f"sha256:{'0' * 64}")):
        assert shelf.manifest(repository, identifier) is None
    assert shelf.manifest("other", digest_bytes(data)) is None
    assert shelf.tags("other") is None


def test_a_tag_that_moves(kept: Cache) -> None:
    moved = artifact(Descriptor("application/x", f"sha256:{'1' * 64}", 1))
    ManifestKeeper(kept.root / FOLDER).keep(_REFERENCE, moved.raw_manifest)
    shelf = CacheShelf(kept)
    found = shelf.manifest("team/model", "v1")
    assert found is not None
    assert found[1] == moved.raw_manifest
    (referrer,) = shelf.referrers("team/model", f"sha256:{'1' * 64}")
    assert referrer.digest == digest_bytes(moved.raw_manifest)
    assert list(shelf.referrers("other", f"sha256:{'1' * 64}")) == []


def test_what_another_process_is_writing_is_passed_over(kept: Cache) -> None:
    """Its file has another name a moment later."""
    data, folder = artifact().raw_manifest, kept.root / FOLDER / "manifests"
    for number in range(20):
        (folder / f".{number}.partial").symlink_to("gone")
    keeper = ManifestKeeper(kept.root / FOLDER)
    assert keeper.with_config(digest_bytes(b"{}")) == data
    assert list(keeper.all()) == [data]


def test_what_is_asked_for_by_digest_gets_no_tag(tmp_path: Path) -> None:
    data = artifact().raw_manifest
    reference = RegistryReference("host", "m", "v1", digest_bytes(data))
    ManifestKeeper(tmp_path).keep(reference, data)
    assert ManifestKeeper(tmp_path).tags("m") == []
    assert ManifestKeeper(tmp_path).find("m", digest_bytes(data)) == data


def test_blobs_in_parts(kept: Cache) -> None:
    shelf = CacheShelf(kept)
    digest = digest_bytes(_BLOB)
    assert shelf.blob(digest) is None
    disk_tier(kept).keep(digest, 1024, memoryview(_BLOB)[1024:2048])
    place = shelf.blob(digest)
    assert place is not None
    assert (place.size, place.offset) == (len(_BLOB), 0)
    assert place.covers(1024, 1024)
    assert place.covers(1500, 10)
    assert not place.covers(1000, 100)
    assert not place.covers(0, len(_BLOB))
    assert place.path.read_bytes()[1024:2048] == _BLOB[1024:2048]
    assert shelf.blob(f"sha256:{'2' * 64}") is None


def test_new_manifests_are_seen(kept: Cache) -> None:
    shelf = CacheShelf(kept)
    assert shelf.blob(f"sha256:{'3' * 64}") is None
    other = compose_artifact("b", "application/b", ("application/c", b"[]"), [])
    ManifestKeeper(kept.root / FOLDER).keep(RegistryReference("host", "b", "v1"), other.raw_manifest)
    os.utime(kept.root / FOLDER / "manifests", ns=(1, 1))
    disk_tier(kept).keep(digest_bytes(b"[]"), 0, memoryview(b"[]"))
    place = shelf.blob(digest_bytes(b"[]"))
    assert place is not None
    assert place.covers(0, 2)


def test_damage_is_as_good_as_nothing(kept: Cache) -> None:
    shelf = CacheShelf(kept)
    for path in (kept.root / FOLDER / "manifests").iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    assert shelf.manifest("team/model", "v1") is None
    assert shelf.blob(digest_bytes(_BLOB)) is None
    (kept.root / FOLDER / "names/team%2Fmodel/v1").write_bytes(b"\xff\xfe")
    assert shelf.manifest("team/model", "v1") is None


def test_an_empty_cache(tmp_path: Path) -> None:
    shelf = CacheShelf(Cache(tmp_path / "cache"))
    assert shelf.manifest("m", "v1") is None
    assert shelf.tags("m") is None
    assert shelf.blob(digest_bytes(b"")) is None
    assert list(shelf.referrers("m", digest_bytes(b""))) == []


def test_a_full_disk_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "manifests").write_text("in the way")
    ManifestKeeper(tmp_path).keep(_REFERENCE, b"{}")
    assert list(ManifestKeeper(tmp_path).all()) == []
