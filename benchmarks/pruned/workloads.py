"""Calculations on one device, compared bit for bit: at least one for each library that torch loads.

A workload gives named cases; each case is seeded by its name and returns tensors (or values) from inputs that were
drawn on the CPU. What is not available raises, and the message is the reason that is reported.
"""

# ruff: noqa: SLF001, PLC0415 - operators without a public name; modules that only one workload needs

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from more_workloads import MORE, UnavailableError, gpu_only
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Cases = Iterator[tuple[str, Callable[[], object]]]

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_HALVES = (torch.bfloat16, torch.float16)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_COMPLEX = (torch.complex64, torch.complex128)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _randn(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Drawn on the CPU, the same on every device."""
    if dtype.is_complex:
        return torch.randn(*shape, dtype=dtype).to(device)
    return torch.randn(*shape).to(device, dtype)


def _whole(device: str, *shape: int, dtype: torch.dtype = torch.float32, top: int = 8) -> torch.Tensor:
    """Small whole numbers: their sums are exact, in whatever order threads add them."""
    return torch.randint(0, top, shape).to(device, dtype)


def _trained(module: Callable[..., Any], *inputs: torch.Tensor) -> list[Any]:
    """What a module or function gives, and the gradients of all that it was given."""
    leaves = [value.requires_grad_() if value.is_floating_point() else value for value in inputs]
    result = module(*leaves)
    first = result[0] if isinstance(result, tuple) else result
    # A gradient that differs from place to place, without a kernel of its own behind it.
    first.backward(torch.linspace(-1, 1, first.numel()).reshape(first.shape).to(first.device, first.dtype))
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    return [result, [leaf.grad for leaf in (*leaves, *weights) if leaf.grad is not None]]


# Products


def matmul(device: str) -> Cases:
    """CuBLAS and cuBLASLt: square, odd, thin, batched, transposed."""
    large = 4096 if device == "cuda" else 256
    shapes = ((512, 512, 512), (127, 255, 63), (1, 4096, 1024), (2048, 3, 1025), (33, 1000, 1), (large, large, large))
    for dtype in (*_FLOATS, torch.complex64, torch.complex128):
        for shape in shapes:
            yield f"{_name(dtype)} {shape}", partial(_matmul, device, dtype, shape)
        yield f"{_name(dtype)} batched", partial(_batched, device, dtype)
        yield f"{_name(dtype)} transposed", partial(_transposed, device, dtype)
    for shape in shapes:
        yield f"tf32 {shape}", partial(_matmul, device, torch.float32, shape, "high")


def _matmul(device: str, dtype: torch.dtype, shape: tuple[int, int, int], precision: str = "highest") -> torch.Tensor:
    rows, inner, columns = shape
    torch.set_float32_matmul_precision(precision)
    try:
        return _randn(device, rows, inner, dtype=dtype) @ _randn(device, inner, columns, dtype=dtype)
    finally:
        torch.set_float32_matmul_precision("highest")


def _batched(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    left, right = _randn(device, 9, 65, 127, dtype=dtype), _randn(device, 9, 127, 33, dtype=dtype)
    return [torch.bmm(left, right), torch.einsum("bik,bkj->ij", left, right), left[:, :, 0] @ left[0]]


def _transposed(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    left, right = _randn(device, 256, 384, dtype=dtype), _randn(device, 256, 384, dtype=dtype)
    return [left @ right.mT, left.mT @ right, left[:, :256].mT @ right[:, :256].mT]


def lowprecision(device: str) -> Cases:
    """fp8, int8, int4 and grouped products, of cuBLASLt and of the CUTLASS kernels in torch."""
    for left, right in (("e4m3fn", "e4m3fn"), ("e4m3fn", "e5m2")):
        for rowwise in (False, True):
            for out in (torch.bfloat16, torch.float32):
                call = partial(_scaled, device, left, right, rowwise=rowwise, out=out)
                yield f"fp8 {left} x {right}, {'rows' if rowwise else 'tensor'}, to {_name(out)}", call
    yield "int8", partial(_int8, device)
    yield "int4", partial(_int4, device)
    yield "grouped bf16", partial(_grouped, device)
    yield "grouped fp8", partial(_scaled_grouped, device)


def _fp8(device: str, *shape: int, kind: str = "e4m3fn") -> torch.Tensor:
    return _randn(device, *shape).to(getattr(torch, f"float8_{kind}"))


def _scaled(device: str, left: str, right: str, *, rowwise: bool, out: torch.dtype) -> list[torch.Tensor]:
    results = []
    for rows, inner, columns in ((256, 512, 384), (64, 2048, 128), (1024, 1024, 1024)):
        scales = [torch.full((rows, 1), 0.5), torch.full((1, columns), 2.0)] if rowwise else [torch.tensor(0.5)] * 2
        product = torch._scaled_mm(
            _fp8(device, rows, inner, kind=left),
            _fp8(device, columns, inner, kind=right).t(),
            scale_a=scales[0].to(device),
            scale_b=scales[1].to(device),
            out_dtype=out,
        )
        results.append(product)
    return results


def _int8(device: str) -> list[torch.Tensor]:
    shapes = ((32, 64, 32), (256, 512, 384), (1024, 1024, 1024))
    return [
        torch._int_mm(_whole(device, m, k, dtype=torch.int8), _whole(device, k, n, dtype=torch.int8))
        for m, k, n in shapes
    ]


def _int4(device: str) -> torch.Tensor:
    weight = _whole(device, 128, 128, dtype=torch.uint8, top=256)
    packed = torch._convert_weight_to_int4pack(weight, 2)
    scales = _randn(device, 256 // 32, 128, 2, dtype=torch.bfloat16)
    return torch._weight_int4pack_mm(_randn(device, 16, 256, dtype=torch.bfloat16), packed, 32, scales)


def _grouped(device: str) -> torch.Tensor:
    ends = torch.tensor([32, 96, 128, 256], dtype=torch.int32, device=device)
    left, right = (_randn(device, *shape, dtype=torch.bfloat16) for shape in ((256, 128), (4, 128, 64)))
    return torch._grouped_mm(left, right, offs=ends)


def _scaled_grouped(device: str) -> torch.Tensor:
    ends = torch.tensor([32, 96, 128, 256], dtype=torch.int32, device=device)
    left, right = _fp8(device, 256, 128), _fp8(device, 4, 64, 128).transpose(-2, -1)
    scales = torch.full((256,), 0.5, device=device), torch.full((4, 64), 2.0, device=device)
    return torch._scaled_grouped_mm(left, right, *scales, offs=ends, out_dtype=torch.bfloat16)


def epilogue(device: str) -> Cases:
    """What cuBLASLt does behind a product: bias, ReLU, GELU."""
    for dtype in _FLOATS:
        yield f"addmm {_name(dtype)}", partial(_addmm, device, dtype)
        yield f"linear {_name(dtype)}", partial(_linear, device, dtype)


def _addmm(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = ((256,), (127, 512), (512, 256))
    bias, left, right = (_randn(device, *shape, dtype=dtype) for shape in shapes)
    fused = [torch._addmm_activation(bias, left, right, use_gelu=gelu) for gelu in (False, True)]
    return [torch.addmm(bias, left, right), torch.addmm(bias, left, right, beta=0.5, alpha=2), *fused]


def _linear(device: str, dtype: torch.dtype) -> list[Any]:
    module = nn.Sequential(nn.Linear(129, 256), nn.GELU(), nn.Linear(256, 64), nn.ReLU()).to(device, dtype)
    return _trained(module, _randn(device, 77, 129, dtype=dtype))


def structured(device: str) -> Cases:
    """2:4 sparse products of cuSPARSELt and of CUTLASS."""
    for dtype in (torch.float16, torch.bfloat16, torch.int8):
        for kernels in ("cusparselt", "cutlass"):
            for product in ("mm", "linear"):
                yield f"{kernels} {product} {_name(dtype)}", partial(_structured, device, dtype, kernels, product)


def _structured(device: str, dtype: torch.dtype, kernels: str, product: str) -> torch.Tensor:
    gpu_only(device)
    from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

    SparseSemiStructuredTensor._FORCE_CUTLASS = kernels == "cutlass"
    mask = torch.tensor([0, 0, 1, 1]).tile(256, 128).to(device, dtype)
    weight = to_sparse_semi_structured(_whole(device, 256, 512, dtype=dtype) * mask)
    inputs = _whole(device, 128, 512, dtype=dtype)
    return torch.mm(weight, inputs.t()) if product == "mm" else functional.linear(inputs, weight)


# Networks


def convolution(device: str) -> Cases:
    """CuDNN's convolutions, forward and backward."""
    kinds: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "1d": (lambda: nn.Conv1d(32, 48, 5, padding=2), (4, 32, 257)),
        "2d": (lambda: nn.Conv2d(64, 128, 3, padding=1), (4, 64, 56, 56)),
        "2d odd": (lambda: nn.Conv2d(3, 17, 7, stride=2, padding=3), (2, 3, 113, 97)),
        "2d 1x1": (lambda: nn.Conv2d(64, 32, 1), (4, 64, 28, 28)),
        "2d dilated": (lambda: nn.Conv2d(16, 16, 3, dilation=2), (2, 16, 40, 40)),
        "2d grouped": (lambda: nn.Conv2d(32, 64, 3, groups=4), (2, 32, 30, 30)),
        "2d depthwise": (lambda: nn.Conv2d(64, 64, 3, groups=64, padding=1), (2, 64, 32, 32)),
        "2d transposed": (lambda: nn.ConvTranspose2d(32, 16, 4, stride=2), (2, 32, 20, 20)),
        "3d": (lambda: nn.Conv3d(8, 16, 3, padding=1), (2, 8, 10, 16, 16)),
        "3d transposed": (lambda: nn.ConvTranspose3d(8, 4, 2, stride=2), (1, 8, 6, 8, 8)),
    }
    for kind, (make, shape) in kinds.items():
        for dtype in (torch.float32, *_HALVES):
            yield f"{kind} {_name(dtype)}", partial(_convolved, device, make, shape, dtype)
            if len(shape) == 4:  # noqa: PLR2004 - images
                last = partial(_convolved, device, make, shape, dtype, torch.channels_last)
                yield f"{kind} {_name(dtype)}, channels last", last
        yield f"{kind} tf32", partial(_tf32, partial(_convolved, device, make, shape, torch.float32))


