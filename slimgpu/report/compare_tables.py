"""Two benchmarks of cold starts, held against each other, as tables that fit 100 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from slimgpu.bench.results import TOTAL
from slimgpu.report.bench_values import times_faster
from slimgpu.report.drawing import new_table, safe_text
from slimgpu.units import format_number, format_size, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from slimgpu.bench.comparison import Change, CompareResult, Difference, SizeChange

_MARK = "worse"


def compare_tables(result: CompareResult, *, show_all: bool = False) -> Iterator[RenderableType]:
    """What changed beyond noise, or everything, and whether times can be compared at all."""
    yield Text.assemble(
        (printable(result.before), "bold"),
        f" ({printable(result.began[0])}) -> ",
        (printable(result.after), "bold"),
        f" ({printable(result.began[1])})",
    )
    yield from _unlike(result)
    changes = [change for change in result.changes if show_all or change.stage == TOTAL or _is_clear(change, result)]
    sizes = [size for size in result.sizes if show_all or size.before != size.after]
    if changes:
        yield _times(changes)
    if sizes:
        yield _sizes(sizes)
    if hidden := len(result.changes) + len(result.sizes) - len(changes) - len(sizes):
        yield Text(f"--all shows {hidden} more figures.", style="dim")
    if result.noted:
        yield _differences("Also different", result.noted)
    yield from _ends(result)


def _is_clear(change: Change, result: CompareResult) -> bool:
    """Whether it differs beyond noise."""
    is_known = result.comparable and change.low is not None and change.high is not None
    return change.worse or (is_known and not (change.low or 0) <= 1 <= (change.high or 0))


def _unlike(result: CompareResult) -> Iterator[RenderableType]:
    if result.unlike:
        yield Text.assemble(
            ("These times cannot be compared", "bold"), ": the two were measured under other conditions."
        )
        yield _differences("What differs", result.unlike)


def _differences(title: str, differences: Sequence[Difference]) -> Table:
    table = new_table(title, "what", "before", "after")
    for column in table.columns[:2]:
        column.overflow, column.max_width = "ellipsis", 36
    for each in differences:
        table.add_row(safe_text(each.what), safe_text(each.before), safe_text(each.after))
    return table


def _times(changes: Sequence[Change]) -> Table:
    table = new_table("Medians, seconds", "before>", "after>", "times faster>", "", "stage", "arm")
    for change in changes:
        table.add_row(
            format_number(change.before),
            format_number(change.after),
            times_faster(change),
            Text(_MARK, style="bold red") if change.worse else "",
            change.stage,
            safe_text(change.arm),
        )
    return table


def _sizes(sizes: Sequence[SizeChange]) -> Table:
    table = new_table("Bytes", "before>", "after>", "change>", "", "what", "arm")
    for size in sizes:
        change = f"{100 * (size.after - size.before) / size.before:+.1f} %" if size.before else "new"
        table.add_row(
            format_size(size.before),
            format_size(size.after),
            change if size.before != size.after else "same",
            Text(_MARK, style="bold red") if size.worse else "",
            size.what,
            safe_text(size.arm),
        )
    return table


def _ends(result: CompareResult) -> Iterator[Text]:
    for name, arms in ((result.before, result.only_before), (result.after, result.only_after)):
        if arms:
            yield Text(f"only in {printable(name)}: {', '.join(map(printable, arms))}")
    for arm, (before, after) in result.failed.items():
        yield Text(f"{printable(arm)}: failed cold starts: {before} before, {after} after")
    worse = sum(change.worse for change in result.changes) + sum(size.worse for size in result.sizes)
    told = f"{worse} figures became worse" if worse != 1 else "1 figure became worse"
    yield Text.assemble("\n", (told, "bold"), " beyond noise." if result.comparable else "; times were not judged.")
