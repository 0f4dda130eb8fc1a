"""Workloads beyond torch's operators: other packages, compilers, libraries by their C interface, whole models."""

# ruff: noqa: SLF001, PLC0415 - operators without a public name; modules that only one workload needs

from __future__ import annotations

import ctypes
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Cases = Iterator[tuple[str, Callable[[], object]]]


class UnavailableError(Exception):
    """What a case needs is not here; the message says what."""


def gpu_only(device: str) -> None:
    """Raise `UnavailableError` unless the device is a GPU."""
    if device != "cuda":
        raise UnavailableError("it needs a GPU")


# cuRAND

_CURAND = "libcurand.so.10"
_PSEUDO = {"XORWOW": 101, "MRG32k3a": 121, "MTGP32": 141, "MT19937": 142, "Philox": 161}
_QUASI = {"Sobol32": 201, "scrambled Sobol32": 202, "Sobol64": 203, "scrambled Sobol64": 204}
_WIDE = 203
"""From this number on a generator gives 64 bits."""


def curand(device: str) -> Cases:
    """CuRAND's generators by its C interface: on the host where there is no GPU."""
    library = ctypes.CDLL(_CURAND)
    for name, number in (_PSEUDO | _QUASI).items():
        yield name, partial(_curand, library, device, number)


def _curand(library: ctypes.CDLL, device: str, number: int) -> list[torch.Tensor]:
    count = 20_000
    generator = ctypes.c_void_p()
    create = library.curandCreateGenerator if device == "cuda" else library.curandCreateGeneratorHost
    _curand_check(create(ctypes.byref(generator), number))
    try:
        if number in _PSEUDO.values():
            _curand_check(library.curandSetPseudoRandomGeneratorSeed(generator, ctypes.c_ulonglong(1234)))
        else:
            _curand_check(library.curandSetQuasiRandomGeneratorDimensions(generator, 4))
        raw = torch.zeros(count, dtype=torch.int64 if number >= _WIDE else torch.int32, device=device)
        draw = library.curandGenerateLongLong if number >= _WIDE else library.curandGenerate
        uniform, normal = torch.zeros(count, device=device), torch.zeros(count, dtype=torch.float64, device=device)
        size, mean, deviation = ctypes.c_size_t(count), ctypes.c_double(0), ctypes.c_double(1)
        _curand_check(draw(generator, _pointer(raw), size))
        _curand_check(library.curandGenerateUniform(generator, _pointer(uniform), size))
        _curand_check(library.curandGenerateNormalDouble(generator, _pointer(normal), size, mean, deviation))
        if device == "cuda":
            torch.cuda.synchronize()
        return [raw, uniform, normal]
    finally:
        library.curandDestroyGenerator(generator)


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _curand_check(status: int) -> None:
    if status:
        raise UnavailableError(f"cuRAND answered {status}")


# torchvision


def vision(device: str) -> Cases:
    """The kernels of torchvision, and nvJPEG."""
    import torchvision

    yield "jpeg", partial(_jpeg, device)
    boxes = partial(_boxes, device)
    yield "nms", lambda: torchvision.ops.nms(boxes(), torch.linspace(0, 1, 500).to(device), 0.3)
    # The operators themselves: in deterministic mode torchvision's functions compile another implementation.
    operators = torch.ops.torchvision
    yield "roi_align", partial(_pool, device, lambda *given: operators.roi_align(*given, 1.0, 3, 3, -1, False))
    yield "roi_pool", partial(_pool, device, lambda *given: operators.roi_pool(*given, 1.0, 3, 3))
    yield "deformable convolution", partial(_deformed, device)


def _jpeg(device: str) -> list[Any]:
    from torchvision.io import decode_jpeg, encode_jpeg

    image = (torch.rand(3, 160, 213).cumsum(2) * 3).to(torch.uint8)
    coded = encode_jpeg(image.to(device), 90)
    plain = encode_jpeg(image, 90)
    return [coded, decode_jpeg(plain, device=device), decode_jpeg([plain, plain], device=device)]


def _boxes(device: str) -> torch.Tensor:
    corner = torch.rand(500, 2) * 30
    return torch.cat([corner, corner + 1 + torch.rand(500, 2) * 20], 1).to(device)


def _pool(device: str, call: Callable[..., Any]) -> Any:
    boxes = _boxes(device)
    return call(torch.randn(1, 36, 60, 60).to(device), torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1))


def _deformed(device: str) -> torch.Tensor:
    from torchvision.ops import deform_conv2d

    shapes = ((2, 4, 20, 20), (2, 18, 18, 18), (8, 4, 3, 3))
    return deform_conv2d(*(torch.randn(*shape).to(device) for shape in shapes))


