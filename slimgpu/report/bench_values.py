"""Looking things up in a benchmark's result: for the tables and for the page."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING

from slimgpu.bench.results import TOTAL
from slimgpu.events import Stage
from slimgpu.units import format_number, format_rate, format_seconds, format_size

if TYPE_CHECKING:
    from slimgpu.bench.comparison import Change
    from slimgpu.bench.results import BenchResult, Figure, Floor, Ratio, Sample

_BEGINS = {
    "registry": "with everything in the registry",
    "disk": "with the image on the disk, none of it in memory",
    "memory": "with the image on the disk and in the page cache",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Cold starts of one arm that failed for the same reason."""

    arm: str
    failed: int
    of: int
    rounds: tuple[int, ...]
    sentence: str


class BenchValues:
    """A result by arm and stage; None, or nothing, for what was not measured."""

    def __init__(self, result: BenchResult) -> None:
        self.result = result
        self.base = result.arms[0].name if result.arms else ""
        """The arm that the others are compared with."""
        self._figures = {(figure.arm, figure.stage): figure for figure in result.figures}
        self._ratios = {(ratio.arm, ratio.stage): ratio for ratio in result.ratios}
        self._floors = {floor.arm: floor for floor in result.floors}

    def figure(self, arm: str, stage: str = TOTAL) -> Figure | None:
        """The percentiles."""
        return self._figures.get((arm, stage))

    def ratio(self, arm: str, stage: str = TOTAL) -> Ratio | None:
        """How many times faster than the base."""
        return self._ratios.get((arm, stage))

    def floor(self, arm: str) -> Floor | None:
        """What no way could be faster than."""
        return self._floors.get(arm)

    def good(self, arm: str) -> list[Sample]:
        """The arm's samples that ended well, as in its figures."""
        return [each for each in self.result.samples if each.arm == arm and not each.failure and each.total is not None]

    def wire(self, arm: str) -> int | None:
        """Median bytes that one node got from the registry."""
        found = [sample.wire for sample in self.good(arm)]
        return median_low(found) if found else None

    def median_sample(self, arm: str) -> Sample | None:
        """The sample whose total is nearest to the median, the earliest of several."""
        figure = self.figure(arm)
        if figure is None:
            return None
        return min(self.good(arm), key=lambda sample: abs((sample.total or 0) - figure.p50), default=None)

    def stages(self) -> list[Stage]:
        """Those that any arm has figures of, in the order of a cold start."""
        return [stage for stage in Stage if any(figure.stage == stage for figure in self.result.figures)]

    def failures(self) -> list[Failure]:
        """What failed, the same reason of an arm once."""
        rounds: dict[tuple[str, str], list[int]] = {}
        for sample in self.result.samples:
            if sample.failure or sample.total is None:
                rounds.setdefault((sample.arm, sample.failure or "It gave no output."), []).append(sample.round)
        of = {arm.name: sum(sample.arm == arm.name for sample in self.result.samples) for arm in self.result.arms}
        return [
            Failure(arm, len(found), of.get(arm, len(found)), tuple(sorted(set(found))), sentence)
            for (arm, sentence), found in rounds.items()
        ]

    def best(self) -> Ratio | None:
        """The ratio of the arm with the least median total, when there is more than one arm."""
        found = [ratio for ratio in self.result.ratios if ratio.stage == TOTAL]
        return max(found, key=lambda ratio: ratio.ratio, default=None)

    def command(self) -> str:
        """What was started, as a shell takes it."""
        return shlex.join(self.result.command) or "the image's own command"

    def setting(self) -> str:
        """How often, from what and on what, in one line."""
        result = self.result
        nodes = f" on each of {result.nodes} nodes at a time" if result.nodes > 1 else ""
        caches = ", which serve each other" if result.nodes > 1 and result.node_caches else ""
        engine = "without an engine" if result.engine == "none" else f"engine {result.engine}"
        return (
            f"{_count(result.runs, 'cold start')} of each arm{nodes}{caches}, "
            f"{_BEGINS.get(result.begins, result.begins)}; {engine}, on {result.device}"
        )

    def link(self) -> str:
        """The link, in one line."""
        link = self.result.link
        rate = "not limited" if link.bandwidth is None else f"{format_rate(link.bandwidth)} for all nodes together"
        parts = [rate]
        parts += [f"{format_rate(link.connection)} a connection"] if link.connection is not None else []
        parts += [f"{1000 * link.latency:.3g} ms one way"]
        parts += [f"measured to carry {format_rate(link.reached)}"] if link.reached is not None else []
        return f"{', '.join(parts)} ({link.how})"

    def machine(self) -> str:
        """The machine, in one line."""
        machine = self.result.machine
        gpu = f"{machine.gpu}, driver {machine.driver or 'unknown'}" if machine.gpu else "no GPU"
        cores = _count(machine.cores, "core")
        return f"{machine.cpu}, {cores}, {format_size(machine.memory)} memory, {gpu}, Linux {machine.kernel}"


def times_faster(ratio: Ratio | Change | None) -> str:
    """``2.06 (2.01-2.12)``; ``(?)`` for an interval that too few rounds do not have."""
    if ratio is None or ratio.ratio is None:
        return ""
    if ratio.low is None or ratio.high is None:
        return f"{format_number(ratio.ratio)} (?)"
    return f"{format_number(ratio.ratio)} ({format_number(ratio.low)}-{format_number(ratio.high)})"


def verdict(ratio: Ratio, before: Figure, after: Figure) -> str:
    """What a ratio says, with what it can't say: ``faster``, ``slower`` or no difference beyond noise."""
    change = f"{format_seconds(before.p50)} -> {format_seconds(after.p50)}"
    if ratio.low is None or ratio.high is None:
        return f"{change}, {format_number(ratio.ratio)} times as fast; too few rounds to tell it from noise"
    interval = f"95 % interval {format_number(ratio.low)} to {format_number(ratio.high)}"
    if ratio.low <= 1 <= ratio.high:
        return f"{change}, no difference beyond noise ({interval} times as fast)"
    if ratio.ratio > 1:
        return f"{change}, {format_number(ratio.ratio)} times as fast ({interval})"
    return f"{change}, slower: {format_number(ratio.ratio)} times as fast ({interval})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
