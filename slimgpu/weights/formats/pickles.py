"""Checkpoints of ``torch.save``: a zip of storages and a pickle that says what they are.

The pickle is read as data, and one that names a global off the short list is not trusted to describe anything: the
storages are then bytes. Files from before torch 1.6 are bytes as a whole.

Source: https://github.com/pytorch/pytorch/blob/main/torch/serialization.py and ``caffe2/serialize/inline_container.h``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from slimgpu.weights.formats import zips
from slimgpu.weights.formats.broken import BrokenError, reading, shown
from slimgpu.weights.formats.cursor import exactly
from slimgpu.weights.formats.tensor import Tensor, in_order, opaque
from slimgpu.weights.formats.unpickle import MAX_BYTES, Machine, TooLongError
from slimgpu.weights.formats.views import in_storage, named_views

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from slimgpu.weights.formats.inert import View
    from slimgpu.weights.formats.tensor import Content

KIND: Final = "torch checkpoint"
_PICKLE: Final = b"/data.pkl"
_LEGACY: Final = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
"""The pickled magic number, behind the protocol and, from protocol 4 on, a frame's length."""
_LEGACY_ENDS: Final = 24
_MAX_KEY: Final = 64
_MAX_ORDER: Final = 16


@dataclass(frozen=True, slots=True)
class TorchCheckpoint:
    """What a checkpoint holds, and what its pickle asked for in vain."""

    tensors: tuple[Tensor, ...]
    """Sorted by offset, without overlaps."""
    refused: tuple[str, ...] = ()
    """Globals off the short list, as "os.system"; if there are any, the tensors are whole storages of bytes."""


def is_legacy(head: bytes) -> bool:
    """Whether a file that starts so was written by torch before 1.6, or without the zip."""
    return head.startswith(b"\x80") and _LEGACY in head[:_LEGACY_ENDS]


def read_checkpoint(name: str, content: Content) -> TorchCheckpoint | None:
    """The checkpoint in ``content``; None when it is none (another zip, another pickle).

    Raises `ImageError` naming ``name`` for a damaged archive or pickle, and for tensors outside of their storages.
    """
    if is_legacy(exactly(content, 0, min(content.size, _LEGACY_ENDS))):
        return TorchCheckpoint((opaque("data", 0, content.size),))
    first = zips.first_name(content)
    if not first:
        return None
    with reading(name, KIND):
        try:
            archive = zips.read_archive(content)
        except BrokenError:
            if first.endswith(_PICKLE):  # torch writes it before all others
                raise
            return None
        prefix = _prefix(archive)
        return None if prefix is None else _checkpoint(content, archive, prefix)


def _prefix(archive: zips.Archive) -> bytes | None:
    """The directory that all members lie in, with its slash."""
    for name in archive.entries:
        prefix = name.removesuffix(b"data.pkl")
        if name.endswith(_PICKLE) and prefix.count(b"/") == 1 and prefix + b"version" in archive.entries:
            return prefix
    return None


def _checkpoint(content: Content, archive: zips.Archive, prefix: bytes) -> TorchCheckpoint:
    storages = {_record(name, prefix): name for name in archive.entries if _is_storage(name, prefix)}
    order, pickle = prefix + b"byteorder", prefix + b"data.pkl"
    wanted = (*storages.values(), order, pickle)
    stored = [name for name in wanted if name in archive.entries and archive.entries[name].stored]
    places = zips.place(content, archive, stored)
    members = {record: places[name] for record, name in storages.items() if name in places}
    views: Mapping[str, list[tuple[str, View]]] = {}
    refused: tuple[str, ...] = ()
    # Nothing is inflated, and values of the other byte order would be typed wrongly: these are bytes.
    if pickle in places and not _is_big_endian(content, places.get(order)):
        views, refused = _described(content, places[pickle])
    for record in views:
        if record not in storages:
            raise BrokenError(f"its pickle refers to the storage {shown(record)}, which is not in the archive")
    ranges = (
        tensor for record, member in members.items() for tensor in in_storage(record, member, views.get(record, []))
    )
    return TorchCheckpoint(tuple(_unique(in_order(ranges))), refused)


def _is_storage(name: bytes, prefix: bytes) -> bool:
    """TorchScript keeps tensors of its code under ``constants``."""
    kind, _, key = name.removeprefix(prefix).partition(b"/")
    return name.startswith(prefix) and kind in (b"data", b"constants") and 0 < len(key) <= _MAX_KEY


def _record(name: bytes, prefix: bytes) -> str:
    return name.removeprefix(prefix).decode("latin-1")


def _is_big_endian(content: Content, member: zips.Member | None) -> bool:
    return member is not None and exactly(content, member.offset, min(member.size, _MAX_ORDER)) == b"big"


def _described(content: Content, pickle: zips.Member) -> tuple[dict[str, list[tuple[str, View]]], tuple[str, ...]]:
    """The tensors of each storage as the pickle names them; none when it asks for more than the short list."""
    machine = Machine()
    found: dict[str, list[tuple[str, View]]] = {}
    try:
        value = machine.run(exactly(content, pickle.offset, min(pickle.size, MAX_BYTES + 1)))
    except TooLongError:
        return {}, machine.refused
    except BrokenError:
        if not machine.refused:
            raise
        return {}, machine.refused
    if not machine.refused:
        for name, view in named_views(value):
            found.setdefault(f"data/{view.storage.key[: _MAX_KEY + 1]}", []).append((name, view))
    return found, machine.refused


def _unique(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Keys that hold dots can make two paths the same; the later one then says where it starts, or nothing but it."""
    seen: set[str] = set()
    for tensor in tensors:
        name = tensor.name
        number = 0
        while name in seen:
            number += 1
            name = f"{tensor.name}@{tensor.offset}" + (f".{number}" if number > 1 else "")
        seen.add(name)
        yield tensor if name == tensor.name else replace(tensor, name=name)
