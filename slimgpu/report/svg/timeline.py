"""When what happened in one cold start: stages as rows, their parts as thin bars, the first output as a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.bench.results import stretches
from slimgpu.events import Stage
from slimgpu.units import format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slimgpu.bench.results import Sample, Span
    from slimgpu.report.svg.scale import Scale

KINDS: Final = {
    Stage.RESOLVE: "network",
    Stage.PULL: "network",
    Stage.FETCH: "network",
    Stage.UNPACK: "disk",
    Stage.START: "program",
    Stage.INTERPRETER: "program",
    Stage.IMPORT: "program",
    Stage.CONTEXT: "model",
    Stage.LOAD: "model",
    Stage.OUTPUT: "model",
}
"""What a stage keeps busy, which is its colour."""
_HEAD: Final = 22
_BAR: Final = 12
_PAD: Final = 5
_LANE: Final = 4
_LANES: Final = 6
_THINNEST: Final = 0.3
"""Percent: what is shorter is still seen."""
_ROOM: Final = 18
"""Percent that a bar's label takes."""
_NAME: Final = 60
"""Characters of a part's name."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that lasted."""

    x: float
    width: float
    y: int
    title: str


@dataclass(frozen=True, slots=True)
class Row:
    """One stage."""

    stage: Stage
    kind: str
    middle: int
    bars: tuple[Bar, ...]
    parts: tuple[Bar, ...]
    label: str
    label_at: float
    label_side: str
    """``after`` the bars, ``before`` them, or ``inside``."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """One arm's median cold start."""

    rows: tuple[Row, ...]
    height: int
    end: float
    end_label: str
    told: str
    """All of it in words."""


def make_timeline(sample: Sample, scale: Scale) -> Timeline:
    """A cold start that came to its first output."""
    total = sample.total or 0.0
    rows, height = [], _HEAD
    for stage in Stage:
        spans = [span for span in sample.spans if span.stage == stage]
        if spans:
            lanes = _lanes([span for span in spans if span.what]) if len(spans) > 1 else []
            rows.append(_row(stage, spans, lanes, height, (scale, total)))
            height += 2 * _PAD + _BAR + (_LANE * len(lanes) + 1 if lanes else 0)
    told = "; ".join(f"{row.stage} {row.label}" for row in rows)
    end = f"first output {format_seconds(total)}"
    return Timeline(tuple(rows), height, scale.at(total), end, f"{told}; {end}")


def _row(
    stage: Stage, spans: Sequence[Span], lanes: Sequence[Sequence[Span]], top: int, axis: tuple[Scale, float]
) -> Row:
    scale, total = axis
    whole = stretches(spans)
    bars = [_bar(begin, end, top + _PAD, stage, scale) for begin, end in whole]
    first = top + _PAD + _BAR + 2
    parts = [
        _bar(span.begin, span.end, first + number * _LANE, _short(span.what), scale)
        for number, lane in enumerate(lanes)
        for span in lane
    ]
    at, side = _label(bars[0].x, scale.at(whole[-1][1]), scale.at(total))
    label = format_seconds(sum(end - begin for begin, end in whole))
    middle = top + _PAD + _BAR // 2
    return Row(stage, KINDS[stage], middle, tuple(bars), tuple(parts), label, at, side)


def _bar(begin: float, end: float, y: int, name: str, scale: Scale) -> Bar:
    title = f"{name}: {format_seconds(end - begin)}, from {format_seconds(begin)} to {format_seconds(end)}"
    width = max(_THINNEST, scale.at(end) - scale.at(begin))
    return Bar(min(scale.at(begin), 100 - _THINNEST), round(width, 3), y, title)


def _label(begin: float, end: float, output: float) -> tuple[float, str]:
    """Where a stage's time stands: not beyond the chart, and not on the line of the first output."""
    if end < 100 - _ROOM and not end < output < end + _ROOM:
        return end, "after"
    if begin > _ROOM:
        return begin, "before"
    return end, "after" if end < 100 - _ROOM else "inside"


def _lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """Parts that ran side by side, each in the first lane that is free; the last lane takes what no other can."""
    lanes: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.begin, -span.end)):
        free = next((lane for lane in lanes if lane[-1].end <= span.begin), None)
        if free is None and len(lanes) < _LANES:
            lanes.append([span])
        else:
            (lanes[-1] if free is None else free).append(span)
    return lanes


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[:_NAME]}…"


def ends(samples: Iterable[Sample]) -> Iterator[float]:
    """All that a common scale has to show."""
    for sample in samples:
        yield sample.total or 0.0
        yield from (span.end for span in sample.spans)
