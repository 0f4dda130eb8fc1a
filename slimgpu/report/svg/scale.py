"""From values to percent of a chart's width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from slimgpu.units import format_seconds

_TICKS: Final = 7
_ROOM: Final = 1.03
"""What is right of the largest value."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of the grid."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Scale:
    """From 0 to ``end``."""

    end: float

    @classmethod
    def up_to(cls, *values: float) -> Scale:
        """One that shows all ``values``."""
        return cls(max(values, default=0) * _ROOM or 1.0)

    def at(self, value: float) -> float:
        """Percent of the width; what is beyond an end is at the end."""
        return round(min(100.0, max(0.0, 100 * value / self.end)), 3)

    def seconds(self) -> tuple[Tick, ...]:
        """Lines at round numbers of seconds, at most eight."""
        step = 10 ** math.floor(math.log10(self.end))
        step = next(s for s in (step / 5, step / 2, step, 2 * step, 5 * step) if self.end / s <= _TICKS)
        values = [number * step for number in range(int(self.end / step) + 1)]
        return tuple(Tick(self.at(value), _label(value, step)) for value in values)


def _label(value: float, step: float) -> str:
    if step < 1:
        return format_seconds(value) if value else "0"
    return f"{value:.0f} s" if value else "0"
