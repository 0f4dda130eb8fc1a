"""Golden text of the tables about benchmarks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from slimgpu.bench.compare import compare
from slimgpu.report.bench_tables import bench_tables
from slimgpu.report.compare_tables import compare_tables
from tests.support.bench import as_failed, make_hostile, make_result, scaled, with_samples
from tests.support.drawn import drawn

if TYPE_CHECKING:
    from slimgpu.bench.results import BenchResult

_BENCH_TEXT = """\
python3 -m serve --prompt 'hello world'
10 cold starts of each arm, with everything in the registry; without an engine, on NVIDIA H100 80GB
HBM3
link: 2.00 Gbit/s for all nodes together, 0.5 ms one way, measured to carry 1.91 Gbit/s (tbf on a
veth pair, latency by a relay)
machine: AMD EPYC 9354 32-Core Processor, 16 cores, 135 GB memory, NVIDIA H100 80GB HBM3, driver
570.86.15, Linux 6.1.0-25-amd64
disk: /dev/nvme0n1p2 ext4 rw,relatime

Cold start, seconds to the first output
 p50   p95   max  warm  floor  over wire  to pull  unpacked      times faster  arm
53.4  58.3  61.2  11.5   29.8    7.45 GB  7.42 GB   14.5 GB                    before
43.6  45.4  45.6  11.3   25.3    6.34 GB  6.31 GB   14.5 GB  1.23 (1.19-1.25)  before, zstd
29.5  30.0  30.1  9.26   16.5    4.13 GB  4.11 GB   7.84 GB  1.81 (1.76-1.85)  after
29.1  33.9  34.1  9.37   18.0    4.51 GB  4.49 GB   5.37 GB  1.83 (1.78-1.87)  after, weights as
                                                                               files
26.0  26.7  26.8  9.41   14.7    3.67 GB  3.66 GB   5.37 GB  2.06 (2.00-2.10)  after, weights apart
warm: started again at once. floor: the longer of warm and of the bytes at the link's rate.
to pull: layers, and weights beside them.
times faster: than before, ratio of medians with its 95 % interval.

Stage by stage, seconds
                                              after, weights    after, weights
stage          before  before, zstd  after          as files             apart
resolve          0.08          0.08   0.08              0.08              0.08
pull             34.4          29.2   17.0              19.2              15.9
unpack           39.6          30.0   17.1              19.3              16.0
fetch weights       -             -      -              18.6              12.5
start            0.31          0.31   0.30              0.31              0.31
interpreter      0.12          0.12   0.12              0.12              0.12
import           11.4          11.1   8.17              8.08              8.23
GPU context      2.87          2.89   2.90              2.89              2.92
load weights     4.01          4.06   4.07              0.40              0.40
first output     1.19          1.19   1.20              1.22              1.17
Median of the time that any part of a stage was under way.
Stages overlap: they do not add up to the total.

failed: before, zstd, 1 of 10 (round 0): The program ended with 137 before its first output; see its
log.
note: The link carried 1.91 Gbit/s of the 2 Gbit/s that were asked for.

after, weights apart: 53.4 s -> 26.0 s, 2.06 times as fast (95 % interval 2.00 to 2.10)
"""

_COMPARE_TEXT = """\
a.json (2026-03-02T09:14:07Z) -> b.json (2026-03-02T09:14:07Z)

Medians, seconds
before  after      times faster         stage         arm
  53.4   53.4  1.00 (0.97-1.02)         total         before
  43.6   43.6  1.00 (0.97-1.02)         total         before, zstd
  29.5   35.4  0.83 (0.81-0.85)  worse  total         after
  0.08   0.10  0.83 (0.81-0.85)  worse  resolve       after
  17.0   20.4  0.83 (0.81-0.85)  worse  pull          after
  17.1   20.5  0.83 (0.81-0.85)  worse  unpack        after
  0.30   0.37  0.83 (0.81-0.85)  worse  start         after
  0.12   0.14  0.83 (0.81-0.85)  worse  interpreter   after
  8.17   9.80  0.83 (0.81-0.85)  worse  import        after
  2.90   3.47  0.83 (0.81-0.85)  worse  GPU context   after
  4.07   4.89  0.83 (0.81-0.85)  worse  load weights  after
  1.20   1.44  0.83 (0.81-0.85)  worse  first output  after
  29.1   29.1  1.00 (0.97-1.02)         total         after, weights as files

