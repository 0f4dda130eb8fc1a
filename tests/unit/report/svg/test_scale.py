from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.report.svg.scale import Scale


@given(st.lists(st.floats(0, 1e6), max_size=5))
def test_all_values_are_within_the_chart_and_in_order(values: list[float]) -> None:
    scale = Scale.up_to(*values)
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)


@given(st.floats(1e-4, 1e6))
def test_a_few_lines_at_round_numbers(most: float) -> None:
    ticks = Scale.up_to(most).seconds()
    assert 2 <= len(ticks) <= 8
    assert ticks[0].at == 0
    assert [tick.at for tick in ticks] == sorted({tick.at for tick in ticks})


@pytest.mark.parametrize(
    ("most", "labels"),
    [(55, ["0", "10 s", "20 s", "30 s", "40 s", "50 s"]), (0.9, ["0", "200 ms", "400 ms", "600 ms", "800 ms"])],
)
def test_labels(most: float, labels: list[str]) -> None:
    assert [tick.label for tick in Scale.up_to(most).seconds()] == labels


def test_nothing_has_a_scale_too() -> None:
    assert Scale.up_to().at(0) == 0
    assert Scale(10).at(-1) == 0
    assert Scale(10).at(11) == 100
