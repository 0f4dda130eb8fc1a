"""Blobs that a store holds and that are damaged there: what a push with --check can mend, and what it says else."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
import requests

from slimgpu.errors import SlimgpuError
from slimgpu.oci.digest import digest_bytes
from slimgpu.weights import load
from tests.support.command import slimgpu, slimgpu_json
from tests.support.fake_http import Answer, Request, serving
from tests.support.registry import Registry, running_registry
from tests.support.weights import digests, noise, pack_to, small_model, write_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.fake_http import Behaviour

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMGPU_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "memory"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def own_registry(tmp_path: Path) -> Iterator[Registry]:
    (tmp_path / "registry").mkdir()
    with running_registry(tmp_path / "registry") as registry:
        yield registry


@pytest.fixture
def expected() -> str:
    return digests({name: memoryview(values.data) for name, values in small_model().items()})


def harm(path: Path, how: str) -> None:
    size = path.stat().st_size
    path.chmod(0o644)
    path.write_bytes({"noise": noise(size), "cut": path.read_bytes()[:-7], "empty": b""}[how])


@pytest.mark.parametrize("how", ["noise", "cut", "empty"])
def test_a_layout_is_mended(model: Path, tmp_path: Path, expected: str, how: str) -> None:
    whole, damaged = f"oci:{tmp_path}/whole:v1", f"oci:{tmp_path}/damaged:v1"
    packed = pack_to(whole, model)
    slimgpu("weights", "push", whole, damaged)
    blob = tmp_path / "damaged" / "blobs" / packed.index.blobs[0].digest.replace(":", "/")
    harm(blob, how)
    slimgpu("weights", "push", whole, damaged)
    with pytest.raises(SlimgpuError):
        load(damaged)
    slimgpu("weights", "push", "--check", whole, damaged)
    assert digests(load(damaged)) == expected
    harm(blob, how)
    slimgpu("weights", "pack", "--check", str(model), "--to", damaged)
    assert digests(load(damaged)) == expected


def _replacing(blobs: dict[str, bytes], documents: dict[str, bytes]) -> Behaviour:
    """A registry that stores what it is sent, there or not."""

    def behave(request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        if request.method == "POST":
            return Answer(202, headers={"Location": "/upload"})
        if request.method == "PUT" and path == "/upload":
            digest = query.removeprefix("digest=").replace("%3A", ":")
            blobs[digest] = request.body
            return Answer(201 if digest_bytes(request.body) == digest else 400)
        if request.method == "PUT":
            documents[path] = documents[f"/v2/a/manifests/{digest_bytes(request.body)}"] = request.body
            return Answer(201)
        found = documents.get(path, blobs.get(path.rpartition("/")[2]))
        return Answer(404) if found is None else Answer(body=found)

    return behave


@pytest.mark.parametrize("how", ["push", "pack"])
def test_a_registry_that_replaces_blobs_is_mended(model: Path, tmp_path: Path, how: str) -> None:
    source = f"oci:{tmp_path}/layout:v1"
    packed = pack_to(source, model)
    digest = packed.index.blobs[0].digest
    blobs: dict[str, bytes] = {}
    with serving(_replacing(blobs, {})) as server:
        named = f"docker://{server.host}/a:v1"
        slimgpu("weights", "push", source, named)
        right = dict(blobs)
        blobs[digest] = noise(len(blobs[digest]))
        slimgpu("weights", "push", source, named)
        assert blobs != right
        if how == "push":
            found = slimgpu_json("weights", "push", "--check", source, named)["digest"]
        else:
            found = slimgpu_json("weights", "pack", "--check", str(model), "--to", named)["digest"]
        assert found == digest_bytes(packed.artifact.raw_manifest)
        assert blobs == right
        uploads = len(server.asked("/upload"))
        slimgpu("weights", "push", "--check", source, named)
        assert [request.method for request in server.asked("/upload")[uploads:]] == ["DELETE"]  # of what was begun


class _Keeping(dict[str, bytes]):
    """What is there stays."""

    def __setitem__(self, name: str, value: bytes) -> None:
        self.setdefault(name, value)


def test_a_manifest_that_stays_damaged_is_told(model: Path, tmp_path: Path) -> None:
    source = f"oci:{tmp_path}/layout:v1"
    digest = digest_bytes(pack_to(source, model).artifact.raw_manifest)
    with serving(_replacing({}, _Keeping({f"/v2/a/manifests/{digest}": b"{}"}))) as server:
        slimgpu("weights", "push", source, f"{server.host}/a:v1")
        with pytest.raises(RuntimeError, match=f"holds a damaged {digest} and does not replace it"):
            slimgpu("weights", "push", "--check", source, f"{server.host}/a:v1")


@pytest.mark.parametrize("which", ["blob", "index"])
def test_dockers_registry_keeps_what_is_damaged_until_it_is_collected(
    own_registry: Registry, model: Path, tmp_path: Path, expected: str, which: str
) -> None:
    """As the message says: another repository of it, and deleting the blob over the API, help nothing."""
    source, named = f"oci:{tmp_path}/layout:v1", f"docker://{own_registry.host}/repair/model:v1"
    packed = pack_to(source, model)
    slimgpu("weights", "push", source, named)
    digest = {"blob": packed.index.blobs[0].digest, "index": packed.artifact.manifest.config.digest}[which]
    harm(own_registry.blob(digest), "noise")
    base = f"http://{own_registry.host}/v2/repair/model"
    assert requests.delete(f"{base}/blobs/{digest}", timeout=30).status_code == 202
    for there in (named, f"docker://{own_registry.host}/repair/other:v1"):
        for command in (["push", "--check", source, there], ["pack", "--check", str(model), "--to", there]):
            with pytest.raises(RuntimeError) as caught:
                slimgpu("weights", *command)
            said = f"slimgpu: {own_registry.host} holds a damaged {digest} and does not replace it; have it deleted"
            assert said in str(caught.value)
    manifest = digest_bytes(packed.artifact.raw_manifest)
    assert requests.delete(f"{base}/manifests/{manifest}", timeout=30).status_code == 202
    config_file = own_registry.storage.parent / f"config-{own_registry.port}.yml"
    subprocess.run(["docker-registry", "garbage-collect", config_file], check=True, capture_output=True)
    slimgpu("weights", "push", "--check", source, named)
    assert digests(load(named)) == expected
