"""A weights artifact in a store: its index, and where its chunks can be read."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimgpu.errors import ImageError
from slimgpu.oci import media
from slimgpu.oci.reference import parse_reference
from slimgpu.store.transport import open_artifact
from slimgpu.weights.documents import KeptDocuments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.oci.image import Artifact  # noqa: TC004
    from slimgpu.oci.reference import Reference  # noqa: TC004
    from slimgpu.store.context import Context
    from slimgpu.store.ranges import RangeSource  # noqa: TC004
    from slimgpu.weights.index import Index  # noqa: TC004 - pydantic doesn't read `Weights`, and is not wanted yet
    from slimgpu.weights.pointer import Pointer


@dataclass(frozen=True, slots=True)
class Weights:
    """An artifact that is open."""

    reference: Reference
    """Its own, not that of an image that points to it."""
    artifact: Artifact
    index: Index
    source: RangeSource


@contextmanager
def open_weights(
    reference: Reference, context: Context, index: str | None = None, *, local: bool = False
) -> Iterator[Weights]:
    """The weights artifact that ``reference`` names, or that the image points to which it names.

    ``index`` is the digest of its index, where no other weights will do. ``local`` believes the disk tier, so that a
    registry is only asked for what isn't here, as far as digests tell what that is. Raises what
    `slimgpu.store.transport.open_artifact` raises, and `ImageError` for anything but these weights.
    """
    kept = KeptDocuments(context.cache, index) if local else None
    with open_artifact(reference, context.cache, context.progress, kept) as (artifact, source):
        pointer = _pointer(artifact)
        if pointer is None:
            if index not in (None, artifact.manifest.config.digest):
                raise ImageError(
                    f"{reference} no longer holds the weights that the image was built with; name them yourself"
                )
            yield Weights(reference, artifact, index_of(artifact), source)
            return
    with open_weights(parse_reference(pointer.ref), context, pointer.index, local=local) as weights:
        yield weights


def _pointer(artifact: Artifact) -> Pointer | None:
    """Where an image's weights are; None for what is no image."""
    if artifact.manifest.config.media_type not in media.CONFIGS:
        return None
    from slimgpu.oci.config import ImageConfig  # noqa: PLC0415 - pydantic: not before the first answer
    from slimgpu.weights.pointer import pointer_of  # noqa: PLC0415

    pointer = pointer_of(ImageConfig.parse(artifact.raw_config, artifact.name))
    if pointer is None:
        raise ImageError(
            f"{artifact.name} is an image, and points to no weights; name an artifact, or split it with slimgpu build "
            "--weights split"
        )
    return pointer


def index_of(artifact: Artifact) -> Index:
    """The artifact's index, checked."""
    from slimgpu.weights.index import parse_index  # noqa: PLC0415 - pydantic: not before the first answer

    return parse_index(artifact.manifest.config.media_type, artifact.raw_config, artifact.name)
