"""`slimgpu bench` with real images, registries, links and programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from slimgpu.report.document import read_schema
from tests.support.examples import assembled

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.timeout(600)

QUICK = ("--runs", "1", "--bandwidth", "none")
ONCE = ("--", "python", "/app/server.py", "--once")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slimgpu", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def document(run: subprocess.CompletedProcess[str]) -> Any:
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    Draft202012Validator(read_schema("slimgpu.bench.v1")).validate(found)
    return found


def left() -> list[str]:
    """What a benchmark must not leave: mounts, and regions in shared memory."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in mounts if "slimgpu.bench" in line] + [
        str(path)
        for path in Path("/dev/shm").glob("slimgpu-bench-*")  # noqa: S108 - where they would be
    ]


@pytest.fixture(scope="module")
def image() -> str:
    return assembled("cuda-numpy")


def stages(sample: Any) -> set[str]:
    return {span["stage"] for span in sample["spans"]}


def test_an_image_with_its_slim_build_and_its_weights_apart(image: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = document(bench(image, *QUICK, "--arms", "before;after*", "--html", str(page), "--json", *ONCE))
    assert [arm["name"] for arm in found["arms"]] == [
        "before",
        "after",
        "after, weights as files",
        "after, weights apart",
    ]
    assert [arm["weights"] for arm in found["arms"]] == ["image", "image", "files", "artifact"]
    stored = [arm["stored"] for arm in found["arms"]]
    assert stored[0] > stored[1] > stored[2] == stored[3]
    samples = {sample["arm"]: sample for sample in found["samples"]}
    assert not any(sample["failure"] for sample in samples.values())
    assert len({sample["output"] for sample in samples.values()}) == 1
    assert json.loads(samples["before"]["output"])["device"] == "cpu"
    for arm in found["arms"]:
        sample = samples[arm["name"]]
        assert {"resolve", "pull", "unpack", "start", "interpreter", "import", "load weights"} <= stages(sample)
        assert ("fetch weights" in stages(sample)) == (arm["weights"] in ("files", "artifact"))
        assert sample["wire"] > arm["stored"] + arm["weights_stored"] * 0.99
        assert max(span["end"] for span in sample["spans"]) <= sample["total"]
        assert "pull" not in {span["stage"] for span in sample["warm_spans"]}
    assert "<svg" in page.read_text()
    assert left() == []


def test_the_nodes_of_a_herd_share_the_registry(image: str) -> None:
    found = document(bench(image, image, *QUICK, "--arms", "before", "--nodes", "2", "--json", *ONCE))
    assert [sample["node"] for sample in found["samples"]] == [0, 1]
    assert all(sample["wire"] > found["arms"][0]["stored"] for sample in found["samples"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["oci:/nowhere"], 1, "/nowhere"),
        (["IMAGE", "--bandwidth", "fast"], 2, "'fast' is not a rate"),
        (["IMAGE", "IMAGE", "--gpu", "h100"], 2, "leave out --gpu"),
        (["IMAGE", "--data", "{}"], 2, "--url"),
        (["IMAGE", "--env", "x"], 2, "sets no variable"),
        (["IMAGE", "--arms", "none", *ONCE], 2, "no arm is called none"),
        (["IMAGE", "--runs", "0"], 2, "x>=1"),
        (["compare", "/nowhere.json", "/nowhere.json"], 2, "/nowhere.json"),
    ],
)
def test_bad_input(image: str, arguments: Sequence[str], code: int, said: str) -> None:
    run = bench(*[image if word == "IMAGE" else word for word in arguments])
    assert (run.returncode, run.stdout) == (code, "")
    assert said in run.stderr
    assert "Traceback" not in run.stderr
