"""A benchmark of cold starts as one page of HTML, which needs no network, no script and nothing beside it.

All that comes from images or the machine is escaped twice over: control characters as `slimgpu.units.printable` does,
and markup by the templates; and the page's own policy lets nothing be loaded or run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slimgpu import __version__
from slimgpu.report.bench_page_tables import arms_table, cold_start_table, headline, size_table, stage_table, tiles
from slimgpu.report.bench_values import BenchValues
from slimgpu.report.svg import bars, distribution
from slimgpu.report.svg.scale import Scale
from slimgpu.report.svg.timeline import ends, make_timeline
from slimgpu.units import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slimgpu.bench.results import BenchResult


def bench_page(result: BenchResult) -> str:
    """The whole page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - only those who want a page wait

    environment = Environment(
        loader=PackageLoader("slimgpu.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("bench.html").render(_content(result))


def _shown(value: object) -> object:
    """What a template writes: text without control characters, markup of our own as it is."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _content(result: BenchResult) -> Mapping[str, Any]:
    values = BenchValues(result)
    stacks = bars.make_stacks(result.arms)
    return {
        "version": __version__,
        "result": result,
        "values": values,
        "headline": headline(values),
        "tiles": tiles(values),
        **_timelines(values),
        **_strips(values),
        "stacks": stacks,
        "bar_row": bars.ROW,
        "cold_starts": cold_start_table(values),
        "stages": stage_table(values),
        "sizes": size_table(stacks, result.arms),
        "arms": arms_table(values),
    }


def _timelines(values: BenchValues) -> Mapping[str, Any]:
    medians = {arm.name: sample for arm in values.result.arms if (sample := values.median_sample(arm.name))}
    scale = Scale.up_to(*ends(medians.values()))
    base = medians.get(values.base) if len(medians) > 1 else None
    return {
        "base_end": scale.at(base.total or 0) if base else None,
        "timelines": [(name, make_timeline(sample, scale)) for name, sample in medians.items()],
        "time_ticks": scale.seconds(),
    }


def _strips(values: BenchValues) -> Mapping[str, Any]:
    names = [arm.name for arm in values.result.arms]
    figures = [figure for name in names if (figure := values.figure(name))]
    scale = Scale.up_to(*(figure.most for figure in figures))
    failed = {name: sum(failure.failed for failure in values.failures() if failure.arm == name) for name in names}
    strips = [
        distribution.make_strip(values.good(f.arm), f, values.floor(f.arm), failed[f.arm], number, scale)
        for number, f in enumerate(figures)
    ]
    return {"strips": strips, "strip_row": distribution.ROW, "total_ticks": scale.seconds()}
