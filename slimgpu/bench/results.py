"""What a benchmark of cold starts comes to: plain values, each sample as it was taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slimgpu.events import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA: Final = "slimgpu.bench.v1"
TOTAL: Final = "total"
WARM: Final = "warm"
ANSWER: Final = "answer"
STAGES: Final = (TOTAL, WARM, ANSWER, *Stage)
"""All that a figure can be of."""


@dataclass(frozen=True, slots=True)
class Span:
    """One stage of one cold start, or a part of one; spans overlap."""

    stage: Stage
    begin: float
    """Seconds since the cold start began."""
    end: float
    what: str = ""
    """What it was done to: a layer's digest, a module; empty for the stage as a whole."""


def stretches(spans: Iterable[Span]) -> tuple[tuple[float, float], ...]:
    """When any of the spans was under way: begin and end of each stretch; those that overlap or touch are one."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted((span.begin, span.end) for span in spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return tuple(merged)


@dataclass(frozen=True, slots=True)
class Sample:
    """One cold start on one node."""

    arm: str
    round: int
    """From 0."""
    node: int
    """From 0; all nodes of a round start at the same moment."""
    total: float | None
    """Seconds from nothing to the first output; None when it failed."""
    warm: float | None
    """Seconds of a second start right after it, with everything here and in the page cache."""
    answer: float | None
    """Seconds of a second output of the same process, where it answers requests."""
    spans: tuple[Span, ...]
    warm_spans: tuple[Span, ...]
    """The same of the second start."""
    wire: int
    """Bytes that arrived over the link from the registry, headers included."""
    peers: int
    """Bytes that arrived from other nodes."""
    connections: int
    """The most that were open to the registry at the same time."""
    processor: float
    """Seconds of processor time of everything that ran on the node."""
    resident: float | None
    """The share of the files in the page cache when it began from the disk; None when it began from nothing."""
    load: float
    """The machine's load average when it began."""
    output: str
    """The first output, cut to its beginning."""
    failure: str = ""
    """Why there is no first output, in one sentence."""


@dataclass(frozen=True, slots=True)
class Category:
    """Bytes of an image's files of one kind, as `slimgpu.analysis` groups them."""

    name: str
    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to a first output."""

    name: str
    what: str
    """In one sentence."""
    image: str
    """The image's reference, as it was given or made."""
    digest: str
    stored: int
    """Bytes of all layers to pull."""
    unpacked: int
    layers: int
    weights: str
    """Where weights come from: ``image``, ``files`` (safetensors beside the image), ``artifact``, or nothing."""
    weights_stored: int
    """Bytes of weights to fetch beside the image."""
    categories: tuple[Category, ...]


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """The link between registry and nodes."""

    how: str
    """What shapes it."""
    bandwidth: float | None
    """Bit/s of the registry, for all nodes together; None when it is not limited."""
    reached: float | None
    """Bit/s that the link was measured to carry, with nothing but the link in the way."""
    latency: float
    """Seconds one way."""
    connection: float | None
    """Bit/s of one connection; None when it is not limited."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a figure depends on beside the code."""

    cpu: str
    cores: int
    """Those that this process may use."""
    memory: int
    """Bytes."""
    kernel: str
    disk: str
    """Device, file system and options of the disk that roots are unpacked to."""
    gpu: str | None
    driver: str | None
    versions: dict[str, str]
    """Of slimgpu, Python, the registry, the engine, and frameworks that were imported."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity of one arm over its samples that ended well."""

    arm: str
    stage: str
    """A `Stage`, or ``total``, ``warm``, ``answer``."""
    count: int
    p50: float
    p95: float
    most: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster an arm is than the first one: the ratio of medians, rounds resampled."""

    arm: str
    stage: str
    base: str
    ratio: float
    low: float | None
    """The 95 % interval, by bootstrap over rounds; None with fewer rounds than such an interval takes."""
    high: float | None


@dataclass(frozen=True, slots=True)
class Floor:
    """What no way could be faster than, for one arm."""

    arm: str
    wire: float
    """Seconds that its bytes take at the link's set rate, for all nodes together; 0 on an unlimited link."""
    warm: float | None
    """Median seconds of the second start; None when there was none."""

    @property
    def seconds(self) -> float:
        """The longer of both: at the very best one hides behind the other."""
        return max(self.wire, self.warm or 0.0)


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Everything that was measured, and on what."""

    schema: str
    began: str
    """ISO 8601, UTC."""
    command: tuple[str, ...]
    """What was started in each image."""
    engine: str
    """``none``, ``docker`` or ``containerd``, with its version."""
    device: str
    """``cpu``, or the GPU's name."""
    begins: str
    """What a cold start begins from: ``registry``, ``disk`` or ``memory``."""
    runs: int
    nodes: int
    node_caches: bool
    """Whether nodes serve each other what they have fetched."""
    link: LinkFacts
    machine: Machine
    arms: tuple[Arm, ...]
    samples: tuple[Sample, ...]
    figures: tuple[Figure, ...]
    ratios: tuple[Ratio, ...]
    floors: tuple[Floor, ...]
    notes: tuple[str, ...] = field(default=())
    """What a reader has to know: no GPU, interrupted, a link below its rate."""
