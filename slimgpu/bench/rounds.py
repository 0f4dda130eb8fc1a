"""Rounds: every arm once, in an order that turns, each cold start in fresh processes on all nodes at once."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.bench.nodes import running_node
from slimgpu.bench.order import Begins, Order, Weights
from slimgpu.bench.output import Wanted
from slimgpu.bench.results import Sample

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from slimgpu.bench.link.values import Counters, Link
    from slimgpu.bench.order import Report
    from slimgpu.bench.prepare import Prepared
    from slimgpu.bench.served import Served
    from slimgpu.progress import Progress

_DIFFERENT: Final = "the first output differs from that of the first cold start"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is the same for every cold start."""

    platform: str
    command: tuple[str, ...]
    environment: dict[str, str]
    wanted: Wanted
    begins: Begins
    nodes: int


class Rounds:
    """Takes samples; those that were taken stay when it is interrupted."""

    def __init__(
        self, arms: Sequence[Prepared], conditions: Conditions, link: Link, served: Served, folder: Path
    ) -> None:
        self.samples: list[Sample] = []
        self._arms = arms
        self._conditions = conditions
        self._link = link
        self._served = served
        self._folder = folder

    def run(self, count: int, progress: Progress) -> None:
        """Take ``count`` rounds; raises `SlimgpuError` when a node breaks down, not when a program fails."""
        with progress.task("cold starts", count * len(self._arms), "starts") as task:
            for number in range(count):
                for arm in self._arms if number % 2 == 0 else reversed(self._arms):
                    self.samples += self._once(arm, number)
                    task.advance(1)

    def _once(self, arm: Prepared, number: int) -> list[Sample]:
        """One cold start of one arm on all nodes."""
        self._served.warm(arm.places)
        load = os.getloadavg()[0]
        orders = [self._order(arm, node) for node in range(self._conditions.nodes)]
        with ExitStack() as stack:
            nodes = [stack.enter_context(running_node(order, self._link)) for order in orders]
            self._link.reset()
            for node in nodes:
                node.go()
            reports = [node.report() for node in nodes]
            counted = [self._link.counted(order.node) for order in orders]
        told = zip(orders, reports, counted, strict=True)
        return [self._sample(arm.arm.name, number, load, *each) for each in told]

    def _order(self, arm: Prepared, node: int) -> Order:
        given, beside = self._conditions, arm.weights
        weights = None
        if beside is not None:
            weights = Weights(beside.kind, self._served.reference(beside.place), beside.root, beside.attach)
        return Order(
            node=node,
            image=self._served.reference(arm.image),
            platform=given.platform,
            command=given.command,
            environment=given.environment,
            weights=weights,
            wanted=given.wanted,
            begins=given.begins,
            folder=self._folder / f"node-{node}",
        )

    def _sample(self, arm: str, number: int, load: float, order: Order, report: Report, counted: Counters) -> Sample:
        right = next((sample.output for sample in self.samples if not sample.failure), report.output)
        failure = report.failure or (_DIFFERENT if report.output != right else "")
        return Sample(
            arm=arm,
            round=number,
            node=order.node,
            total=None if failure else report.total,
            warm=report.warm,
            answer=report.answer,
            spans=report.spans,
            warm_spans=report.warm_spans,
            wire=counted.registry,
            peers=counted.peers,
            connections=counted.connections,
            processor=report.processor,
            resident=report.resident,
            load=load,
            output=report.output,
            failure=failure,
        )
