"""From the tensors that a checkpoint names to ranges of its storages that do not overlap."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeAlias

from slimgpu.weights.formats.broken import BrokenError, shown
from slimgpu.weights.formats.inert import Items, Storage, View
from slimgpu.weights.formats.tensor import DTYPE_BITS, Tensor, count, opaque

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.weights.formats.zips import Member

_MAX_DEPTH: Final = 64
_MAX_NAME: Final = 512
_MAX_KEY: Final = 2**63

_Path: TypeAlias = "tuple[_Path, str] | None"


def named_views(value: object) -> Iterator[tuple[str, View]]:
    """Every tensor in nested dictionaries and lists, once, with its keys joined by dots; "" where they are too long.

    A storage that is there by itself is a tensor of all its elements.
    """
    seen: set[int] = set()
    pending: list[tuple[_Path, int, object]] = [(None, 0, value)]
    while pending:
        path, depth, found = pending.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Storage):
            found = View(found, found.dtype, 0, (found.length,), (1,))
        if isinstance(found, View):
            yield _name(path, depth), found
        else:
            children = [((path, _key(key)), depth + 1, child) for key, child in _children(found)]
            pending.extend(reversed(children))


def _children(value: object) -> Iterator[tuple[object, object]]:
    pairs = value.pairs if isinstance(value, Items) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return ((key, child) for key, child in pairs if isinstance(child, (Items, Storage, View, list, tuple)))


def _key(key: object) -> str:
    if isinstance(key, str):
        return key[: _MAX_NAME + 1]
    # A longer number could not even be printed; whatever else is a key, it's no name.
    return str(key) if isinstance(key, int) and abs(key) < _MAX_KEY else type(key).__name__


def _name(path: _Path, depth: int) -> str:
    parts: list[str] = []
    while path is not None and depth <= _MAX_DEPTH:
        path, part = path
        parts.append(part)
    name = ".".join(reversed(parts)).encode(errors="replace").decode()
    return name if len(name) <= _MAX_NAME else ""


@dataclass(frozen=True, slots=True)
class _Claim:
    """A tensor's bytes, from its first element to its last."""

    tensor: Tensor
    dense: bool
    """Whether these bytes are its elements, each once and in their order."""


def in_storage(record: str, member: Member, views: list[tuple[str, View]]) -> Iterator[Tensor]:
    """The ranges of one storage, in order, without an overlap and without a hole.

    ``record`` is the storage's own name, for what has no other. Tensors that lie apart each have a range; otherwise
    the storage is one range, with the name of a tensor that spans it. Raises `BrokenError` for a tensor that does
    not lie inside, and for a storage of another length than the pickle says.
    """
    for _, view in views:
        if view.storage.length * DTYPE_BITS[view.storage.dtype] != 8 * member.size:
            raise BrokenError(f"its storage {shown(record)} has {member.size} bytes, and its pickle says otherwise")
    claims = [_claim(name or record, view, member) for name, view in views if count(view.shape)]
    whole = [claim for claim in claims if claim.tensor.size == member.size]
    ranges = {claim.tensor.offset: claim.tensor for claim in reversed(claims)}
    found = sorted(ranges.values(), key=lambda tensor: tensor.offset)
    if whole:
        yield min(whole, key=lambda claim: not claim.dense).tensor
    elif claims and all(claim.dense for claim in claims) and _are_apart(found, claims):
        yield from _filled(record, member, found)
    else:
        yield _undivided(record, member, views)


def _are_apart(found: list[Tensor], claims: list[_Claim]) -> bool:
    places = {(claim.tensor.offset, claim.tensor.size) for claim in claims}
    return len(places) == len(found) and all(a.offset + a.size <= b.offset for a, b in pairwise(found))


def _claim(name: str, view: View, member: Member) -> _Claim:
    width = DTYPE_BITS[view.dtype] // 8
    reach = 1 + sum((length - 1) * step for length, step in zip(view.shape, view.stride, strict=True))
    if (view.offset + reach) * width > member.size:
        raise BrokenError(f"the tensor {shown(name)} ends outside of its storage")
    dense = _is_contiguous(view)
    shape = view.shape if dense else (reach,)
    return _Claim(Tensor(name, view.dtype, shape, member.offset + view.offset * width, reach * width), dense)


def _is_contiguous(view: View) -> bool:
    expected = 1
    for length, step in zip(reversed(view.shape), reversed(view.stride), strict=True):
        if length != 1 and step != expected:
            return False
        expected *= length
    return True


def _undivided(record: str, member: Member, views: list[tuple[str, View]]) -> Tensor:
    """A storage as one range; an empty one keeps the name and shape of its tensor."""
    if not views:
        return opaque(record, member.offset, member.size)
    name, view = views[0]
    if not member.size:
        return Tensor(name or record, view.dtype, view.shape, member.offset, 0)
    return Tensor(record, view.storage.dtype, (view.storage.length,), member.offset, member.size)


def _filled(record: str, member: Member, tensors: list[Tensor]) -> Iterator[Tensor]:
    at, end = member.offset, member.offset + member.size
    for tensor in tensors:
        if tensor.offset > at:
            yield opaque(f"{record}@{at - member.offset}", at, tensor.offset - at)
        yield tensor
        at = tensor.offset + tensor.size
    if end > at:
        yield opaque(f"{record}@{at - member.offset}", at, end - at)