# NCCL


def collectives(device: str) -> Cases:
    """NCCL with one rank (gloo on the CPU)."""
    import torch.distributed as dist

    backend = "nccl" if device == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as place:
        dist.init_process_group(backend, init_method=f"file://{place}/rendezvous", rank=0, world_size=1)
        try:
            for dtype in (torch.float32, torch.bfloat16, torch.int32):
                yield f"{dtype}", partial(_collective, device, dtype)
            yield "scaled sum", partial(_scaled_sum, device)
        finally:
            dist.destroy_process_group()


def _collective(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    import torch.distributed as dist

    value = torch.arange(10_000).to(device, dtype)
    reduced, gathered, scattered = value.clone(), torch.empty_like(value), torch.empty_like(value)
    dist.all_reduce(reduced)
    dist.all_gather_into_tensor(gathered, value)
    dist.reduce_scatter_tensor(scattered, value)
    dist.broadcast(value, 0)
    return [reduced, gathered, scattered, value]


def _scaled_sum(device: str) -> torch.Tensor:
    """With one rank too, NCCL runs a kernel of its own for it."""
    import torch.distributed as dist

    gpu_only(device)
    value = torch.arange(10_000.0).to(device)
    dist.all_reduce(value, op=dist._make_nccl_premul_sum(2.0))
    return value


# Compilers and the driver


def compiled(device: str) -> Cases:
    """torch.compile: Triton and its ptxas on a GPU, the C++ compiler on the CPU."""
    import torch._inductor.config

    torch._inductor.config.deterministic = True
    yield "perceptron", partial(_compiled, device, _perceptron, (77, 64))
    softmax: Callable[[], Any] = lambda: lambda value: functional.softmax(value * 2 + 1, dim=-1)  # noqa: E731
    yield "softmax", partial(_compiled, device, softmax, (33, 1000))
    yield "reduction", partial(_compiled, device, lambda: lambda value: value.sin().square().sum(0), (500, 65))
    yield "triton to cubin", _triton_binaries
    if device == "cuda":
        yield "triton", _triton
        yield "nvrtc", _nvrtc


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 32))


def _compiled(device: str, make: Callable[[], Any], shape: tuple[int, ...]) -> torch.Tensor:
    """The function is made here, where its weights are seeded."""
    call = make()
    call = call.to(device) if isinstance(call, nn.Module) else call
    result: torch.Tensor = torch.compile(call)(torch.randn(*shape).to(device))
    return result


def _triton() -> list[torch.Tensor]:
    from kernels import products

    return products()


def _triton_binaries() -> dict[str, str]:
    from kernels import binaries

    return binaries()


def _nvrtc() -> torch.Tensor:
    """A kernel from text."""
    call = torch.cuda.jiterator._create_jit_fn(
        "template <typename T> T mixed(T x, T y) { return x * exp(-y * y) + sqrt(abs(x)); }"
    )
    result: torch.Tensor = call(torch.randn(1000).cuda(), torch.randn(1000).cuda())
    return result


def graphs(device: str) -> Cases:
    """CUDA graphs: captured once, replayed with other inputs."""
    yield "perceptron", partial(_graph, device)


def _graph(device: str) -> list[torch.Tensor]:
    gpu_only(device)
    module = nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 64)).to(device, torch.bfloat16)
    inputs = torch.randn(32, 64).to(device, torch.bfloat16)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            module(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = module(inputs)
        results = []
        for scale in (1.0, 0.5, -2.0):
            inputs.mul_(scale)
            graph.replay()
            results.append(outputs.clone())
    return results


def profile(device: str) -> Cases:
    """CUPTI: the names of the kernels that ran, which must be the same too."""
    yield "kernels", partial(_profile, device)


def _profile(device: str) -> list[str]:
    from torch.autograd import DeviceType

    kind = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    image, matrix = torch.randn(4, 16, 32, 32).to(device), torch.randn(512, 512).to(device)
    with torch.profiler.profile(activities=activities) as seen:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            functional.conv2d(image.to(dtype), image[:, :, :3, :3].to(dtype))
            functional.softmax(matrix.to(dtype) @ matrix.to(dtype), 1)
            functional.scaled_dot_product_attention(*[image.to(dtype)] * 3)
        torch.linalg.qr(matrix)
        torch.fft.fft2(matrix)
        if device == "cuda":
            torch.cuda.synchronize()
    names = sorted({event.name for event in seen.events() or () if event.device_type == kind})
    if not names:
        raise UnavailableError("the profiler saw nothing")
    return names


# Models


def llama(device: str) -> Cases:
    """A small Llama from a seed, which generates 32 tokens greedily."""
    import transformers

    for backend in ("sdpa", "eager"):
        yield backend, partial(_llama, device, transformers, backend)


def _llama(device: str, transformers: Any, backend: str) -> list[torch.Tensor]:
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation=backend,
    )
    model = transformers.LlamaForCausalLM(config).to(device, torch.bfloat16).eval()
    prompt = torch.randint(0, 1000, (2, 17)).to(device)
    with torch.no_grad():
        logits = model(prompt).logits
        mask = torch.ones_like(prompt)
        tokens = model.generate(prompt, attention_mask=mask, max_new_tokens=32, do_sample=False, use_cache=True)
    return [logits, tokens]


