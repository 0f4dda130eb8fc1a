"""Handing tensors to a program: as memory, as tensors on the CPU, or on a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from slimgpu.errors import MissingComponentError, UsageError
from slimgpu.weights.tensors import as_torch, tensor_bytes

if TYPE_CHECKING:
    import torch

    from slimgpu.weights.index import TensorEntry
    from slimgpu.weights.region import Region


class Delivery(Protocol):
    """One way to hand over tensors whose chunks are all there."""

    merges: bool
    """Whether it would rather get planes, and merge them itself."""

    def deliver(self, tensor: TensorEntry) -> Any:
        """The tensor as the program gets it."""


class Memory:
    """Bytes, for programs without torch."""

    merges = False

    def __init__(self, region: Region) -> None:
        self._region = region
        self._view = region.view()

    def deliver(self, tensor: TensorEntry) -> memoryview:
        """See `Delivery.deliver`."""
        return tensor_bytes(self._region, self._view, tensor)


class Cpu:
    """Tensors that share the region's memory, copied on write."""

    merges = False

    def __init__(self, region: Region, dtype: torch.dtype | None) -> None:
        self._memory = Memory(region)
        self._dtype = dtype

    def deliver(self, tensor: TensorEntry) -> torch.Tensor:
        """See `Delivery.deliver`."""
        return _converted(as_torch(self._memory.deliver(tensor), tensor), self._dtype)


class Cuda:
    """Tensors on a GPU."""

    merges = True

    def __init__(self, region: Region, device: torch.device, dtype: torch.dtype | None) -> None:
        import torch  # noqa: PLC0415

        from slimgpu.weights.cuda import Ring  # noqa: PLC0415

        self._region = region
        self._view = torch.frombuffer(region.view(), dtype=torch.uint8)
        self._ring = Ring(device, max((chunk.size for chunk in region.index.chunks), default=1))
        self._dtype = dtype

    def deliver(self, tensor: TensorEntry) -> torch.Tensor:
        """See `Delivery.deliver`."""
        return _converted(self._ring.upload(self._region, self._view, tensor), self._dtype)


def _converted(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def delivery_to(device: str | torch.device, dtype: torch.dtype | None, region: Region) -> Delivery:
    """The way to ``device``; `MissingComponentError` when torch or the GPU is missing."""
    if find_spec("torch") is None:
        if str(device) != "cpu" or dtype is not None:
            raise MissingComponentError("tensors on a device, or of another type, need torch; pip install torch")
        return Memory(region)
    import torch  # noqa: PLC0415

    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"{device} is no device; use cpu, cuda or cuda:N") from error
    if chosen.type == "cpu":
        return Cpu(region, dtype)
    if chosen.type != "cuda":
        raise UsageError(f"{device} is no device that weights are loaded to; use cpu or cuda")
    if not torch.cuda.is_available():
        raise MissingComponentError(f"torch finds no GPU for {device}; check the driver, or load to cpu")
    return Cuda(region, chosen, dtype)
