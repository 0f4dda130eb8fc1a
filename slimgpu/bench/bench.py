"""A benchmark of cold starts, from the wish to the result."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from slimgpu.bench.link.link import free_ports, link
from slimgpu.bench.link.measure import measure
from slimgpu.bench.link.values import Shape
from slimgpu.bench.machine import describe
from slimgpu.bench.prepare import Preparation, Wish
from slimgpu.bench.results import SCHEMA, BenchResult, LinkFacts
from slimgpu.bench.rounds import Conditions, Rounds
from slimgpu.bench.served import served
from slimgpu.bench.statistics import figures, floors, ratios
from slimgpu.errors import DestinationError
from slimgpu.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from slimgpu.bench.link.values import Link
    from slimgpu.bench.prepare import Prepared
    from slimgpu.store.context import Context

_ROOM: Final = 1.2
"""Times the unpacked image that a node's disk must have."""
_INTERRUPTED: Final = "Interrupted: these are the cold starts that had ended by then."
_NO_GPU: Final = "No GPU on this machine: everything was computed on the CPU, and there is no GPU context."


@dataclass(frozen=True, slots=True)
class Control:
    """How links and rounds are to be."""

    runs: int
    bandwidth: float | None
    """Bit/s of the registry."""
    node_bandwidth: float | None
    """Bit/s of each node's own line; None is the registry's."""
    connection: float | None
    latency: float
    """Seconds one way."""


def bench(wish: Wish, conditions: Conditions, control: Control, context: Context) -> BenchResult:
    """Make the arms, take samples of all of them, and compute what they come to.

    Ctrl-C once samples are there gives the result of those. Raises what making the arms raises,
    `MissingComponentError` for an engine or privileges that are not there, and `DestinationError` when the disk has
    no room.
    """
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with context.cache.temporary_directory("bench") as folder:
        arms = Preparation(wish, folder, context).arms()
        _check_room(arms, conditions.nodes, folder)
        notes: list[str] = []
        with _opened(control, conditions) as (shape, on):
            reached = measure(on, shape)
            layouts = sorted({place.layout for arm in arms for place in arm.places})
            with served(layouts, on, shape.ports[0]) as registry:
                rounds = Rounds(arms, conditions, on, registry, folder)
                try:
                    rounds.run(control.runs, context.progress)
                except KeyboardInterrupt:
                    if not rounds.samples:
                        raise
                    notes.append(_INTERRUPTED)
        notes += [note for note in (*on.notes, reached.note) if note]
        machine = describe(folder)
    facts = LinkFacts(on.how, control.bandwidth, reached.bandwidth, control.latency, control.connection)
    samples = tuple(rounds.samples)
    return BenchResult(
        schema=SCHEMA,
        began=began,
        command=conditions.command,
        engine="none",
        device=machine.gpu or "cpu",
        begins=conditions.begins,
        runs=control.runs,
        nodes=conditions.nodes,
        node_caches=False,
        link=facts,
        machine=machine,
        arms=tuple(arm.arm for arm in arms),
        samples=samples,
        figures=figures(samples),
        ratios=ratios(samples, arms[0].arm.name),
        floors=floors(samples, facts, conditions.nodes),
        notes=tuple(notes if machine.gpu else [_NO_GPU, *notes]),
    )


def _check_room(arms: Sequence[Prepared], nodes: int, folder: Path) -> None:
    """Every node keeps an unpacked image, and its weights as they came and as files."""
    needed = nodes * int(_ROOM * max(arm.arm.unpacked + 2 * arm.arm.weights_stored for arm in arms))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DestinationError(
            f"{folder.parent} has {format_size(free)} free, and {nodes} unpacked images need {format_size(needed)}; "
            "set SLIMGPU_CACHE_DIR to a larger disk"
        )


@contextmanager
def _opened(control: Control, conditions: Conditions) -> Iterator[tuple[Shape, Link]]:
    """The link between the registry and the nodes."""
    shape = Shape(
        bandwidth=control.bandwidth,
        ports=free_ports(1),
        latency=control.latency,
        connection=control.connection,
        nodes=conditions.nodes,
        node_bandwidth=control.node_bandwidth,
    )
    with link(shape) as on:
        yield shape, on