Bytes
 before    after   change         what     arm
4.11 GB  5.11 GB  +24.3 %  worse  to pull  after
--all shows 44 more figures.

Also different
what    before          after
kernel  6.1.0-25-amd64  6.1.0-26-amd64
only in a.json: after, weights apart
before, zstd: failed cold starts: 1 before, 1 after

11 figures became worse beyond noise.
"""


def steady(result: BenchResult) -> BenchResult:
    """With intervals that no version of numpy draws otherwise."""
    ratios = tuple(replace(each, low=each.ratio * 0.97, high=each.ratio * 1.02) for each in result.ratios)
    return replace(result, ratios=ratios)


def test_a_benchmark() -> None:
    assert drawn(bench_tables(steady(make_result()))) == _BENCH_TEXT


def test_a_comparison() -> None:
    result = make_result()
    slow = with_samples(result, [scaled(each, 1.2) if each.arm == "after" else each for each in result.samples])
    larger = replace(result.arms[2], stored=result.arms[2].stored + 10**9)
    arms = (*result.arms[:2], larger, result.arms[3])
    other = replace(slow, arms=arms, machine=replace(slow.machine, kernel="6.1.0-26-amd64"))
    comparison = compare(result, other, ("a.json", "b.json"))
    changes = [replace(c, low=(c.ratio or 0) * 0.97, high=(c.ratio or 0) * 1.02) for c in comparison.changes]
    told = replace(comparison, changes=tuple(changes))
    assert drawn(compare_tables(told)) == _COMPARE_TEXT
    assert drawn(compare_tables(told, show_all=True)).count("after, weights as files") > 10


def test_a_comparison_of_other_machines_says_so_first() -> None:
    result = make_result(2)
    other = replace(result, machine=replace(result.machine, cores=4))
    lines = drawn(compare_tables(compare(result, other, ("a", "b")))).splitlines()
    assert lines[1] == "These times cannot be compared: the two were measured under other conditions."
    assert "cores  16      4" in lines
    assert lines[-1] == "0 figures became worse; times were not judged."


def test_one_arm_is_compared_with_nothing() -> None:
    text = drawn(bench_tables(make_result(1)))
    assert "times faster: than" not in text
    assert "times as fast" not in text


def test_too_few_rounds_have_no_interval() -> None:
    text = drawn(bench_tables(make_result(2, runs=2, fails=False)))
    assert "(?)  before, zstd" in text
    assert "(?): too few rounds for one." in text
    assert "too few rounds to tell it from noise" in text


def test_no_difference_is_said_to_be_none() -> None:
    result = make_result(2, fails=False)
    same = [replace(each, total=float(each.round + 1)) for each in result.samples]
    mixed = [replace(each, total=11.0 - (each.total or 0)) if each.arm == "before" else each for each in same]
    assert "no difference beyond noise" in drawn(bench_tables(with_samples(result, mixed)))
    slow = with_samples(result, [scaled(each, 3) if each.arm != "before" else each for each in result.samples])
    assert "slower: 0.4" in drawn(bench_tables(slow))


def test_all_failed() -> None:
    result = make_result(2)
    broken = with_samples(result, [as_failed(each, "It ended with 1.") for each in result.samples])
    text = drawn(bench_tables(broken))
    assert "Stage by stage" not in text
    for arm in ("before", "before, zstd"):
        assert f"failed: {arm}, 10 of 10 (round 0, 1, 2, 3, 4, 5, ...): It ended with 1." in text


def test_nodes_and_their_caches_are_told() -> None:
    text = drawn(bench_tables(replace(make_result(2, nodes=4), node_caches=True)), 200)
    assert "10 cold starts of each arm on each of 4 nodes at a time, which serve each other" in text


@pytest.mark.parametrize("width", [40, 100, 200])
def test_tables_fit_the_screen_whatever_they_show(width: int) -> None:
    hostile = make_hostile()
    for result in (hostile, make_result()):
        other = replace(result, machine=replace(result.machine, cpu="other"))
        comparison = compare(result, other, ("[/]a\x1b[2J", "b"))
        text = drawn(bench_tables(result), width) + drawn(compare_tables(comparison, show_all=True), width)
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in text
        assert "\u202e" not in text
        text.encode()
    assert "[/red]" in drawn(bench_tables(hostile), 2000)