def _convolved(
    device: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: torch.memory_format = torch.contiguous_format,
) -> list[Any]:
    module = make().to(device, dtype).to(memory_format=layout)
    return _trained(module, _randn(device, *shape, dtype=dtype).contiguous(memory_format=layout))


def _tf32(call: Callable[[], Any]) -> Any:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        return call()
    finally:
        torch.backends.cudnn.allow_tf32 = before


def recurrent(device: str) -> Cases:
    """CuDNN's recurrent layers, forward and backward."""
    for kind in ("LSTM", "GRU", "RNN"):
        for dtype in (torch.float32, *_HALVES):
            yield f"{kind} {_name(dtype)}", partial(_recurrent, device, kind, dtype)


def _recurrent(device: str, kind: str, dtype: torch.dtype) -> list[Any]:
    module = getattr(nn, kind)(48, 64, num_layers=2, bidirectional=True).to(device, dtype)
    return _trained(module, _randn(device, 19, 7, 48, dtype=dtype))


def normalization(device: str) -> Cases:
    """Batch, layer, group and RMS normalization, forward and backward."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: nn.BatchNorm2d(32),
        "batch, running": lambda: nn.BatchNorm2d(32).eval(),
        "instance": lambda: nn.InstanceNorm2d(32, affine=True),
        "group": lambda: nn.GroupNorm(4, 32),
        "layer": lambda: nn.LayerNorm((32, 14, 14)),
        "rms": lambda: nn.RMSNorm((14,)),
    }
    for kind, make in kinds.items():
        for dtype in (torch.float32, *_HALVES):
            yield f"{kind} {_name(dtype)}", partial(_convolved, device, make, (8, 32, 14, 14), dtype)


def layers(device: str) -> Cases:
    """Activations, losses, pooling, resampling, optimizers: torch's own kernels."""
    for name in ("softmax", "log_softmax"):
        for dtype in (torch.float32, *_HALVES):
            for width in (127, 5000):
                call = partial(getattr(functional, name), dim=-1)
                yield f"{name} {_name(dtype)} {width}", partial(_activated, device, call, dtype, width)
    for name in ("gelu", "silu", "mish", "elu", "hardswish", "softplus", "logsigmoid", "relu", "glu"):
        for dtype in _FLOATS:
            yield f"{name} {_name(dtype)}", partial(_activated, device, getattr(functional, name), dtype, 1000)
    for dtype in (torch.float32, *_HALVES):
        yield f"pooling {_name(dtype)}", partial(_pooled, device, dtype)
        yield f"cross entropy {_name(dtype)}", partial(_entropy, device, dtype)
        yield f"resampling {_name(dtype)}", partial(_resampled, device, dtype)
        yield f"dropout {_name(dtype)}", partial(_dropped, device, dtype)
    yield "ctc", partial(_ctc, device)
    for fused in (False, True):
        yield f"adamw{', fused' if fused else ''}", partial(_optimized, device, fused)


