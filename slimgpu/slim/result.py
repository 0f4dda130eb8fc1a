"""What a build came to, for reports."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.slim.plan import Do, Held
from slimgpu.slim.weights import DROP, SPLIT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slimgpu.analysis.facts import Facts
    from slimgpu.oci.image import Image
    from slimgpu.slim.build import Built
    from slimgpu.slim.plan import Plan

SCHEMA: Final = "slimgpu.build.v1"


@dataclass(frozen=True, slots=True)
class Size:
    """An image's size."""

    stored: int
    """Bytes of the layers as they are pulled."""
    unpacked: int
    """Bytes of the files that a container sees, hard links counted once."""
    files: int
    layers: int


@dataclass(frozen=True, slots=True)
class RuleTotal:
    """What one rule did."""

    rule: str
    do: Do
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class LayerResult:
    """A layer of the slim image."""

    name: str
    digest: str
    diff_id: str
    media_type: str
    stored: int


@dataclass(frozen=True, slots=True)
class WeightsResult:
    """Weights that left the image."""

    files: int
    bytes: int
    """Unpacked, hard links counted once."""
    ref: str = ""
    """Where they went; '' when they were dropped, and nothing below is known."""
    digest: str = ""
    """Of the artifact's manifest."""
    index: str = ""
    """Of its configuration, which the image names."""
    stored: int = 0
    """Bytes of the artifact's blobs as they are fetched."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Before and after."""

    schema: str
    image: str
    source: str
    digest: str
    """Of the slim image's manifest."""
    plan: str
    """The plan's digest."""
    before: Size
    after: Size
    hidden: int
    """Bytes of the original's layers that no container saw, gone by writing new layers."""
    rules: tuple[RuleTotal, ...]
    held: tuple[Held, ...]
    layers: tuple[LayerResult, ...]
    weights: WeightsResult | None
    """None when none left."""


def result_of(image: Image, facts: Facts, plan: Plan, built: Built, digest: str) -> BuildResult:
    """The result of a build whose image was stored under ``digest``."""
    files = [path for path, _ in facts.files.files()]
    stored = sum(layer.descriptor.size for layer in image.layers)
    unpacked = sum(facts.size(path) for path in files)
    new = [written.layer.descriptor for written in built.layers]
    return BuildResult(
        schema=SCHEMA,
        image=image.name,
        source=plan.source,
        digest=digest,
        plan=plan.digest,
        before=Size(stored, unpacked, len(files), len(image.layers)),
        after=Size(sum(d.size for d in new), built.unpacked, built.files, len(new)),
        hidden=sum(hidden.size for hidden in facts.files.tree.hidden),
        rules=tuple(rule_totals(plan)),
        held=plan.held,
        layers=tuple(
            LayerResult(
                w.name,
                w.layer.descriptor.digest,
                w.layer.diff_id,
                w.layer.descriptor.media_type,
                w.layer.descriptor.size,
            )
            for w in built.layers
        ),
        weights=weights_of(plan),
    )


def weights_of(plan: Plan) -> WeightsResult | None:
    """What the plan takes out; where it went is known later."""
    gone = [action.bytes for action in plan.actions if action.rule in (SPLIT, DROP) and action.do is Do.DROP]
    return WeightsResult(len(gone), sum(gone)) if gone else None


def rule_totals(plan: Plan) -> Iterable[RuleTotal]:
    """Each rule's actions counted, those that save most first."""
    files: Counter[tuple[str, Do]] = Counter()
    counts: Counter[tuple[str, Do]] = Counter()
    for action in plan.actions:
        key = (action.rule, action.do)
        files[key] += 1
        counts[key] += action.bytes
    for rule, do in sorted(files, key=lambda key: (-counts[key], key)):
        yield RuleTotal(rule, do, files[rule, do], counts[rule, do])
