"""torch gets what was packed: on the CPU, from planes that only torch merges, and after a conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.command import slimgpu
from tests.support.vllm_environment import VllmEnvironment, vllm_environment

if TYPE_CHECKING:
    from pathlib import Path

_MAKE = """
import sys
import torch
from safetensors.torch import save_file

torch.manual_seed(5)
floats = {str(d): torch.randn(2_500_001).to(d) for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64)}
tensors = floats | {
    "model.layers.0.bf16 in fp32": torch.randn(999, 3000).to(torch.bfloat16).float(),
    "fp8": torch.randn(1000, 1000).to(torch.float8_e4m3fn),
    "whole": torch.arange(700_000),
    "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-40], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 7),
    "bool": torch.tensor([True, False, True]),
}
save_file(tensors, sys.argv[1])
"""

_COMPARE = """
import sys
import torch
from safetensors.torch import load_file
import slimgpu.weights

def same(one, other):
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    flat = lambda t: t.contiguous().flatten().view(torch.uint8) if t.dim() and t.numel() else t.reshape(-1)
    return torch.equal(flat(one).view(torch.uint8), flat(other).view(torch.uint8))

path, ref = sys.argv[1:]
wanted = load_file(path)
got = slimgpu.weights.load(ref)
assert got.keys() == wanted.keys()
assert all(same(got[name], wanted[name]) for name in wanted), [n for n in wanted if not same(got[n], wanted[n])]
got["whole"][0] = 7  # copied on write
assert slimgpu.weights.load(ref, only="whole")["whole"][0] == 0
half = slimgpu.weights.load(ref, dtype=torch.float16)
assert half["whole"].dtype == torch.int64 and half["torch.bfloat16"].dtype == torch.float16
print("the same", len(got))
"""

_MERGE = """
import numpy as np
import torch
from slimgpu.weights.cuda import merge_planes
from slimgpu.weights.planes import split
from slimgpu.weights.transforms import TRANSFORMS

for name, shape in TRANSFORMS.items():
    numbers = np.random.default_rng(3).bytes(shape.width * 100_003)
    planes = np.empty((shape.width, 100_003), np.uint8)
    split(memoryview(numbers), shape.width, list(planes), is_float=shape.is_float)
    merged = merge_planes(torch.from_numpy(planes.reshape(-1)), shape)
    assert bytes(merged.numpy()) == numbers, name
    print("merged", name)
"""


@pytest.fixture(scope="session")
def torch(tmp_path_factory: pytest.TempPathFactory) -> VllmEnvironment:
    return vllm_environment(tmp_path_factory.mktemp("project"))


@pytest.mark.parametrize("planes", [None, "never", "always"])
def test_tensors_are_what_safetensors_loads(torch: VllmEnvironment, tmp_path: Path, planes: str | None) -> None:
    model, reference = tmp_path / "model.safetensors", f"oci:{tmp_path / 'layout'}:weights"
    torch.run(_MAKE, model)
    slimgpu("weights", "pack", str(model), "--to", reference)
    memory = {"SLIMGPU_MEMORY_DIR": str(tmp_path / "memory"), "SLIMGPU_CACHE_DIR": str(tmp_path / "cache")}
    if planes is not None:
        slimgpu("prefetch", reference, "--planes", planes, **memory)
    assert "the same 11" in torch.run(_COMPARE, model, reference, **memory)


def test_torch_merges_planes_as_the_cpu_does(torch: VllmEnvironment) -> None:
    assert torch.run(_MERGE).count("merged") == 6
