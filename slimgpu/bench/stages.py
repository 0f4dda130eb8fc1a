"""From what was told of one cold start to its spans, and from spans to the seconds of each stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slimgpu.bench.results import Span
from slimgpu.events import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slimgpu.events import Event


def spans_of(events: Iterable[Event], begin: float, output: float | None) -> tuple[Span, ...]:
    """The spans of the cold start from ``begin`` to its first output, both in seconds of CLOCK_MONOTONIC, by begin.

    What was told of later or earlier times is cut off. `Stage.OUTPUT` is what is left from the end of the last other
    stage on; a cold start without an output (None) has none, and keeps all that came after its begin.
    """
    last = float("inf") if output is None else output
    told = [
        e for e in events if e.stage is not Stage.OUTPUT and e.begin <= e.end and e.end >= begin and e.begin <= last
    ]
    spans = [Span(e.stage, max(e.begin, begin) - begin, min(e.end, last) - begin, e.what) for e in told]
    if output is not None:
        spans.append(Span(Stage.OUTPUT, max((span.end for span in spans), default=0.0), output - begin))
    return tuple(sorted(spans, key=lambda span: (span.begin, span.end)))


def merged(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time as intervals that neither overlap nor touch, in order."""
    union: list[tuple[float, float]] = []
    for begin, end in sorted(intervals):
        if union and begin <= union[-1][1]:
            union[-1] = union[-1][0], max(union[-1][1], end)
        else:
            union.append((begin, end))
    return union


def stage_seconds(spans: Iterable[Span]) -> dict[Stage, float]:
    """Seconds of each stage that there was, in the order of stages; what overlaps within a stage counts once."""
    intervals: dict[Stage, list[tuple[float, float]]] = {}
    for span in spans:
        intervals.setdefault(span.stage, []).append((span.begin, span.end))
    found = ((stage, merged(intervals[stage])) for stage in Stage if stage in intervals)
    return {stage: sum(end - begin for begin, end in union) for stage, union in found}
