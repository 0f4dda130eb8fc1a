"""Slim images do what the originals did, in a real engine and as real clients read them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.command import slimgpu, slimgpu_json
from tests.support.examples import assembled
from tests.support.processes import run
from tests.support.store import skopeo_copy

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.containerd import Containerd
    from tests.support.engine import Engine
    from tests.support.registry import Registry


def answers(engine: Engine, image: str, *command: str) -> object:
    """What the image prints as JSON, without any network."""
    return json.loads(engine.docker("run", "--rm", "--network", "none", image, *command))


@pytest.mark.parametrize("options", [(), ("--gpu", "h100"), ("--gpu", "t4", "--gpu", "b200", "--keep-ptx")])
def test_the_demo_image_answers_as_before(engine: Engine, options: tuple[str, ...]) -> None:
    image = assembled("cuda-numpy")
    skopeo_copy(image, "docker-daemon:demo:before", "--dest-daemon-host", engine.host)

    slimgpu("build", image, "--to", "docker-daemon:demo:slim", *options)

    before = answers(engine, "demo:before", "--once")
    assert before
    assert answers(engine, "demo:slim", "--once") == before
    config = [
        json.loads(engine.docker("inspect", "-f", "{{json .Config}}", f"demo:{tag}")) for tag in ("before", "slim")
    ]
    labels = config[1]["Labels"]
    assert labels.pop("slimgpu.level") == "safe"
    config[1]["Labels"] = {key: value for key, value in labels.items() if not key.startswith("slimgpu.")}
    assert config[1] == config[0]
    engine.docker("rmi", "demo:before", "demo:slim")


def test_torch_computes_as_before(engine: Engine) -> None:
    image = assembled("torch")
    skopeo_copy(image, "docker-daemon:torch:before", "--dest-daemon-host", engine.host)
    before = answers(engine, "torch:before")
    engine.docker("rmi", "torch:before")

    result = slimgpu_json("build", image, "--to", "docker-daemon:torch:slim", "--gpu", "l40s")

    saved = {rule["rule"]: rule["bytes"] for rule in result["rules"]}
    assert saved["gpu.libraries"] > 1_000_000_000
    assert saved["debug.sections"] > 400_000_000

    assert before
    assert answers(engine, "torch:slim") == before
    engine.docker("rmi", "torch:slim")


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    image = assembled("cuda-numpy")

    for layer_format in ("zstd", "gzip"):
        digests = {
            slimgpu_json(
                "build", image, "--to", f"oci:{tmp_path / 'out'}:{jobs}", "-j", jobs, "--format", layer_format
            )["digest"]
            for jobs in ("1", "3", "4")
        }
        assert len(digests) == 1


def test_a_registry_takes_it_and_containerd_unpacks_zstd(registry: Registry, containerd: Containerd) -> None:
    image = assembled("cuda-numpy")
    name = f"127.0.0.1:{registry.port}/demo:slim"

    result = slimgpu_json("build", image, "--to", f"docker://{name}")

    assert result["after"]["stored"] < result["before"]["stored"]
    inspected = json.loads(run("skopeo", "inspect", "--tls-verify=false", f"docker://{name}"))
    assert inspected["Digest"] == result["digest"]
    containerd.ctr("images", "pull", "--plain-http", name)
    assert slimgpu_json("analyze", f"docker://{name}")["digest"] == result["digest"]


def test_a_plan_replays_to_the_same_image(tmp_path: Path) -> None:
    image = assembled("cuda-numpy")
    plan = tmp_path / "plan.json"
    plan.write_text(slimgpu("build", image, "--dry-run", "--json", "--keep", "/usr/share/man/**"))

    replayed = slimgpu_json("build", image, "--to", f"oci:{tmp_path / 'a'}", "--plan", str(plan))
    made = slimgpu_json("build", image, "--to", f"oci:{tmp_path / 'b'}", "--keep", "/usr/share/man/**")

    assert replayed["digest"] == made["digest"]
    assert {action["rule"] for action in json.loads(plan.read_text())["actions"]} >= {"toolchain.apt", "docs.pages"}
