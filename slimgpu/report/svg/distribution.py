"""Every cold start as a dot, with the median and the p95."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.units import format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slimgpu.bench.results import Figure, Floor, Sample
    from slimgpu.report.svg.scale import Scale

ROW: Final = 78
_MIDDLE: Final = 40
_BESIDE: Final = 1.2
"""Percent: dots that are nearer than this are stacked."""
_STEP: Final = 6
_STACK: Final = (0, 1, -1, 2, -2)


@dataclass(frozen=True, slots=True)
class Dot:
    """One cold start."""

    x: float
    y: int
    title: str


@dataclass(frozen=True, slots=True)
class Strip:
    """One arm."""

    name: str
    top: int
    middle: int
    dots: tuple[Dot, ...]
    median: float
    tail: float
    floor: float
    """Percent that no way could be faster than; 0 when it is not known."""
    told: str


def make_strip(
    samples: Iterable[Sample], figure: Figure, floor: Floor | None, failed: int, number: int, scale: Scale
) -> Strip:
    """The ``number``th arm, from 0, of which ``failed`` cold starts are not among the samples."""
    top = number * ROW
    told = f"median {format_seconds(figure.p50)}, p95 {format_seconds(figure.p95)}, {figure.count} cold starts"
    return Strip(
        figure.arm,
        top,
        top + _MIDDLE,
        tuple(_dots(samples, top + _MIDDLE, scale)),
        scale.at(figure.p50),
        scale.at(figure.p95),
        scale.at(floor.seconds) if floor else 0.0,
        f"{told}, {failed} failed" if failed else told,
    )


def _dots(samples: Iterable[Sample], middle: int, scale: Scale) -> Iterator[Dot]:
    last, height = -100.0, 0
    for sample in sorted(samples, key=lambda sample: sample.total or 0):
        x = scale.at(sample.total or 0)
        if x - last < _BESIDE:
            height += 1
        else:
            last, height = x, 0
        title = f"round {sample.round}, node {sample.node}: {format_seconds(sample.total or 0)}"
        yield Dot(x, middle + _STEP * _STACK[height % len(_STACK)], title)
