"""A weights artifact in a store: its index, and where its chunks can be read."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimgpu.oci.image import Artifact
from slimgpu.store.ranges import RangeSource
from slimgpu.store.transport import open_artifact
from slimgpu.weights.index import Index, parse_index

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.oci.reference import Reference
    from slimgpu.store.context import Context


@dataclass(frozen=True, slots=True)
class Weights:
    """An artifact that is open."""

    artifact: Artifact
    index: Index
    source: RangeSource


@contextmanager
def open_weights(reference: Reference, context: Context) -> Iterator[Weights]:
    """The weights artifact that ``reference`` names.

    Raises what `slimgpu.store.transport.open_artifact` raises, and `ImageError` for anything but weights.
    """
    with open_artifact(reference, context.cache, context.progress) as (artifact, source):
        yield Weights(artifact, index_of(artifact), source)


def index_of(artifact: Artifact) -> Index:
    """The artifact's index, checked."""
    return parse_index(artifact.manifest.config.media_type, artifact.raw_config, artifact.name)
