"""Loading weights to see how long it takes, and whether what a program gets is what was packed."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from slimgpu.errors import DigestError
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.cut import PIECE
from slimgpu.weights.digests import sha256, tensor_digest, values_digest
from slimgpu.weights.load import stream
from slimgpu.weights.results import LOAD_SCHEMA, LoadResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slimgpu.oci.reference import Reference
    from slimgpu.store.context import Context


def measure_load(reference: Reference, device: str, only: str | None, context: Context, *, check: bool) -> LoadResult:
    """Load all tensors whose names are like ``only`` (None: all) to ``device``.

    ``check`` compares them with the index after that. Raises what `stream` raises, and `DigestError`.
    """
    began = time.monotonic()
    first = 0.0
    tensors: dict[str, Any] = {}
    for name, tensor in stream(str(reference), device, only=only):
        first = first or time.monotonic() - began
        tensors[name] = tensor
    _finish(device)
    seconds = time.monotonic() - began
    return LoadResult(
        schema=LOAD_SCHEMA,
        reference=str(reference),
        device=device,
        tensors=len(tensors),
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        first=round(first, 4),
        seconds=round(seconds, 4),
        values=_checked(tensors, reference, context) if check else None,
    )


def _finish(device: str) -> None:
    """Wait until a GPU has done what it was told."""
    torch = sys.modules.get("torch")
    if torch is not None and not device.startswith("cpu"):
        torch.cuda.synchronize(device)


def _checked(tensors: Mapping[str, Any], reference: Reference, context: Context) -> str:
    """The digest of the tensors as they were delivered, each compared with the index."""
    with open_weights(reference, context) as weights:
        entries = {tensor.name: tensor for tensor in weights.index.tensors if tensor.name in tensors}
    for name, entry in entries.items():
        data = _bytes(tensors[name])
        found = tensor_digest(sha256(data[at : at + PIECE]) for at in range(0, len(data), PIECE))
        if found != entry.digest:
            raise DigestError(
                f"the tensor {name} of {reference} was loaded with the digest {found}, not {entry.digest}"
            )
    return values_digest(entries.values())


def _bytes(tensor: Any) -> memoryview:
    if isinstance(tensor, memoryview):
        return tensor
    import torch  # noqa: PLC0415 - it made the tensor

    return memoryview(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
