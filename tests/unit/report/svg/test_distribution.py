from __future__ import annotations

from dataclasses import replace

from slimgpu.report.bench_values import BenchValues
from slimgpu.report.svg.distribution import ROW, make_strip
from slimgpu.report.svg.scale import Scale
from tests.support.bench import make_result


def test_every_cold_start_is_a_dot() -> None:
    values = BenchValues(make_result(2))
    figure = values.figure("before, zstd")
    assert figure is not None
    strip = make_strip(values.good(figure.arm), figure, values.floor(figure.arm), 1, 1, Scale(100))
    assert len(strip.dots) == figure.count == 9
    assert {dot.title.partition(",")[0] for dot in strip.dots} == {f"round {number}" for number in range(1, 10)}
    assert (strip.median, strip.tail) == (round(figure.p50, 3), round(figure.p95, 3))
    assert strip.told.endswith("9 cold starts, 1 failed")
    assert 0 < strip.floor < strip.median
    assert all(strip.top < dot.y < strip.top + ROW for dot in strip.dots)


def test_equal_samples_do_not_hide_each_other() -> None:
    result = make_result(1)
    values = BenchValues(result)
    figure = values.figure("before")
    assert figure is not None
    same = [replace(sample, total=50.0) for sample in result.samples[:4]]
    strip = make_strip(same, figure, None, 0, 0, Scale(100))
    assert len({(dot.x, dot.y) for dot in strip.dots}) == 4
    assert strip.floor == 0
