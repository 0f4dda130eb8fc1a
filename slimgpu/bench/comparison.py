"""What two benchmarks come to when they are held against each other: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

COMPARE_SCHEMA: Final = "slimgpu.bench.compare.v1"


@dataclass(frozen=True, slots=True)
class Change:
    """One quantity of one arm in both."""

    arm: str
    stage: str
    """As in `slimgpu.bench.results.Figure`."""
    before: float
    """Median seconds."""
    after: float
    ratio: float | None
    """How many times faster the later one is; None when either takes no time."""
    low: float | None
    """The 95 % interval, rounds of both resampled; None with too few of them."""
    high: float | None
    worse: bool
    """Slower beyond noise, where times can be compared at all."""


@dataclass(frozen=True, slots=True)
class SizeChange:
    """Bytes of one arm in both; there is no noise in them."""

    arm: str
    what: str
    """``to pull``, ``unpacked`` or ``weights``."""
    before: int
    after: int
    worse: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that the two were not measured alike in."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class CompareResult:
    """Two benchmarks; arms are matched by name."""

    schema: str
    before: str
    """The file's name."""
    after: str
    began: tuple[str, str]
    comparable: bool
    """Whether times of one say anything about times of the other."""
    unlike: tuple[Difference, ...]
    """Why they don't: other machine, link, device, nodes or command."""
    noted: tuple[Difference, ...]
    """What differs and may be the reason for a change: versions, kernel, driver."""
    changes: tuple[Change, ...]
    sizes: tuple[SizeChange, ...]
    only_before: tuple[str, ...]
    """Arms that the other one has not."""
    only_after: tuple[str, ...]
    failed: dict[str, tuple[int, int]]
    """Cold starts that failed in either, by arm."""
