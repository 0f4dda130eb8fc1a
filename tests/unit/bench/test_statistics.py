from __future__ import annotations

import json
import random
import statistics
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.bench.results import STAGES, LinkFacts, Sample, Span, stretches
from slimgpu.bench.statistics import FEWEST_ROUNDS, failed, figures, floors, percentile, ratios, seconds_of
from slimgpu.events import Stage
from tests.support.bench import LINK, as_failed, make_result, scaled

_OPEN = LinkFacts("nothing", None, None, 0, None)


def sample(arm: str, number: int, total: float | None, spans: tuple[Span, ...] = (), node: int = 0) -> Sample:
    return Sample(
        arm, number, node, total, total, None, spans, (), 1000, 0, 1, 0.1, None, 0, "", "" if total else "It ended."
    )  # fmt: skip


def arm(name: str, totals: list[float | None]) -> list[Sample]:
    return [sample(name, number, total) for number, total in enumerate(totals)]


def of(samples: list[Sample], name: str, stage: str = "total") -> tuple[int, float, float, float]:
    (found,) = [figure for figure in figures(samples) if (figure.arm, figure.stage) == (name, stage)]
    return found.count, found.p50, found.p95, found.most


def test_percentiles_are_interpolated() -> None:
    tens = [float(number) for number in range(1, 11)]
    assert (percentile(tens, 50), percentile(tens, 95)) == (5.5, 9.55)
    assert percentile([3.0], 95) == 3.0


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=40))
def test_percentiles_are_those_of_the_standard_library(values: list[float]) -> None:
    twentieths = statistics.quantiles(values, n=20, method="inclusive")
    assert percentile(values, 50) == pytest.approx(statistics.median(values), abs=1e-5)
    assert percentile(values, 95) == pytest.approx(twentieths[-1], abs=1e-5)


def test_failed_samples_count_as_failed_and_nowhere_else() -> None:
    samples = arm("a", [None, 2.0, 4.0, None]) + arm("b", [None, None])
    assert of(samples, "a") == (2, 3.0, 3.9, 4.0)
    assert {figure.arm for figure in figures(samples)} == {"a"}
    assert failed(samples) == {"a": 2, "b": 2}
    assert failed(arm("a", [1.0])) == {}
    assert ratios(samples, "a") == ratios(samples, "b") == ()
    assert [floor.arm for floor in floors(samples, LINK, 1)] == ["a"]


def test_a_sample_with_an_output_and_a_failure_failed() -> None:
    odd = replace(sample("a", 0, 1.0), failure="The second start gave another output.")
    assert figures([odd]) == ()
    assert failed([odd]) == {"a": 1}


def test_one_sample_is_all_of_its_percentiles_and_no_interval() -> None:
    samples = arm("a", [6.0]) + arm("b", [2.0])
    assert of(samples, "b") == (1, 2.0, 2.0, 2.0)
    assert [(r.stage, r.ratio, r.low, r.high) for r in ratios(samples, "a")] == [
        ("total", 3.0, None, None),
        ("warm", 3.0, None, None),
    ]


def test_nothing_comes_to_nothing() -> None:
    assert figures([]) == ratios([], "a") == floors([], LINK, 1) == ()


def test_equal_samples_have_an_interval_without_width() -> None:
    first, second = ratios(arm("a", [4.0] * 8) + arm("b", [2.0] * 8), "a")
    assert (first.ratio, first.low, first.high) == (2.0, 2.0, 2.0) == (second.ratio, second.low, second.high)


def test_what_takes_no_time_has_no_ratio() -> None:
    instant = [replace(each, warm=0.0) for each in arm("b", [1.0] * 8)]
    assert [ratio.stage for ratio in ratios(arm("a", [1.0] * 8) + instant, "a")] == ["total"]


@pytest.mark.parametrize(("rounds", "known"), [(FEWEST_ROUNDS - 1, False), (FEWEST_ROUNDS, True)])
def test_an_interval_takes_enough_rounds(rounds: int, *, known: bool) -> None:
    noise = random.Random(1)  # noqa: S311
    samples = [s for name in "ab" for s in arm(name, [noise.uniform(1, 2) for _ in range(rounds)])]
    ratio = ratios(samples, "a")[0]
    assert (ratio.low is not None) is known
    assert (ratio.high is not None) is known


