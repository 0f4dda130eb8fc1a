"""Kernels in Triton; it wants their source in a file and its names in the module."""

from __future__ import annotations

import hashlib

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


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


def binaries() -> dict[str, str]:
    """Digests of what Triton and its ptxas make of the kernels for an H100, which needs no GPU."""
    found = {}
    for kernel, pointer in ((_product, "*fp16"), (_scan, "*fp32")):
        names = kernel.arg_names
        signature = dict.fromkeys(names[:-1], pointer) | {names[-1]: "constexpr"}
        source = ASTSource(fn=kernel, signature=signature, constexprs={names[-1]: 64})
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        for form in ("ptx", "cubin"):
            content = made.asm[form]
            data = content.encode() if isinstance(content, str) else content
            found[f"{kernel.__name__} {form}"] = hashlib.sha256(data).hexdigest()
    return found
