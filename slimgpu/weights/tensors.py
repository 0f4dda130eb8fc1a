"""Tensors out of a region: as torch's, or as memory for programs without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from slimgpu.errors import ImageError
from slimgpu.weights.buffer import PLANES
from slimgpu.weights.planes import merge
from slimgpu.weights.transforms import TRANSFORMS

if TYPE_CHECKING:
    import torch

    from slimgpu.weights.index import TensorEntry
    from slimgpu.weights.region import Region

_TORCH: Final = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def tensor_bytes(region: Region, view: memoryview, tensor: TensorEntry) -> memoryview:
    """The tensor's bytes, which are all there: a part of ``view``, or merged from planes to memory of their own."""
    start = region.index.bases[tensor.file] + tensor.offset
    parts = list(region.index.parts(tensor))
    if not any(region.state[part.chunk] == PLANES for part in parts):
        return view[start : start + tensor.size]
    out = memoryview(bytearray(tensor.size))
    for part in parts:
        chunk = region.index.chunks[part.chunk]
        content = view[part.place : part.place + chunk.size]
        if region.state[part.chunk] == PLANES:
            content = _merged(content, chunk.transform)
        out[part.into : part.into + part.length] = content[part.skip : part.skip + part.length]
    return out


def _merged(planes: memoryview, transform: str) -> memoryview:
    shape = TRANSFORMS[transform]
    out = memoryview(bytearray(len(planes)))
    by_plane = np.frombuffer(planes, np.uint8).reshape(shape.width, -1)
    merge(list(by_plane), out, is_float=shape.is_float)
    return out


def torch_dtype(name: str) -> torch.dtype | None:
    """Torch's type for safetensors' name; None when torch has none (GGUF's blocks)."""
    import torch  # noqa: PLC0415

    found = getattr(torch, _TORCH.get(name, ""), None)
    return found if isinstance(found, torch.dtype) else None


def as_torch(data: memoryview, tensor: TensorEntry) -> torch.Tensor:
    """``data`` as a tensor that shares its memory; bytes for a type that torch doesn't have."""
    import torch  # noqa: PLC0415

    dtype = torch_dtype(tensor.dtype)
    if dtype is None:
        return torch.frombuffer(data, dtype=torch.uint8) if tensor.size else torch.empty(0, dtype=torch.uint8)
    check_size(tensor, dtype.itemsize)
    if not tensor.size:
        return torch.empty(tensor.shape, dtype=dtype)
    if _address(data) % dtype.itemsize:  # an odd header; rare, and then copied
        data = memoryview(bytearray(data))
    return torch.frombuffer(data, dtype=dtype).reshape(tensor.shape)


def check_size(tensor: TensorEntry, width: int) -> None:
    """`ImageError` when the tensor's bytes are not what its shape takes, with ``width`` bytes for a number."""
    reach = math.prod(max(length, 1) for length in tensor.shape) * width  # torch counts in 63 bits, empty or not
    if math.prod(tensor.shape) * width != tensor.size or reach >= 2**63:
        raise ImageError(
            f"the tensor {tensor.name} has {tensor.size} bytes, which are not {tensor.dtype} of the shape "
            f"{list(tensor.shape)}; pack the weights again"
        )


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])
