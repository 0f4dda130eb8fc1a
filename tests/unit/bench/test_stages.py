from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slimgpu.bench.results import Span
from slimgpu.bench.stages import merged, spans_of, stage_seconds
from slimgpu.events import Event, Stage

_TIMES = st.integers(-50, 50)
_EVENTS = st.lists(
    st.builds(lambda stage, begin, length: Event(stage, begin, begin + length), st.sampled_from(Stage), _TIMES, _TIMES),
    max_size=20,
)
_INTERVALS = st.lists(st.tuples(_TIMES, st.integers(0, 30)).map(lambda t: (t[0], t[0] + t[1])), max_size=20)


def test_a_cold_start_ends_with_what_no_other_stage_took() -> None:
    events = [
        Event(Stage.LOAD, 14, 17, "model"),
        Event(Stage.PULL, 10, 13, "sha256:a"),
        Event(Stage.PULL, 11, 12, "sha256:b"),
    ]
    assert spans_of(events, 10, 20) == (
        Span(Stage.PULL, 0, 3, "sha256:a"),
        Span(Stage.PULL, 1, 2, "sha256:b"),
        Span(Stage.LOAD, 4, 7, "model"),
        Span(Stage.OUTPUT, 7, 10),
    )


def test_what_goes_on_after_the_output_is_cut_off() -> None:
    events = [Event(Stage.PULL, 8, 12), Event(Stage.IMPORT, 19, 30), Event(Stage.LOAD, 21, 22), Event(Stage.LOAD, 1, 9)]
    assert spans_of(events, 10, 20) == (
        Span(Stage.PULL, 0, 2),
        Span(Stage.IMPORT, 9, 10),
        Span(Stage.OUTPUT, 10, 10),
    )


def test_a_failed_start_has_no_output_and_keeps_the_rest() -> None:
    assert spans_of([Event(Stage.PULL, 11, 12)], 10, None) == (Span(Stage.PULL, 1, 2),)
    assert spans_of([], 10, None) == ()


def test_nothing_told_is_all_output() -> None:
    assert spans_of([], 10, 12) == (Span(Stage.OUTPUT, 0, 2),)


def test_overlaps_count_once_within_a_stage() -> None:
    spans = [
        Span(Stage.LOAD, 1, 3),
        Span(Stage.PULL, 0, 2),
        Span(Stage.PULL, 1, 3),
        Span(Stage.PULL, 5, 6),
        Span(Stage.PULL, 5.25, 5.5),
    ]
    assert stage_seconds(spans) == {Stage.PULL: 4, Stage.LOAD: 2}
    assert list(stage_seconds(spans)) == [Stage.PULL, Stage.LOAD]


@given(_INTERVALS)
def test_a_union_covers_the_same_time(intervals: list[tuple[int, int]]) -> None:
    union = merged(intervals)
    seconds = {second for begin, end in intervals for second in range(begin, end)}
    assert sum(end - begin for begin, end in union) == len(seconds)
    assert {second for begin, end in union for second in range(int(begin), int(end))} == seconds
    assert all(one[1] < other[0] for one, other in pairwise(union))


@given(_EVENTS, st.integers(0, 20))
def test_spans_lie_within_the_start(events: list[Event], length: int) -> None:
    spans = spans_of(events, 0, length)
    assert all(0 <= span.begin <= span.end <= length for span in spans)
    [output] = [span for span in spans if span.stage is Stage.OUTPUT]
    assert output.end == length
    assert output.begin == max([span.end for span in spans if span.stage is not Stage.OUTPUT], default=0)
