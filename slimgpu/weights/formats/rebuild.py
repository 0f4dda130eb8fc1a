"""What the calls in a checkpoint's pickle would make, told without making them."""

from __future__ import annotations

from typing import Final, TypeGuard

from slimgpu.weights.formats import torchnames
from slimgpu.weights.formats.broken import BrokenError, shown
from slimgpu.weights.formats.inert import UNKNOWN, Global, Items, Storage, View

_LIMIT: Final = 2**63
"""torch's sizes are signed 64-bit numbers."""
_MAX_DIMENSIONS: Final = 64
_PARTS: Final = 4
"""Of a view's arguments: storage, offset, size and stride."""
_ID_PARTS: Final = 5


def called(function: object, arguments: object) -> object:
    """The result of a call: a view, a dictionary, or unknown. Raises `BrokenError` for what torch never writes."""
    # A loop, since each may wrap another and files nest them as deep as they like.
    while isinstance(function, Global) and function.name == torchnames.FROM_TYPE:
        if not isinstance(arguments, tuple) or len(arguments) < _PARTS:
            raise BrokenError("its pickle rebuilds a tensor of nothing")
        function, arguments = arguments[0], arguments[2]
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise BrokenError("its pickle calls what is no function")
    if function.name in torchnames.DICTIONARIES:
        return _dictionary(arguments)
    if function.name in torchnames.WRAPPERS:
        return arguments[0] if arguments else UNKNOWN
    if function.name in torchnames.PLAIN_REBUILD or function.name == torchnames.TYPED_REBUILD:
        return _view(function.name, arguments)
    return UNKNOWN


def stored(persistent: object) -> Storage:
    """The storage that a persistent id of torch names: ("storage", class, key, place, elements)."""
    if isinstance(persistent, tuple) and len(persistent) == _ID_PARTS:
        _, kind, key, _, length = persistent
        if isinstance(kind, Global) and kind.name in torchnames.STORAGES and isinstance(key, str) and _is_size(length):
            return Storage(key, torchnames.STORAGES[kind.name], length)
    raise BrokenError("its pickle refers to what is no storage")


def _dictionary(arguments: tuple[object, ...]) -> Items:
    """Python 2 wrote the items of an OrderedDict as a list of pairs."""
    items = Items()
    for pair in arguments[0] if arguments and isinstance(arguments[0], list) else []:
        if isinstance(pair, (list, tuple)) and len(pair) == 2:  # noqa: PLR2004 - key and value
            items.pairs.append((pair[0], pair[1]))
    return items


def _view(function: str, arguments: tuple[object, ...]) -> object:
    if len(arguments) < _PARTS:
        raise BrokenError("its pickle rebuilds a tensor of nothing")
    storage, offset, shape, stride = arguments[:_PARTS]
    if not isinstance(storage, Storage):
        return UNKNOWN
    dtype: str | None = storage.dtype
    if function == torchnames.TYPED_REBUILD:
        kind = arguments[torchnames.TYPE_AT] if len(arguments) > torchnames.TYPE_AT else None
        dtype = torchnames.DTYPES.get(kind.name) if isinstance(kind, Global) else None
    if dtype is None:
        return UNKNOWN
    shape, stride = _sizes(shape), _sizes(stride)
    if not _is_size(offset) or shape is None or stride is None or len(shape) != len(stride):
        raise BrokenError(f"its pickle has a tensor in the storage {shown(storage.key)} without a valid shape")
    return View(storage, dtype, offset, shape, stride)


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _LIMIT


def _sizes(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, tuple) or len(value) > _MAX_DIMENSIONS:
        return None
    return value if all(map(_is_size, value)) else None
