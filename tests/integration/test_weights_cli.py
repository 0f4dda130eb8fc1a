"""``slimgpu weights`` with a real registry: what is packed comes out again, bit for bit, by every way."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from slimgpu.oci.reference import RegistryReference
from slimgpu.store.registry import open_registry_artifact
from tests.support.command import slimgpu, slimgpu_json
from tests.support.models import tree_of, write_model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.registry import Registry

_KEY = ["--image", f"sha256:{'1' * 64}", "--gpu", "h100", "--configuration", "tp=1"]


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMGPU_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "memory"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def packed(registry: Registry, model: Path, tmp_path: Path) -> str:
    name = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    reference = f"docker://{registry.host}/models/{name}:v1"
    slimgpu("-q", "weights", "pack", str(model), "--to", reference)
    return reference


def test_every_way_out_gives_what_went_in(packed: str, model: Path, tmp_path: Path, registry: Registry) -> None:
    listing = slimgpu_json("weights", "list", packed)
    assert slimgpu_json("weights", "verify", packed)["values"] == listing["values"]
    slimgpu("weights", "pull", packed, str(tmp_path / "pulled"))
    assert tree_of(tmp_path / "pulled") == tree_of(model)
    slimgpu("weights", "export", packed, str(tmp_path / "exported"))
    assert tree_of(tmp_path / "exported") == tree_of(model)
    assert slimgpu_json("weights", "load", packed, "--check")["values"] == listing["values"]
    for destination in (f"oci:{tmp_path}/layout:x", f"oci-archive:{tmp_path}/a.tar:x", f"{registry.host}/copies/m:x"):
        assert slimgpu("weights", "push", packed, destination).strip() == listing["digest"]
        assert slimgpu_json("weights", "verify", destination)["digest"] == listing["digest"]
    modelpack = f"docker://{registry.host}/modelpack/m:x"
    slimgpu("weights", "export", packed, modelpack, "--as", "modelpack")
    parsed = RegistryReference(registry.host, "modelpack/m", "x")
    with open_registry_artifact(parsed) as (artifact, _):
        assert artifact.manifest.artifact_type == "application/vnd.cncf.model.manifest.v1+json"
        for layer in artifact.layers:
            with layer.open() as chunks:
                path = (layer.descriptor.annotations or {})["org.cncf.model.filepath"]
                assert b"".join(chunks) == (model / path).read_bytes()


def blobs_of(registry: Registry) -> dict[str, int]:
    folder = registry.storage / "docker/registry/v2/blobs/sha256"
    return {path.parent.name: path.stat().st_size for path in folder.glob("*/*/data")}


def test_only_what_is_new_is_uploaded(packed: str, model: Path, registry: Registry) -> None:
    before = blobs_of(registry)
    assert slimgpu_json("weights", "pack", str(model), "--to", packed)["new"] == 0
    assert blobs_of(registry) == before
    other = write_model(model.parent / "other", seed=2)
    (model / "model-00002-of-00002.safetensors").write_bytes((other / "model-00002-of-00002.safetensors").read_bytes())
    result = slimgpu_json("weights", "pack", str(model), "--to", packed)
    added = [size for name, size in blobs_of(registry).items() if name not in before]
    assert result["new"] in added
    assert result["new"] < 0.7 * result["stored"]
    assert sum(added) < result["new"] + 20_000, "the new blob, an index and a manifest"
    tuned = packed.replace(":v1", ":tuned")
    assert slimgpu_json("weights", "pack", str(model), "--to", tuned, "--base", packed)["new"] == 0
    assert slimgpu_json("weights", "verify", tuned)["values"] == result["values"]


def test_a_cache_by_its_key(registry: Registry, model: Path, tmp_path: Path) -> None:
    reference = f"{registry.host}/caches/m"
    result = slimgpu_json("weights", "pack", "--cache", *_KEY, str(model), "--to", reference)
    assert ":cache-" in result["reference"]
    slimgpu("weights", "pull", reference, str(tmp_path / "back"), *_KEY)
    assert tree_of(tmp_path / "back") == tree_of(model)
    with pytest.raises(RuntimeError, match="has no cache for"):
        slimgpu("weights", "pull", reference, str(tmp_path / "no"), *_KEY[:4], "--configuration", "tp=2")


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupted_pull_goes_on(registry: Registry, tmp_path: Path) -> None:
    model = write_model(tmp_path / "large", width=2048)
    reference = f"{registry.host}/models/large:v1"
    slimgpu("-q", "weights", "pack", str(model), "--to", reference)
    pull = subprocess.Popen(
        [sys.executable, "-m", "slimgpu", "weights", "pull", reference, tmp_path / "out"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,  # noqa: PLW1509 - a test has no threads yet
    )
    state = tmp_path / ".out.slimgpu.partial/state"
    while pull.poll() is None and not (state.exists() and any(state.read_bytes())):
        time.sleep(0.001)
    assert pull.poll() is None
    pull.send_signal(signal.SIGINT)
    error = pull.communicate()[1]
    assert (pull.returncode, error.strip()) == (
        130,
        "slimgpu: interrupted; what has been written stays, and the next start goes on from there",
    )
    assert not (tmp_path / "out").exists()
    there = sum(map(bool, state.read_bytes()))
    assert there
    slimgpu("weights", "pull", reference, str(tmp_path / "out"))
    assert tree_of(tmp_path / "out") == tree_of(model)
    assert not list(tmp_path.glob(".out*"))
