"""The words and tables of the page: what stands in which cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.bench.results import ANSWER, WARM
from slimgpu.report.bench_values import times_faster, verdict
from slimgpu.units import format_number, format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.bench.results import Arm, Figure
    from slimgpu.report.bench_values import BenchValues
    from slimgpu.report.svg.bars import Stacks

_NOTHING: Final = "-"


@dataclass(frozen=True, slots=True)
class Cell:
    """A value and, where it is one of many alike, its share of the largest in percent."""

    text: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table; ``number`` is a category's, whose colour is shown beside its name."""

    name: str
    cells: tuple[Cell, ...]
    number: int = 0


@dataclass(frozen=True, slots=True)
class Grid:
    """A table whose first column names the rows."""

    caption: str
    corner: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Headline:
    """What the page has to say first."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Tile:
    """One quantity before and after; ``share``: percent of the larger one."""

    name: str
    before: str
    after: str
    before_share: float
    after_share: float


def headline(values: BenchValues) -> Headline:
    """The fastest arm against the first one, and no more than the interval allows."""
    best = values.best()
    only = values.figure(values.base)
    if best is None:
        if only is None:
            return Headline("No comparison", "The first arm never came to a first output.")
        return Headline(f"{format_seconds(only.p50)} to the first output", f"{values.base}: median of {only.count}.")
    before, after = values.figure(best.base), values.figure(best.arm)
    assert before is not None
    assert after is not None
    text = f"{best.arm} against {best.base}: {verdict(best, before, after).replace('->', '→')}."
    if best.low is None or best.high is None:
        return Headline(f"{format_number(best.ratio)} times as fast, in too few rounds", text)
    if best.low > 1:
        return Headline(f"{format_number(best.ratio)} times faster to the first output", text)
    return Headline("Slower" if best.high < 1 else "No difference beyond noise", text)


def tiles(values: BenchValues) -> list[Tile]:
    """The first arm beside the fastest one; none when there is nothing to compare."""
    best = values.best()
    if best is None:
        return []
    old, new = (next(arm for arm in values.result.arms if arm.name == name) for name in (best.base, best.arm))
    found = [_time("to the first output", values.figure(old.name), values.figure(new.name))]
    found.append(_bytes("to pull", old.stored + old.weights_stored, new.stored + new.weights_stored))
    found.append(_bytes("unpacked", old.unpacked, new.unpacked))
    found.append(_time("warm start", values.figure(old.name, WARM), values.figure(new.name, WARM)))
    return [tile for tile in found if tile is not None]


def _time(name: str, before: Figure | None, after: Figure | None) -> Tile | None:
    if before is None or after is None:
        return None
    return _tile(name, (format_seconds(before.p50), format_seconds(after.p50)), before.p50, after.p50)


def _bytes(name: str, before: int, after: int) -> Tile:
    return _tile(name, (format_size(before), format_size(after)), before, after)


def _tile(name: str, texts: tuple[str, str], before: float, after: float) -> Tile:
    return Tile(name, *texts, *_shares([before, after]))


def _shares(values: Sequence[float]) -> list[float]:
    largest = max(values, default=0) or 1
    return [round(100 * value / largest, 1) for value in values]


def cold_start_table(values: BenchValues) -> Grid:
    """One line an arm."""
    has_peers = any(sample.peers for sample in values.result.samples)
    columns = ["p50", "p95", "max", "warm", "next answer", "floor", "over the wire", "to pull", "unpacked"]
    lines = tuple(Line(arm.name, tuple(_cold_start(values, arm, has_peers=has_peers))) for arm in values.result.arms)
    columns[7:7] = ["from peers"] if has_peers else []
    return Grid("Seconds from nothing to the first output", "arm", (*columns, "times faster"), lines)


def _cold_start(values: BenchValues, arm: Arm, *, has_peers: bool) -> Iterator[Cell]:
    total, floor, wire = values.figure(arm.name), values.floor(arm.name), values.wire(arm.name)
    numbers = (total.p50, total.p95, total.most) if total else (None, None, None)
    for number in numbers:
        yield Cell(_NOTHING if number is None else format_seconds(number))
    yield Cell(_p50(values.figure(arm.name, WARM)))
    yield Cell(_p50(values.figure(arm.name, ANSWER)))
    yield Cell(format_seconds(floor.seconds) if floor else _NOTHING)
    yield Cell(_NOTHING if wire is None else format_size(wire))
    if has_peers:
        good = values.good(arm.name)
        yield Cell(format_size(sum(sample.peers for sample in good) // len(good)) if good else _NOTHING)
    yield Cell(format_size(arm.stored + arm.weights_stored))
    yield Cell(format_size(arm.unpacked))
    yield Cell(times_faster(values.ratio(arm.name)) or _NOTHING)


def _p50(figure: Figure | None) -> str:
    return format_seconds(figure.p50) if figure else _NOTHING


def stage_table(values: BenchValues) -> Grid:
    """Median seconds, one line a stage; bars compare all cells of the table."""
    names = tuple(arm.name for arm in values.result.arms)
    found = {stage: [values.figure(name, stage) for name in names] for stage in values.stages()}
    largest = max((figure.p50 for row in found.values() for figure in row if figure), default=0) or 1
    lines = tuple(
        Line(
            stage,
            tuple(Cell(_p50(figure), round(100 * figure.p50 / largest, 1) if figure else None) for figure in row),
        )
        for stage, row in found.items()
    )
    return Grid("Median time that any part of a stage was under way", "stage", names, lines)


def size_table(stacks: Stacks, arms: Sequence[Arm]) -> Grid:
    """Bytes by category, which is the legend of the bars."""
    lines = tuple(
        Line(name, tuple(Cell(format_size(size) if size else _NOTHING) for size in sizes), number)
        for number, (name, sizes) in enumerate(zip(stacks.categories, stacks.sizes, strict=True), start=1)
    )
    return Grid("Bytes by category", "category", tuple(arm.name for arm in arms), lines)


def arms_table(values: BenchValues) -> list[tuple[Arm, str]]:
    """Each arm and what its median cold start put out first."""
    samples = [(arm, values.median_sample(arm.name)) for arm in values.result.arms]
    return [(arm, sample.output if sample else "") for arm, sample in samples]
