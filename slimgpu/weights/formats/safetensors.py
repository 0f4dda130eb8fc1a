"""The header of a safetensors file, with the rules of the original reader.

Source: https://github.com/huggingface/safetensors#format and ``safetensors/src/tensor.rs`` there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeGuard

from slimgpu.weights.formats.broken import BrokenError, shown
from slimgpu.weights.formats.cursor import exactly
from slimgpu.weights.formats.documents import is_text, parse_object
from slimgpu.weights.formats.tensor import DTYPE_BITS, LIMIT, MAX_TENSORS, Tensor, bit_size

if TYPE_CHECKING:
    from slimgpu.weights.formats.tensor import Content

MAX_HEADER: Final = 100_000_000
"""The original reader's own limit."""
_LENGTH: Final = 8
_NOT_HERE: Final = {"C128", "U4", "I4", "U2", "I2"}
_DTYPES: Final = DTYPE_BITS.keys() - _NOT_HERE
_AFTER_BRACE: Final = (b'"', b"}", b" ", b"\t", b"\n", b"\r")


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that starts with ``head`` has the length of a header and a JSON object."""
    length = int.from_bytes(head[:_LENGTH], "little")
    likely = head[_LENGTH : _LENGTH + 1] == b"{" and head[_LENGTH + 1 : _LENGTH + 2] in _AFTER_BRACE
    return likely and (length <= MAX_HEADER or length <= size - _LENGTH)


def read_safetensors(content: Content) -> tuple[Tensor, ...]:
    """The tensors, sorted by offset: they cover all bytes behind the header, without a hole.

    Raises `BrokenError` for a header that the original reader refuses, and for a key that comes twice.
    """
    length = int.from_bytes(exactly(content, 0, _LENGTH), "little")
    if length > MAX_HEADER:
        raise BrokenError(f"its header has {length} bytes, and at most {MAX_HEADER} are allowed")
    if length > content.size - _LENGTH:
        raise BrokenError("it ends inside its header")
    header = parse_object(exactly(content, _LENGTH, length))
    _check_metadata(header.pop("__metadata__", None))
    if len(header) > MAX_TENSORS:
        raise BrokenError(f"it has {len(header)} tensors, and at most {MAX_TENSORS} are read")
    start = _LENGTH + length
    tensors = sorted((_tensor(name, value, start) for name, value in header.items()), key=_place)
    for tensor in tensors:
        if tensor.offset != start:
            raise BrokenError(f"the tensor {shown(tensor.name)} does not start where the one before it ends")
        start += tensor.size
    if start != content.size:
        raise BrokenError(f"its tensors end at byte {start} and the file at byte {content.size}")
    return tuple(tensors)


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.offset, tensor.size


def _check_metadata(metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(map(is_text, (*metadata, *metadata.values()))):
        raise BrokenError("its __metadata__ is no map of texts")


def _tensor(name: str, value: Any, start: int) -> Tensor:
    if not is_text(name) or not isinstance(value, dict):
        raise BrokenError(f"the entry {shown(name)} is no tensor")
    dtype, shape, place = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise BrokenError(f"the tensor {shown(name)} has an unknown type", "update slimgpu or export it again")
    if not _are_numbers(shape) or not _are_numbers(place) or len(place) != 2:  # noqa: PLR2004 - begin and end
        raise BrokenError(f"the tensor {shown(name)} has no valid shape and data_offsets")
    bits = bit_size(dtype, shape)
    begin, end = place
    if end < begin or bits != 8 * (end - begin):
        raise BrokenError(f"the tensor {shown(name)} has {end - begin} bytes, and its type and shape need {bits} bits")
    return Tensor(name, dtype, tuple(shape), start + begin, end - begin)


def _are_numbers(value: object) -> TypeGuard[list[int]]:
    # bool is an int to isinstance, and JSON's true is no length.
    return isinstance(value, list) and all(type(number) is int and 0 <= number < LIMIT for number in value)
