"""``benchmarks/load.py``, ``codec.py`` and ``model.py`` on a few megabytes, with slimgpu's own arms alone."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Benchmarks import each other as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run(script: str, *arguments: str, hide: str = "") -> subprocess.CompletedProcess[str]:
    """Run a benchmark; ``hide`` is a module that must not be found."""
    start = f"import sys, runpy; sys.path.insert(0, {str(BENCHMARKS)!r}); sys.argv = sys.argv[1:]; "
    start += f"sys.modules.update({{{hide!r}: None}}); " if hide else ""
    command = [sys.executable, "-c", f"{start} runpy.run_path(sys.argv[0], run_name='__main__')"]
    return subprocess.run(
        [*command, str(BENCHMARKS / script), *arguments], capture_output=True, text=True, check=False, env=os.environ
    )


@pytest.mark.usefixtures("modules")
def test_a_model_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    model = importlib.import_module("model")
    shape = model.shape_of(1_000_000)
    folders = [tmp_path / name for name in ("a", "b", "c")]
    sizes = [model.write_model(folder, shape, 2, seed) for folder, seed in zip(folders, (1, 1, 2), strict=True)]
    assert sizes[0] == shape.size >= 1_000_000
    files = sorted(path.name for path in folders[0].glob("*.safetensors"))
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    contents = [[(folder / file).read_bytes() for file in files] for folder in folders]
    assert contents[0] == contents[1] != contents[2]
    index = json.loads((folders[0] / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {name for name, _ in shape.tensors()}


@pytest.mark.usefixtures("modules")
def test_a_model_is_read_by_safetensors(tmp_path: Path) -> None:
    model = importlib.import_module("model")
    shape = model.shape_of(1_000_000)
    model.write_model(tmp_path, shape, shards=1)
    with safe_open(tmp_path / "model.safetensors", "np") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        assert {name: tuple(one.get_shape()) for name, one in slices.items()} == dict(shape.tensors())
        assert {one.get_dtype() for one in slices.values()} == {"BF16"}


@pytest.mark.usefixtures("modules")
def test_percentiles_lie_between_samples() -> None:
    load = importlib.import_module("load")
    assert load.percentile([3.0], 0.95) == 3
    assert load.percentile([1.0, 2.0, 3.0], 0.5) == 2
    assert load.percentile([2.0, 1.0], 0.95) == pytest.approx(1.95)


def test_loading_is_measured_and_compared(tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    arms = "slimgpu, layout;slimgpu, memory"
    said = run(
        "load.py", "--size", "1MB", "--runs", "2", "--links", "none", "--scenarios", "memory,page cache",
        "--arms", arms, "--work", str(tmp_path), "--out", str(out),
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    document: dict[str, Any] = json.loads(out.read_text())
    assert [(one["scenario"], one["arm"]) for one in document["samples"]] == [
        *[("prefetched", "slimgpu, memory")] * 2,
        *[("page cache", "slimgpu, layout")] * 2,
    ]
    results = [one["result"] for one in document["samples"]]
    assert {one["digest"] for one in results} == {document["digest"]}
    assert all(0 < one["seconds"] < one["total_seconds"] and one["bytes"] >= 1_000_000 for one in results)
    assert "### page cache, 2 runs" in said.stdout
    assert [path for path in tmp_path.iterdir() if path != out] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--device", "tpu"), "tpu is no device"),
        (("--scenarios", "tape"), "there is no scenario tape"),
        (("--size", "many"), "'many' is not a size"),
        (("--arms", "nothing", "--links", "none"), "no arm is named like nothing"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    said = run("load.py", "--size", "1MB", *arguments)
    assert said.returncode != 0
    assert sentence in said.stderr
    assert "Traceback" not in said.stderr


def test_packages_that_are_missing_are_named() -> None:
    said = run("codec.py", "run", "--quick", "--arms", "zipnn*", "--minilm", "none", hide="zipnn")
    assert said.returncode == 1
    assert "pip install zipnn" in said.stderr


def test_codecs_are_measured_on_every_kind_of_values(tmp_path: Path) -> None:
    out = tmp_path / "codec.json"
    said = run(
        "codec.py", "run", "--size", "1MiB", "--runs", "1", "--arms", "slimgpu*, 1 thread;zstd*, 1 thread",
        "--minilm", "none", "--out", str(out),
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    samples = json.loads(out.read_text())["samples"]
    ratios = {(one["values"], one["arm"]): one["ratio"] for one in samples}
    kinds = ["bf16", "fp16", "fp32", "fp32 of bf16", "fp8 e4m3"]
    assert len(ratios) == 4 * len(kinds)
    for kind in kinds:
        assert ratios[kind, "slimgpu, 1 thread"] == ratios[kind, "slimgpu, hashed, 1 thread"]
        assert ratios[kind, "slimgpu, 1 thread"] <= ratios[kind, "zstd -3, 1 thread"] * 1.01
