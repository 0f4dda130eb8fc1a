"""What a link may be asked to be, and what that comes to."""

from __future__ import annotations

import math

import pytest

from slimgpu.bench.link.measure import Reached, expectation
from slimgpu.bench.link.values import MACHINE, Shape
from slimgpu.errors import UsageError


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        (Shape(0, (5000,)), "a rate of 0 bit/s cannot be shaped"),
        (Shape(-1e9, (5000,)), "a rate of -1e\\+09 bit/s"),
        (Shape(math.nan, (5000,)), "a rate of nan bit/s"),
        (Shape(math.inf, (5000,)), "a rate of inf bit/s"),
        (Shape(1e9, (5000,), connection=1), "a rate of 1 bit/s"),
        (Shape(1e9, (5000,), node_bandwidth=0), "a rate of 0 bit/s"),
        (Shape(1e9, (5000,), latency=-1), "a latency of -1 s"),
        (Shape(1e9, (5000,), latency=2), "a latency of 2 s"),
        (Shape(1e9, (5000,), nodes=0), "1 to 64 nodes, not 0"),
        (Shape(1e9, (5000,), nodes=65), "1 to 64 nodes, not 65"),
        (Shape(1e9, (0,)), "0 is no port"),
        (Shape(1e9, (5000,), node_ports=(70000,)), "70000 is no port"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(shape: Shape, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        shape.check()


def test_a_shape_that_can_be_is_taken() -> None:
    for shape in (Shape(1e5, ()), Shape(None, (1, 65535), 1.0, 1e5, 64, math.inf, (1,))):
        shape.check()


@pytest.mark.parametrize(
    ("bandwidth", "node_bandwidth", "line"),
    [(1e9, None, 1e9), (1e9, 5e9, 5e9), (1e9, math.inf, None), (None, None, None), (None, 1e9, 1e9)],
)
def test_a_node_has_a_line_as_the_registry_s(
    bandwidth: float | None, node_bandwidth: float | None, line: float | None
) -> None:
    assert Shape(bandwidth, (), node_bandwidth=node_bandwidth).line == line


@pytest.mark.parametrize(
    ("shape", "connections", "rate"),
    [
        (Shape(1e9, ()), 16, 1e9),
        (Shape(1e9, (), connection=1e8), 4, 4e8),
        (Shape(1e9, (), connection=1e8), 16, 1e9),
        (Shape(1e9, (), node_bandwidth=1e8), 1, 1e8),
        (Shape(None, (), node_bandwidth=math.inf), 1, None),
    ],
)
def test_the_narrowest_place_says_what_to_expect(shape: Shape, connections: int, rate: float | None) -> None:
    assert expectation(shape, connections) == rate


def test_a_link_off_its_rate_is_noted() -> None:
    assert Reached(1e9, 0.971e9, 0.001).note is None
    assert Reached(1e9, 1.029e9, 0.001).note is None
    assert Reached(None, 1e9, 0.001).note is None
    slow, fast = Reached(25e9, 20e9, 0.001).note, Reached(1e9, 1.04e9, 0.001).note
    assert slow == "the link carried 20 Gbit/s to one node with nothing else in the way, 80% of what it is set to"
    assert fast == "the link carried 1.04 Gbit/s to one node with nothing else in the way, 104% of what it is set to"


def test_a_registry_may_run_beside_any_link() -> None:
    assert (MACHINE.command(["true"]), MACHINE.host()) == (["true"], "127.0.0.1")