def test_rounds_are_drawn_as_pairs() -> None:
    """What slows a whole round down leaves the ratio as it is, so the interval has no width."""
    paces = [1.0, 1.3, 0.8, 2.0, 1.1, 0.9, 1.7, 1.25, 1.05]
    paired = ratios(arm("a", [4 * pace for pace in paces]) + arm("b", [2 * pace for pace in paces]), "a")[0]
    assert (paired.low, paired.high) == (2.0, 2.0)
    mixed = ratios(arm("a", [4 * pace for pace in paces]) + arm("b", [2 * pace for pace in paces[::-1]]), "a")[0]
    assert mixed.ratio == 2.0
    assert mixed.low is not None
    assert mixed.high is not None
    assert mixed.low < 1.7
    assert mixed.high > 2.3


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    noise, held, trials = np.random.default_rng(3), 0, 60
    for _ in range(trials):
        before, after = 9 * noise.lognormal(0, 0.1, 20), 3 * noise.lognormal(0, 0.1, 20)
        ratio = ratios(arm("a", list(before)) + arm("b", list(after)), "a")[0]
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 3.0 <= ratio.high
    assert trials * 0.85 <= held <= trials


def test_a_round_of_many_nodes_is_drawn_as_a_whole() -> None:
    samples = [
        sample(name, number, base + number + node / 10, node=node)
        for number in range(8)
        for name, base in (("a", 20.0), ("b", 10.0))
        for node in range(3)
    ]
    ratio = ratios(samples[:-1], "a")[0]  # and one that is not there
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < ratio.ratio < ratio.high


def test_the_same_samples_come_to_the_same() -> None:
    assert make_result() == make_result()


def test_a_stage_lasts_as_long_as_any_of_its_spans() -> None:
    spans = (
        Span(Stage.PULL, 3.0, 5.0), Span(Stage.PULL, 1.0, 2.0), Span(Stage.PULL, 1.5, 2.5, "x"),
        Span(Stage.PULL, 4.0, 4.5, "y"), Span(Stage.UNPACK, 0.0, 9.0),
    )  # fmt: skip
    assert stretches(span for span in spans if span.stage is Stage.PULL) == ((1.0, 2.5), (3.0, 5.0))
    assert seconds_of(sample("a", 0, 9.0, spans), "pull") == 3.5
    assert seconds_of(sample("a", 0, 9.0, spans), "import") is None
    assert stretches(()) == ()


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=30))
def test_stretches_are_in_order_and_apart(pairs: list[tuple[float, float]]) -> None:
    spans = [Span(Stage.PULL, begin, begin + length) for begin, length in pairs]
    found = stretches(spans)
    assert all(before[1] < after[0] for before, after in pairwise(found))
    assert all(any(begin <= span.begin and span.end <= end for begin, end in found) for span in spans)


def test_a_stage_that_some_samples_lack_counts_those_that_have_it() -> None:
    samples = [*arm("a", [3.0, 3.0]), sample("a", 2, 3.0, (Span(Stage.LOAD, 1.0, 2.5),))]
    assert of(samples, "a", "load weights") == (1, 1.5, 1.5, 1.5)


def test_floors() -> None:
    limited = LinkFacts("tbf", 8000.0, None, 0, None)
    samples = [replace(sample("a", 0, 2.0, node=node), wire=500 * (1 + 2 * node)) for node in range(2)]
    (floor,) = floors(samples, limited, 2)
    assert (floor.wire, floor.warm) == (2.0, 2.0)
    (floor,) = floors([replace(each, warm=None) for each in samples], _OPEN, 2)
    assert (floor.wire, floor.warm) == (0.0, None)


def test_arms_and_stages_keep_their_order() -> None:
    result = make_result()
    names = [each.name for each in result.arms]
    order = [(names.index(figure.arm), STAGES.index(figure.stage)) for figure in result.figures]
    assert order == sorted(order)


def test_slower_is_a_ratio_below_one() -> None:
    result = make_result(2, fails=False)
    slow = [scaled(each, 4) if each.arm == "before, zstd" else each for each in result.samples]
    ratio = ratios(slow, "before")[0]
    assert ratio.high is not None
    assert ratio.high < 1


def test_values_are_numbers_of_json() -> None:
    samples = [as_failed(make_result().samples[0], "Gone."), *make_result().samples[1:]]
    for found in (figures(samples), ratios(samples, "before"), floors(samples, LINK, 1)):
        json.dumps([asdict(each) for each in found], allow_nan=False)
