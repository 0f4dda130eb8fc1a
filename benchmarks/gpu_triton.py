"""Kernels in Triton; it wants their source in a file and its names in the module."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _product(left, right, out, size: tl.constexpr):  # noqa: ANN001, ANN202 - pointers of Triton's own types
    rows = tl.arange(0, size)
    places = rows[:, None] * size + rows[None, :]
    tl.store(out + places, tl.dot(tl.load(left + places), tl.load(right + places)))


@triton.jit
def _scan(value, out, size: tl.constexpr):  # noqa: ANN001, ANN202 - pointers of Triton's own types
    places = tl.program_id(0) * size + tl.arange(0, size)
    loaded = tl.load(value + places)
    tl.store(out + places, tl.cumsum(tl.exp(loaded - tl.max(loaded, 0)), 0))


def products() -> list[torch.Tensor]:
    """Matrix products in two types and a scan."""
    results = []
    for dtype in (torch.float16, torch.bfloat16):
        left, right = (torch.randn(64, 64).to("cuda", dtype) for _ in range(2))
        out = torch.empty(64, 64, device="cuda")
        _product[(1,)](left, right, out, 64)
        results.append(out)
    value = torch.randn(8, 256).cuda()
    out = torch.empty_like(value)
    _scan[(8,)](value, out, 256)
    return [*results, out]
