from __future__ import annotations

from dataclasses import replace

import pytest

from slimgpu.bench.results import Category
from slimgpu.report.svg.bars import BESIDE, REST, make_stacks
from tests.support.bench import make_result

_ARMS = make_result().arms


def test_a_category_has_one_number_in_all_bars() -> None:
    drawn = make_stacks(_ARMS)
    assert len(drawn.categories) == 8
    assert drawn.categories[-1] == REST
    for stack in drawn.stacks:
        for segment in stack.segments:
            assert segment.title.startswith(drawn.categories[segment.number - 1])


def test_bytes_add_up() -> None:
    drawn = make_stacks(_ARMS)
    for column, arm in enumerate(_ARMS):
        assert sum(row[column] for row in drawn.sizes) == arm.unpacked + arm.weights_stored
    assert next(sum(segment.width for segment in stack.segments) for stack in drawn.stacks) == pytest.approx(
        100, abs=0.1
    )


def test_weights_beside_the_image_are_not_forgotten() -> None:
    drawn = make_stacks(_ARMS)
    row = drawn.sizes[drawn.categories.index(BESIDE)]
    assert row == (0, 0, 0, 2_471_000_000, 1_640_000_000)
    assert "1.64 GB of weights" in drawn.stacks[-1].total


def test_narrow_segments_have_no_number() -> None:
    arm = replace(_ARMS[0], categories=(Category("wide", 990, 1), Category("narrow", 10, 1)))
    (stack,) = make_stacks([arm]).stacks
    assert [segment.is_labelled for segment in stack.segments] == [True, False]


def test_nothing_to_draw() -> None:
    assert make_stacks([]).categories == ()
    assert make_stacks([replace(_ARMS[0], categories=())]).stacks[0].segments == ()
