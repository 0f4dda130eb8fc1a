"""Tensors onto a GPU: through a small ring of pinned memory, on a stream of its own, planes merged on the device.

A copy from pageable memory is staged by the driver at a fraction of the bus's rate, and pinning a whole model takes
longer than it saves. So chunks are copied to pinned slots (by torch's threads) while the slots before them are on the
bus. The device merges planes where they lie: integer operations at its memory's rate, nothing beside the bus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.weights.buffer import PLANES
from slimgpu.weights.tensors import check_size, torch_dtype
from slimgpu.weights.transforms import TRANSFORMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from slimgpu.weights.index import Part, TensorEntry
    from slimgpu.weights.region import Region
    from slimgpu.weights.transforms import Shape

_SLOTS: Final = 8


class Ring:
    """Pinned slots, each with the event after which it can be used again."""

    def __init__(self, device: torch.device, slot: int) -> None:
        """``slot`` is the size of the largest chunk."""
        import torch  # noqa: PLC0415

        self._torch = torch
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._slots = [torch.empty(slot, dtype=torch.uint8, pin_memory=True) for _ in range(_SLOTS)]
        self._events = [torch.cuda.Event() for _ in range(_SLOTS)]
        self._next = 0

    def upload(self, region: Region, view: torch.Tensor, tensor: TensorEntry) -> torch.Tensor:
        """The tensor on the device; ready for work that is queued on the current stream."""
        torch = self._torch
        dtype = torch_dtype(tensor.dtype)
        if dtype is not None:
            check_size(tensor, dtype.itemsize)
        with torch.cuda.stream(self._stream):
            flat = torch.empty(tensor.size, dtype=torch.uint8, device=self._device)
            for part in region.index.parts(tensor):
                self._copy(region, view, part, flat)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        flat.record_stream(torch.cuda.current_stream(self._device))
        return flat.view(dtype).reshape(tensor.shape) if dtype is not None else flat

    def _copy(self, region: Region, view: torch.Tensor, part: Part, flat: torch.Tensor) -> None:
        chunk = region.index.chunks[part.chunk]
        has_planes = region.state[part.chunk] == PLANES
        start, size = (part.place, chunk.size) if has_planes else (part.place + part.skip, part.length)
        number = self._next = (self._next + 1) % _SLOTS
        self._events[number].synchronize()
        slot = self._slots[number][:size]
        slot.copy_(view[start : start + size])
        target = flat[part.into : part.into + part.length]
        if has_planes:
            planes = slot.to(self._device, non_blocking=True)
            merged = merge_planes(planes, TRANSFORMS[chunk.transform])
            target.copy_(merged[part.skip : part.skip + part.length])
        else:
            target.copy_(slot, non_blocking=True)
        self._events[number].record(self._stream)


def merge_planes(planes: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Bytes of the numbers whose planes lie one after another in ``planes`` (uint8, on any device)."""
    import torch  # noqa: PLC0415

    by_plane = planes.view(shape.width, -1)
    if shape.is_float:
        top = by_plane[0].to(torch.int16) << 7 | by_plane[1].view(torch.int8).to(torch.int16) & -0x7F81
        words = torch.stack((*_low_words(by_plane[2:]), top), dim=1) if shape.width > 2 else top  # noqa: PLR2004
        return words.contiguous().view(torch.uint8).flatten()
    return by_plane.flip(0).t().contiguous().flatten()


def _low_words(planes: torch.Tensor) -> Sequence[torch.Tensor]:
    """The low 16 bits of fp32 numbers, from their two planes."""
    import torch  # noqa: PLC0415

    return [planes[0].to(torch.int16) << 8 | planes[1].to(torch.int16)]
