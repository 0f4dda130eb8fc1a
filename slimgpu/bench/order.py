"""What a node is told to do, and what it tells: the values that go between the processes of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slimgpu.bench.output import Wanted
from slimgpu.bench.results import Span

Begins = Literal["registry", "disk", "memory"]


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that come beside the image."""

    kind: Literal["files", "artifact"]
    """Plain files as blobs of a ModelPack artifact, or slimgpu's own artifact."""
    ref: str
    """The artifact, by digest."""
    root: str
    """The directory of the image that the artifact's paths are relative to."""
    attach: bool
    """Whether the program loads them from shared memory while they come; else they are files before it starts."""


@dataclass(frozen=True, slots=True)
class Order:
    """One cold start on one node."""

    node: int
    image: str
    """By digest."""
    platform: str
    command: tuple[str, ...]
    """Instead of the image's own; () for that one."""
    environment: dict[str, str]
    weights: Weights | None
    wanted: Wanted
    begins: Begins
    folder: Path
    """What the node keeps lies below it."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it; times are as in `slimgpu.bench.results.Sample`."""

    total: float | None
    warm: float | None
    answer: float | None
    spans: tuple[Span, ...]
    warm_spans: tuple[Span, ...]
    processor: float
    resident: float | None
    output: str
    failure: str