def vllm(device: str) -> Cases:
    """The kernels that vLLM brings, and its FlashAttention 2 and 3."""
    from vllm import _custom_ops as kernels

    gpu_only(device)
    for dtype in (torch.float16, torch.bfloat16):
        yield f"rms norm {dtype}", partial(_vllm_norm, kernels, dtype)
        yield f"silu {dtype}", partial(_vllm_silu, dtype)
        yield f"paged attention {dtype}", partial(_vllm_paged, kernels, dtype)
        for version in (2, 3):
            yield f"flash attention {version} {dtype}", partial(_vllm_attention, dtype, version)
    yield "fp8 product", partial(_vllm_scaled, kernels)
    yield "top experts", partial(_vllm_experts, kernels)


def _vllm_norm(kernels: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    value, weight = torch.randn(65, 1024).to("cuda", dtype), torch.randn(1024).to("cuda", dtype)
    result, residual = torch.empty_like(value), value.flip(0).contiguous()
    kernels.rms_norm(result, value, weight, 1e-6)
    kernels.fused_add_rms_norm(value, residual, weight, 1e-6)
    return [result, value, residual]


def _vllm_silu(dtype: torch.dtype) -> torch.Tensor:
    value = torch.randn(65, 2048).to("cuda", dtype)
    result = torch.empty(65, 1024, device="cuda", dtype=dtype)
    torch.ops._C.silu_and_mul(result, value)
    return result


def _vllm_paged(kernels: Any, dtype: torch.dtype) -> torch.Tensor:
    """Three sequences whose keys and values lie in blocks of 16."""
    query, keys, values = (
        torch.randn(*shape).to("cuda", dtype) for shape in ((3, 8, 128), (40, 2, 16, 16, 8), (40, 2, 128, 16))
    )
    blocks = torch.randperm(40)[:36].to("cuda", torch.int32).reshape(3, 12)
    lengths = torch.tensor([17, 100, 190], dtype=torch.int32, device="cuda")
    one, result = torch.ones((), device="cuda"), torch.empty_like(query)
    tables = (blocks, lengths, 16, 190, None, "auto", one, one)
    kernels.paged_attention_v1(result, query, keys, values, 2, 128**-0.5, *tables)
    return result


def _vllm_attention(dtype: torch.dtype, version: int) -> Any:
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    lengths = torch.tensor([0, 100, 333, 512], dtype=torch.int32, device="cuda")
    query, key, value = (torch.randn(512, heads, 128).to("cuda", dtype) for heads in (8, 2, 2))
    return flash_attn_varlen_func(
        query,
        key,
        value,
        max_seqlen_q=233,
        cu_seqlens_q=lengths,
        max_seqlen_k=233,
        cu_seqlens_k=lengths,
        causal=True,
        fa_version=version,
    )


def _vllm_scaled(kernels: Any) -> Any:
    left, right = (torch.randn(*shape).cuda().to(torch.float8_e4m3fn) for shape in ((128, 256), (512, 256)))
    scale = torch.ones(1, device="cuda")
    return kernels.cutlass_scaled_mm(left, right.t(), scale, scale, torch.bfloat16)


def _vllm_experts(kernels: Any) -> list[torch.Tensor]:
    weights = torch.empty(100, 4, device="cuda")
    chosen, rows = (torch.empty(100, 4, dtype=torch.int32, device="cuda") for _ in range(2))
    kernels.topk_softmax(weights, chosen, rows, torch.randn(100, 64).cuda())
    return [weights, chosen, rows]


MORE: dict[str, Callable[[str], Cases]] = {
    "curand": curand,
    "vision": vision,
    "collectives": collectives,
    "compiled": compiled,
    "graphs": graphs,
    "profile": profile,
    "llama": llama,
    "vllm": vllm,
}
