"""What the bytes of each arm are: one stacked bar an arm, the same colour and number for the same category."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.report.svg.scale import Scale
from slimgpu.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.bench.results import Arm

ROW: Final = 74
REST: Final = "everything else"
BESIDE: Final = "weights, fetched beside the image"
_MOST: Final = 7
_LABELLED: Final = 4.5
"""Percent: a narrower segment has no room for its number."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One category of one arm."""

    x: float
    width: float
    number: int
    """Of the category, from 1."""
    is_labelled: bool
    title: str


@dataclass(frozen=True, slots=True)
class Stack:
    """One arm."""

    name: str
    top: int
    segments: tuple[Segment, ...]
    total: str


@dataclass(frozen=True, slots=True)
class Stacks:
    """All arms, and bytes by category and arm for the legend."""

    stacks: tuple[Stack, ...]
    categories: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]
    """A row a category, a column an arm."""


def make_stacks(arms: Sequence[Arm]) -> Stacks:
    """The largest categories by name, the others as one; weights beside the image count as they are stored."""
    by_arm = [_sizes(arm) for arm in arms]
    names = {name for sizes in by_arm for name in sizes}
    largest = sorted(names, key=lambda name: (-max(sizes.get(name, 0) for sizes in by_arm), name))
    shown, rest = largest[:_MOST], largest[_MOST:]
    rows = [tuple(sizes.get(name, 0) for sizes in by_arm) for name in shown]
    if rest:
        shown.append(REST)
        rows.append(tuple(sum(sizes.get(name, 0) for name in rest) for sizes in by_arm))
    scale = Scale(max((sum(sizes.values()) for sizes in by_arm), default=0) or 1)
    stacks = tuple(
        Stack(arm.name, ROW * number, tuple(_segments([row[number] for row in rows], shown, scale)), _total(arm))
        for number, arm in enumerate(arms)
    )
    return Stacks(stacks, tuple(shown), tuple(rows))


def _sizes(arm: Arm) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for category in arm.categories:
        sizes[category.name] = sizes.get(category.name, 0) + category.bytes
    return sizes | ({BESIDE: arm.weights_stored} if arm.weights_stored else {})


def _segments(sizes: Sequence[int], names: Sequence[str], scale: Scale) -> Iterator[Segment]:
    begin = 0
    for number, (name, size) in enumerate(zip(names, sizes, strict=True), start=1):
        if size:
            width = round(scale.at(begin + size) - scale.at(begin), 3)
            yield Segment(scale.at(begin), width, number, width >= _LABELLED, f"{name}: {format_size(size)}")
        begin += size


def _total(arm: Arm) -> str:
    total = f"{format_size(arm.unpacked)} unpacked"
    return f"{total} and {format_size(arm.weights_stored)} of weights" if arm.weights_stored else total
