from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from slimgpu.bench.results import Span
from slimgpu.events import Stage
from slimgpu.report.svg.scale import Scale
from slimgpu.report.svg.timeline import KINDS, ends, make_timeline
from tests.support.bench import make_result

_SAMPLE = make_result(1).samples[0]


def test_every_stage_has_a_kind() -> None:
    assert set(KINDS) == set(Stage)


def test_stages_are_rows_in_the_order_of_a_cold_start() -> None:
    chart = make_timeline(_SAMPLE, Scale.up_to(*ends([_SAMPLE])))
    assert [row.stage for row in chart.rows] == [stage for stage in Stage if stage is not Stage.FETCH]
    assert all(above.middle < below.middle for above, below in pairwise(chart.rows))
    assert chart.rows[-1].middle < chart.height
    assert chart.told.startswith("resolve ")
    assert chart.told.endswith(chart.end_label)


def test_bars_lie_where_the_spans_do() -> None:
    spans = (Span(Stage.PULL, 1, 3, "a"), Span(Stage.PULL, 2, 5, "b"), Span(Stage.PULL, 6, 7, "c"))
    (row,) = make_timeline(replace(_SAMPLE, total=10.0, spans=spans), Scale(10)).rows
    assert [(bar.x, bar.width) for bar in row.bars] == [(10, 40), (60, 10)]
    assert [(part.x, part.width) for part in row.parts] == [(10, 20), (60, 10), (20, 30)]
    first, third, second = (part.y for part in row.parts)
    assert first == third < second, "the third part starts when the first lane is free"
    assert row.label == "5.00 s"


def test_more_parts_than_lanes_are_drawn_all_the_same() -> None:
    spans = tuple(Span(Stage.PULL, number / 100, 9, f"layer {number}") for number in range(100))
    chart = make_timeline(replace(_SAMPLE, total=10.0, spans=spans), Scale(10))
    assert len(chart.rows[0].parts) == 100
    assert chart.height < 100


def test_one_part_is_its_stage() -> None:
    chart = make_timeline(replace(_SAMPLE, spans=(Span(Stage.PULL, 0, 9, "only"),)), Scale(60))
    assert chart.rows[0].parts == ()


@pytest.mark.parametrize(
    ("begin", "end", "total", "side"),
    [
        (0, 10, 95, "after"),
        (40, 95, 97, "before"),  # no room on the right
        (0, 99, 100, "inside"),  # none at all
        (40, 50, 55, "before"),  # the line of the first output
        (5, 50, 55, "after"),
        (50, 55, 55, "after"),
    ],
)
def test_labels_keep_clear(begin: float, end: float, total: float, side: str) -> None:
    sample = replace(_SAMPLE, total=float(total), spans=(Span(Stage.LOAD, begin, end),))
    assert make_timeline(sample, Scale(100)).rows[0].label_side == side


def test_what_is_short_is_seen_and_stays_within_the_chart() -> None:
    sample = replace(_SAMPLE, total=100.0, spans=(Span(Stage.OUTPUT, 100, 100),))
    (bar,) = make_timeline(sample, Scale(100)).rows[0].bars
    assert bar.width > 0
    assert bar.x + bar.width <= 100


def test_long_names_are_cut() -> None:
    spans = (Span(Stage.IMPORT, 0, 1, "x" * 5000), Span(Stage.IMPORT, 1, 2, "y"))
    assert max(len(part.title) for part in make_timeline(replace(_SAMPLE, spans=spans), Scale(60)).rows[0].parts) < 120
