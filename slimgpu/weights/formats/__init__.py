"""Where the tensors lie in files of weights: headers are read, values are not, and nothing in a file ever runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.weights.formats import gguf, onnx, pickles, safetensors, zips
from slimgpu.weights.formats.broken import reading

if TYPE_CHECKING:
    from slimgpu.weights.formats.tensor import Content, Tensor

_HEAD: Final = 64


def read_tensors(name: str, content: Content) -> tuple[Tensor, ...] | None:
    """Where the tensors of a file lie, sorted by offset and without overlaps; None when it is no file of weights.

    The format is told by the content; the name only for ONNX, which has no signature. Raises `ImageError` naming
    ``name`` for a file that is of a format by its signature and breaks it.
    """
    head = content.read(0, min(_HEAD, content.size))
    if head.startswith(gguf.MAGIC):
        with reading(name, "GGUF file"):
            return gguf.read_gguf(content)
    if head.startswith(zips.LOCAL_MAGIC) or pickles.is_legacy(head):
        checkpoint = pickles.read_checkpoint(name, content)
        return None if checkpoint is None else checkpoint.tensors
    if safetensors.is_safetensors(head, content.size):
        with reading(name, "safetensors file"):
            return safetensors.read_safetensors(content)
    if onnx.is_onnx(name, head):
        with reading(name, onnx.KIND):
            return onnx.read_onnx(content)
    return None