def _activated(device: str, call: Callable[..., Any], dtype: torch.dtype, width: int) -> list[Any]:
    return _trained(call, _randn(device, 33, width, dtype=dtype))


def _pooled(device: str, dtype: torch.dtype) -> list[Any]:
    image = _randn(device, 3, 8, 33, 31, dtype=dtype)
    maximum = _trained(lambda value: functional.max_pool2d(value, 3, 2), image.clone())
    average = _trained(lambda value: functional.avg_pool2d(value, 2), image.clone())
    return [maximum, average, functional.adaptive_avg_pool2d(image, 5), functional.adaptive_max_pool2d(image, 5)]


def _entropy(device: str, dtype: torch.dtype) -> list[Any]:
    target = torch.randint(0, 1000, (64,)).to(device)
    return _trained(
        lambda value: functional.cross_entropy(value, target, label_smoothing=0.1),
        _randn(device, 64, 1000, dtype=dtype),
    )


def _resampled(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    image = _randn(device, 2, 3, 17, 19, dtype=dtype)
    grid = (_randn(device, 2, 9, 9, 2, dtype=dtype)).clamp(-1, 1)
    modes = ("nearest", "bilinear", "bicubic", "area")
    sized = [functional.interpolate(image, size=(40, 23), mode=mode) for mode in modes]
    return [
        *sized,
        functional.grid_sample(image, grid, align_corners=False),
        functional.pixel_unshuffle(image[:, :, :16, :16], 2),
    ]


def _dropped(device: str, dtype: torch.dtype) -> list[Any]:
    return _trained(lambda value: functional.dropout(value, 0.3), _randn(device, 1000, 37, dtype=dtype))


def _ctc(device: str) -> torch.Tensor:
    logits = functional.log_softmax(_randn(device, 50, 4, 20), 2)
    targets = torch.randint(1, 20, (4, 10), dtype=torch.int32).flatten()
    lengths = torch.full((4,), 50, dtype=torch.int32), torch.full((4,), 10, dtype=torch.int32)
    return functional.ctc_loss(logits, targets, *lengths)


def _optimized(device: str, fused: bool) -> list[Any]:  # noqa: FBT001 - the only option
    weights = [_randn(device, 65, 33).requires_grad_(), _randn(device, 7).requires_grad_()]
    optimizer = torch.optim.AdamW(weights, fused=fused, foreach=not fused)
    for _ in range(3):
        for weight in weights:
            weight.grad = weight.detach().sin()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    return [weight.detach() for weight in weights]


def attention(device: str) -> Cases:
    """Scaled dot products in every backend, forward and backward."""
    for backend in ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        for dtype in (*_HALVES, torch.float32):
            for length, width in ((256, 64), (333, 128)):
                for causal in (False, True):
                    name = f"{backend.lower()} {_name(dtype)} {length}x{width}{' causal' if causal else ''}"
                    yield name, partial(_attended, device, backend, dtype, (2, 4, length, width), causal=causal)


def _attended(device: str, backend: str, dtype: torch.dtype, shape: tuple[int, ...], *, causal: bool) -> list[Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        call = partial(functional.scaled_dot_product_attention, is_causal=causal)
        return _trained(call, *(_randn(device, *shape, dtype=dtype) for _ in range(3)))


# Libraries of mathematics


def fft(device: str) -> Cases:
    """CuFFT: powers of two, odd and prime sizes, complex and real."""
    for dtype in (torch.float32, torch.float64, torch.float16):
        for shape in ((1024,), (7, 1000), (997,), (3, 64, 64), (2, 45, 77), (2, 16, 31, 18), (65536,)):
            yield f"{_name(dtype)} {shape}", partial(_fft, device, dtype, shape)


def _fft(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> list[torch.Tensor]:
    real = _randn(device, *shape, dtype=dtype)
    half = torch.fft.rfftn(real)
    whole = torch.fft.fft(real)
    return [
        half,
        torch.fft.irfftn(half, s=shape),
        whole,
        torch.fft.ifft(whole),
        torch.fft.fftn(torch.complex(real, -real)),
    ]


def sparse(device: str) -> Cases:
    """CuSPARSE: products of CSR, COO and BSR with dense and sparse matrices."""
    for dtype in (*_FLOATS, torch.complex64):
        for name, call in _SPARSE.items():
            yield f"{name} {_name(dtype)}", partial(_sparse, device, dtype, call)


_SPARSE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "csr x dense": lambda left, right: left.to_sparse_csr() @ right,
    "csr x vector": lambda left, right: left.to_sparse_csr() @ right[:, 0],
    "coo x dense": lambda left, right: torch.sparse.mm(left.to_sparse_coo(), right),
    "csr x csr": lambda left, right: left.to_sparse_csr() @ right.to_sparse_csr(),
    "coo x coo": lambda left, right: torch.sparse.mm(left.to_sparse_coo(), right.to_sparse_coo()),
    "coo + coo": lambda left, right: left.to_sparse_coo() + right[:200].to_sparse_coo(),
    "bsr x dense": lambda left, right: left.to_sparse_bsr((8, 8)) @ right,
    "sampled": lambda left, right: torch.sparse.sampled_addmm(left.to_sparse_csr(), left, right),
    "triangular": lambda left, right: torch.triangular_solve(
        right, (left.tril() + 30 * torch.eye(200, device=left.device, dtype=left.dtype)).to_sparse_csr(), upper=False
    )[0],
    "softmax": lambda left, _: torch.sparse.softmax(left.to_sparse_coo(), 1),
}


def _sparse(device: str, dtype: torch.dtype, call: Callable[..., torch.Tensor]) -> torch.Tensor:
    left = _whole(device, 200, 200, dtype=dtype) * (_whole(device, 200, 200, top=10) == 0)
    return call(left, _whole(device, 200, 200, dtype=dtype))


def linear_algebra(device: str) -> Cases:
    """CuSOLVER (and MAGMA): factorizations and solutions, single and batched."""
    for dtype in (torch.float32, torch.float64, torch.complex64):
        for shape in ((65, 65), (256, 256), (8, 33, 33)):
            for name, call in _LINALG.items():
                yield f"{name} {_name(dtype)} {shape}", partial(_solved, device, dtype, shape, call)
    for driver in ("gesvd", "gesvdj", "gesvda"):
        yield f"svd by {driver}", partial(_driven, device, driver)


_LINALG: dict[str, Callable[[torch.Tensor], Any]] = {
    "svd": torch.linalg.svd,
    "svdvals": torch.linalg.svdvals,
    "eigh": lambda value: torch.linalg.eigh(value + value.mH),
    "eigvals": torch.linalg.eigvals,
    "qr": torch.linalg.qr,
    "cholesky": lambda value: torch.linalg.cholesky(_definite(value)),
    "cholesky solve": lambda value: torch.cholesky_solve(value, torch.linalg.cholesky(_definite(value))),
    "cholesky inverse": lambda value: torch.cholesky_inverse(torch.linalg.cholesky(_definite(value))),
    "lu": torch.linalg.lu_factor,
    "ldl": lambda value: torch.linalg.ldl_factor(value + value.mH, hermitian=True),
    "inverse": torch.linalg.inv,
    "solve": lambda value: torch.linalg.solve(value, value.mT.contiguous()),
    "triangular": lambda value: torch.linalg.solve_triangular(_definite(value), value, upper=True),
    "least squares": lambda value: tuple(torch.linalg.lstsq(value, value[..., :3])),
    "determinant": torch.linalg.slogdet,
    "pseudo-inverse": torch.linalg.pinv,
    "exponential": torch.linalg.matrix_exp,
}


def _definite(value: torch.Tensor) -> torch.Tensor:
    return value @ value.mH + 10 * torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)


def _solved(device: str, dtype: torch.dtype, shape: tuple[int, ...], call: Callable[..., Any]) -> Any:
    return call(_randn(device, *shape, dtype=dtype) / shape[-1])


def _driven(device: str, driver: str) -> Any:
    gpu_only(device)
    return torch.linalg.svd(_randn(device, 4, 50, 50), driver=driver)


def random(device: str) -> Cases:
    """The device's own generator."""
    for dtype in _FLOATS:
        yield _name(dtype), partial(_random, device, dtype)
    yield "integers", partial(_random_integers, device)
    yield "distributions", partial(_distributions, device)


def _random(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    empty = partial(torch.empty, 10_007, device=device, dtype=dtype)
    drawn = [empty().uniform_(), empty().normal_(1, 2), empty().exponential_(), empty().cauchy_()]
    return [*drawn, empty().log_normal_(), empty().geometric_(0.3), empty().bernoulli_(0.4)]


def _random_integers(device: str) -> list[torch.Tensor]:
    weights = torch.linspace(0.1, 1, 100, device=device)
    return [
        torch.randint(0, 1 << 40, (10_007,), device=device),
        torch.randperm(50_021, device=device),
        torch.multinomial(weights, 50),
        torch.multinomial(weights, 500, replacement=True),
    ]


def _distributions(device: str) -> list[torch.Tensor]:
    rates = torch.linspace(0.5, 20, 5000, device=device)
    chances = torch.linspace(0.01, 0.99, 5000, device=device)
    return [torch.poisson(rates), torch._standard_gamma(rates), torch.binomial(rates.round(), chances)]


# torch's own kernels

_UNARY = """
    abs acos asin atan ceil cos cosh digamma erf erfc erfinv exp exp2 expm1 floor frac isnan lgamma log log10 log1p log2
    logical_not neg reciprocal round rsqrt sigmoid sign sin sinc sinh sqrt square tan tanh trunc angle conj_physical i0
    bitwise_not
"""
_BINARY = """
    add sub mul div atan2 bitwise_and bitwise_xor copysign eq floor_divide fmax fmod gcd ge gt hypot le logaddexp lt
    maximum minimum ne nextafter pow remainder xlogy bitwise_left_shift
"""
_REDUCTIONS = """
    all any amax amin aminmax argmax argmin argsort count_nonzero cummax cumprod cumsum diff logcumsumexp logsumexp mean
    nansum prod sort std sum unique var
"""


def elementwise(device: str) -> Cases:
    """Functions of one and of two arguments over all types."""
    for operations, arguments in ((_UNARY, 1), (_BINARY, 2)):
        for operation in operations.split():
            yield operation, partial(_every_type, device, getattr(torch, operation), arguments)
    yield "conversions", partial(_conversions, device)
    yield "special", partial(_special, device)


def reductions(device: str) -> Cases:
    """Sums, extremes, order statistics, scans over all types."""
    for operation in _REDUCTIONS.split():
        call = getattr(torch, operation)
        yield operation, partial(_every_type, device, call, 1)
        if operation not in {"unique", "diff"}:
            yield f"{operation} along rows", partial(_every_type, device, partial(call, dim=-1), 1)
    for operation in ("median", "mode"):
        yield operation, partial(_every_type, device, partial(_values, operation), 1)
    for dtype in _FLOATS:
        yield f"top and norms {_name(dtype)}", partial(_tops, device, dtype)


def _values(operation: str, value: torch.Tensor) -> torch.Tensor:
    """Not the positions: which of equal values is named is left to chance."""
    values: torch.Tensor = getattr(torch, operation)(value, 1)[0]
    return values


def _every_type(device: str, call: Callable[..., Any], arguments: int) -> dict[str, Any]:
    """A function over all types, with the message of those that it does not take."""
    results: dict[str, Any] = {}
    for dtype in (*_FLOATS, *_INTEGERS, torch.bool, *_COMPLEX):
        # Whole numbers, so that sums by atomic additions are exact; off zero, so that there is something to divide by.
        inputs = [_whole(device, 37, 211, dtype=dtype, top=4) + _whole(device, 37, 211, dtype=dtype, top=2)]
        inputs += [inputs[0].flip(0).clone()] * (arguments - 1)
        try:
            results[_name(dtype)] = call(*inputs)
        except (RuntimeError, TypeError, ValueError) as error:
            results[_name(dtype)] = error
    return results


def _conversions(device: str) -> dict[str, Any]:
    value = _randn(device, 1001) * 50
    types = (*_FLOATS, torch.int16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2)
    return {f"{_name(a)} to {_name(b)}": value.to(a).to(b) for a in types for b in types}


def _special(device: str) -> dict[str, Any]:
    """Many of these are compiled by NVRTC when they are first called."""
    names = """
        airy_ai bessel_j0 bessel_j1 bessel_y0 chebyshev_polynomial_t erfcx gammainc hermite_polynomial_h i0e i1
        legendre_polynomial_p log_ndtr modified_bessel_k0 ndtri polygamma scaled_modified_bessel_k1 spherical_bessel_j0
        zeta
    """
    value, order = torch.linspace(0.1, 3, 997).to(device), torch.full((997,), 3).to(device)
    results: dict[str, Any] = {}
    for name in names.split():
        call = getattr(torch.special, name)
        pair = name.endswith(("_t", "_h", "_p")) or name in {"zeta", "gammainc"}
        results[name] = call(2, value) if name == "polygamma" else call(value, order) if pair else call(value)
    return results


def _tops(device: str, dtype: torch.dtype) -> list[Any]:
    value = _randn(device, 41, 3001, dtype=dtype)
    tops = [torch.topk(value, 7)[0], torch.topk(value, 100, largest=False)[0], torch.kthvalue(value, 5)[0]]
    norms = [torch.linalg.vector_norm(value, order, dim=1) for order in (1, 2, float("inf"))]
    return [*tops, *norms, torch.var_mean(value, dim=0), torch.cdist(value[:9].float(), value[9:20].float())]


def indexing(device: str) -> Cases:
    """Gathering, scattering, searching."""
    for dtype in (*_FLOATS, torch.int32, torch.int64):
        for name, call in _INDEXING.items():
            yield f"{name} {_name(dtype)}", partial(_indexed, device, dtype, call)
    for dtype in _FLOATS:
        yield f"embedding {_name(dtype)}", partial(_embedded, device, dtype)


_HALF = 3
"""About half of the numbers that are drawn are above it."""

_INDEXING: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "gather": lambda value, index: value.gather(0, index),
    "scatter": lambda value, index: value.scatter(1, index[:, :1], 5),
    "scatter add": lambda value, index: value.scatter_add(0, index, value),
    "scatter reduce": lambda value, index: value.scatter_reduce(0, index, value, "amax"),
    "index select": lambda value, index: value.index_select(0, index[0]),
    "index add": lambda value, index: value.index_add(0, index[0, :64], value[:64]),
    "index put": lambda value, index: value.index_put((index[0], index[1]), value[0], accumulate=True),
    "masked": lambda value, _: [
        value.masked_select(value > _HALF),
        value.masked_fill(value > _HALF, 1),
        value.nonzero(),
    ],
    "where": lambda value, _: torch.where(value > value.flip(0), value, 0),
    "take": lambda value, index: value.take(index),
    "bounds": lambda value, _: torch.searchsorted(value[0].sort()[0], value),
    "counts": lambda value, index: [index.flatten().bincount(), torch.histc(value.float(), 7)],
    "unique": lambda value, _: [value.unique(return_counts=True), value.unique_consecutive()],
    "shuffle": lambda value, _: [value.roll(3, 0), value.flip(1), value.tril(), value.rot90(), value.repeat(2, 3)],
    "join": lambda value, index: [torch.cat([value, value.float()]), torch.stack([value, value]), torch.isin(index, 7)],
    "stable sort": lambda value, _: value.sort(dim=1, stable=True),
}


def _indexed(device: str, dtype: torch.dtype, call: Callable[..., Any]) -> Any:
    return call(_whole(device, 129, 130, dtype=dtype), _whole(device, 129, 130, dtype=torch.int64, top=129))


def _embedded(device: str, dtype: torch.dtype) -> list[Any]:
    index = _whole(device, 60, 30, dtype=torch.int64, top=500)
    plain = _trained(lambda table: functional.embedding(index, table), _whole(device, 500, 48, dtype=dtype))
    bag = functional.embedding_bag(index, _whole(device, 500, 48, dtype=dtype), mode="sum")
    return [plain, bag]


WORKLOADS: dict[str, Callable[[str], Cases]] = {
    "matmul": matmul,
    "low-precision": lowprecision,
    "epilogue": epilogue,
    "structured": structured,
    "convolution": convolution,
    "recurrent": recurrent,
    "normalization": normalization,
    "layers": layers,
    "attention": attention,
    "fft": fft,
    "sparse": sparse,
    "linear-algebra": linear_algebra,
    "random": random,
    "elementwise": elementwise,
    "reductions": reductions,
    "indexing": indexing,
    **MORE,
}

__all__ = ["WORKLOADS", "UnavailableError"]
