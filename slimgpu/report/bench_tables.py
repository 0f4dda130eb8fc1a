"""A benchmark of cold starts as tables that fit 100 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from slimgpu.bench.results import WARM
from slimgpu.report.bench_values import BenchValues, times_faster, verdict
from slimgpu.report.drawing import new_table, safe_text
from slimgpu.units import format_number, format_size, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from slimgpu.bench.results import Arm, BenchResult, Figure

_ROUNDS_SHOWN = 6


def bench_tables(result: BenchResult) -> Iterator[RenderableType]:
    """Everything but single samples."""
    values = BenchValues(result)
    yield Text.assemble(
        (printable(values.command()), "bold"),
        f"\n{printable(values.setting())}\nlink: {printable(values.link())}\n"
        f"machine: {printable(values.machine())}\ndisk: {printable(result.machine.disk)}",
    )
    yield _cold_starts(values)
    yield from _legend(values)
    if values.stages():
        yield _stages(values)
        yield Text(
            "Median of the time that any part of a stage was under way.\n"
            "Stages overlap: they do not add up to the total.",
            style="dim",
        )
    yield from _failures(values)
    for note in result.notes:
        yield Text.assemble(("note: ", "bold"), printable(note))
    best = values.best()
    if best is not None and (before := values.figure(best.base)) and (after := values.figure(best.arm)):
        yield Text.assemble("\n", (printable(best.arm), "bold"), f": {verdict(best, before, after)}")


def _cold_starts(values: BenchValues) -> Table:
    columns = ("p50>", "p95>", "max>", "warm>", "floor>", "over wire>", "to pull>", "unpacked>", "times faster>", "arm")
    table = new_table("Cold start, seconds to the first output", *columns)
    table.columns[-1].no_wrap = False  # an arm is known by its whole name
    for arm in values.result.arms:
        table.add_row(*_row(values, arm), safe_text(arm.name))
    return table


def _row(values: BenchValues, arm: Arm) -> Iterator[str]:
    total, warm, floor, wire = (
        values.figure(arm.name),
        values.figure(arm.name, WARM),
        values.floor(arm.name),
        values.wire(arm.name),
    )
    yield from (format_number(total.p50), format_number(total.p95), format_number(total.most)) if total else ("-",) * 3
    yield _p50(warm)
    yield format_number(floor.seconds) if floor else "-"
    yield "-" if wire is None else format_size(wire)
    yield format_size(arm.stored + arm.weights_stored)
    yield format_size(arm.unpacked)
    yield times_faster(values.ratio(arm.name))


def _p50(figure: Figure | None) -> str:
    return format_number(figure.p50) if figure else "-"


def _legend(values: BenchValues) -> Iterator[Text]:
    yield Text(
        "warm: started again at once. floor: the longer of warm and of the bytes at the link's rate.\n"
        "to pull: layers, and weights beside them.",
        style="dim",
    )
    if len(values.result.arms) > 1:
        unknown = any(ratio.low is None for ratio in values.result.ratios)
        yield Text(
            f"times faster: than {printable(values.base)}, ratio of medians with its 95 % interval"
            f"{'; (?): too few rounds for one' if unknown else ''}.",
            style="dim",
        )


def _stages(values: BenchValues) -> Table:
    table = Table(title="\nStage by stage, seconds", title_justify="left", title_style="bold", header_style="dim")
    table.box, table.pad_edge = None, False
    table.add_column("stage", no_wrap=True)
    for arm in values.result.arms:
        table.add_column(safe_text(arm.name), justify="right", overflow="fold", max_width=16)
    for stage in values.stages():
        table.add_row(stage, *(_p50(values.figure(arm.name, stage)) for arm in values.result.arms))
    return table


def _failures(values: BenchValues) -> Iterator[Text]:
    for number, failure in enumerate(values.failures()):
        rounds = ", ".join(map(str, failure.rounds[:_ROUNDS_SHOWN]))
        more = ", ..." if len(failure.rounds) > _ROUNDS_SHOWN else ""
        gap = "" if number else "\n"
        yield Text.assemble(
            (f"{gap}failed: ", "bold"),
            f"{printable(failure.arm)}, {failure.failed} of {failure.of} (round {rounds}{more}): "
            f"{printable(failure.sentence)}",
        )
