"""What stands for the objects of a pickle while it is read: values without behaviour.

They compare by identity, so that no hash or comparison walks a structure that a file made exponentially deep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A name that the pickle asked for, such as ``torch.FloatStorage``; never what it names."""

    name: str
    allowed: bool
    """Whether it is on the short list."""


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """A dictionary: its keys and values in the order of the file, and keys may come twice."""

    pairs: list[tuple[object, object]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A persistent id of torch: the member ``data/<key>`` of the archive."""

    key: str
    dtype: str
    length: int
    """Elements of that type."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A tensor: a part of a storage; all numbers count elements of ``dtype``."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Unknown:
    """The result of a call that is never made."""

    __slots__ = ()


UNKNOWN: Final = Unknown()
