"""What is compared: the image as it is and its peers, each as something that a registry on the link can serve.

What has to be made goes to one OCI layout in the benchmark's workspace; layouts that were named are served as they are.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from slimgpu.analysis.analysis import analyze
from slimgpu.bench.recompress import recompressed
from slimgpu.bench.results import Arm, Category
from slimgpu.errors import SlimgpuError, UsageError
from slimgpu.layers.compress import Format
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.manifest import Platform, parse_manifest
from slimgpu.oci.reference import PathReference, PathTransport, Reference, by_digest, parse_reference
from slimgpu.store.transport import open_artifact, open_image, open_sink
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.copy import copy_artifact
from slimgpu.weights.modelpack import export_modelpack
from slimgpu.weights.pointer import pointer_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from slimgpu.analysis.analysis import Analysis
    from slimgpu.oci.image import Image
    from slimgpu.store.context import Context
    from slimgpu.weights.pointer import Pointer

BEFORE: Final = "before"
ZSTD: Final = "before, zstd"
AFTER: Final = "after"
FILES: Final = "after, weights as files"
APART: Final = "after, weights apart"
NAMES: Final = (BEFORE, ZSTD, AFTER, FILES, APART)
_WHAT: Final = {
    BEFORE: "the image as it is",
    ZSTD: "its layers recompressed with zstd -3, one by one",
    AFTER: "the slim image, with weights in it where it has any",
    FILES: "the slim image without weights; they come beside it as plain files, 16 ranges at once, unchecked",
    APART: "the slim image without weights; they come beside it as slimgpu's artifact",
}
_PYTHON: Final = "python"
_OURS: Final = "slimgpu"


@dataclass(frozen=True, slots=True)
class Wish:
    """What to compare."""

    before: Reference
    after: Reference | None
    """None: build it."""
    weights: Reference | None
    """The artifact of AFTER's weights; None: the one that it points to."""
    build: tuple[str, ...]
    """Options for building it, like ``--gpu h100``."""
    arms: tuple[str, ...]
    """Patterns of names, as in the shell."""
    platform: Platform


@dataclass(frozen=True, slots=True)
class Place:
    """Something in an OCI layout, by digest."""

    layout: Path
    digest: str

    def files(self) -> Iterator[Path]:
        """The blobs that it names."""
        manifest = parse_manifest(self._path(self.digest).read_bytes(), self.digest)
        return (self._path(blob.digest) for blob in manifest.layers)

    def _path(self, digest: str) -> Path:
        algorithm, _, name = digest.partition(":")
        return self.layout / "blobs" / algorithm / name


@dataclass(frozen=True, slots=True)
class Beside:
    """Weights that come beside an image, see `slimgpu.bench.order.Weights`."""

    kind: Literal["files", "artifact"]
    place: Place
    root: str
    attach: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """An arm that can be served."""

    arm: Arm
    image: Place
    weights: Beside | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """All that is served for it."""
        return (self.image,) if self.weights is None else (self.image, self.weights.place)


class Preparation:
    """Makes the arms in ``folder``."""

    def __init__(self, wish: Wish, folder: Path, context: Context) -> None:
        self._wish = wish
        self._context = context
        self._made = folder / "made"

    def arms(self) -> list[Prepared]:
        """Every arm that was wished for, in the order of `NAMES`.

        Raises what reading, building and writing images raise, and `UsageError` when nothing is left to measure.
        """
        before = self._given(self._wish.before, "before")
        found = [self._arm(BEFORE, before)]
        if self._wants(ZSTD):
            found.append(self._arm(ZSTD, self._recompressed(before)))
        found += self._after(before)
        chosen = [each for each in found if self._wants(each.arm.name)]
        if not chosen:
            raise UsageError(f"no arm is called {', '.join(self._wish.arms)}; there are: {'; '.join(NAMES)}")
        return chosen

    def _wants(self, *names: str) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in self._wish.arms or ("*",))

    def _after(self, before: Place) -> Iterator[Prepared]:
        if not self._wants(AFTER, FILES, APART):
            return
        if self._wish.after is not None:
            image = self._given(self._wish.after, "after")
            pointer = self._pointer(image)
            if pointer is None and self._wish.weights is None:
                yield self._arm(AFTER, image)
                return
        else:
            if self._wants(AFTER):
                yield self._arm(AFTER, self._built(before, "after"))
            if not self._wants(FILES, APART):
                return
            split = ("--weights", "split", "--weights-to", f"oci:{self._made}:weights")
            image = self._built(before, "split", *split)
            pointer = self._pointer(image)
            if pointer is None:
                return
        yield from self._apart(image, pointer)

    def _apart(self, image: Place, pointer: Pointer | None) -> Iterator[Prepared]:
        """The image with its weights beside it."""
        named = self._wish.weights or parse_reference(pointer.ref if pointer is not None else "")
        root = "/" if pointer is None else pointer.root
        if self._wants(FILES):
            yield self._with(FILES, image, Beside("files", self._as_files(named), root, attach=False))
        if self._wants(APART):
            yield self._with(
                APART, image, Beside("artifact", self._artifact(named), root, attach=self._attaches(image))
            )

    def _given(self, reference: Reference, tag: str) -> Place:
        """The image where it is served from; one that lies in a layout already is served from there."""
        with open_image(reference, self._wish.platform, self._context.cache, self._context.progress) as image:
            if isinstance(reference, PathReference) and reference.transport is PathTransport.OCI:
                return Place(reference.path.resolve(), digest_bytes(image.raw_manifest))
            return self._stored(image, tag)

    def _stored(self, image: Image, tag: str) -> Place:
        destination = PathReference(PathTransport.OCI, self._made, tag)
        total = sum(layer.descriptor.size for layer in image.layers)
        progress = self._context.progress
        with open_sink(destination, self._context.cache) as sink, progress.task(f"storing {tag}", total) as task:
            return Place(self._made, sink.write(image, task))

    def _recompressed(self, before: Place) -> Place:
        destination = PathReference(PathTransport.OCI, self._made, "zstd")
        with (
            self._opened(before) as image,
            open_sink(destination, self._context.cache) as sink,
        ):
            made = recompressed(image, Format.ZSTD, sink.workspace / "blobs", self._context)
            total = sum(layer.descriptor.size for layer in made.layers)
            with self._context.progress.task("storing it", total) as task:
                return Place(self._made, sink.write(made, task))

    def _built(self, before: Place, tag: str, *options: str) -> Place:
        """What ``slimgpu build`` makes of it."""
        wish = self._wish
        command = [sys.executable, "-m", "slimgpu", "-q", "build", str(_reference(before)), "--to"]
        command += [f"oci:{self._made}:{tag}", "--platform", str(wish.platform)]
        made = subprocess.run([*command, *wish.build, *options], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - ourselves
        if made.returncode:
            raise SlimgpuError(f"{wish.before} could not be made slim, for the reason above; name AFTER yourself")
        return Place(self._made, made.stdout.split()[-1])

    def _as_files(self, named: Reference) -> Place:
        destination = PathReference(PathTransport.OCI, self._made, "files")
        with open_weights(named, self._context) as weights:
            return Place(self._made, export_modelpack(weights, destination, self._context))

    def _artifact(self, named: Reference) -> Place:
        """The artifact, copied unless it lies in a layout."""
        if isinstance(named, PathReference) and named.transport is PathTransport.OCI:
            with open_weights(named, self._context) as weights:
                return Place(named.path.resolve(), digest_bytes(weights.artifact.raw_manifest))
        destination = PathReference(PathTransport.OCI, self._made, "artifact")
        return Place(self._made, copy_artifact(named, destination, self._context))

    def _pointer(self, place: Place) -> Pointer | None:
        with self._opened(place) as image:
            return pointer_of(image.config)

    def _attaches(self, image: Place) -> bool:
        """Whether the image's programs can load through slimgpu."""
        return any(owner.kind == _PYTHON and owner.name == _OURS for owner in self._analysis(image).owners)

    def _arm(self, name: str, place: Place) -> Prepared:
        analysis = self._analysis(place)
        baked = any(group.name == "weights" for group in analysis.groups)
        with self._opened(place) as image:
            stored = sum(layer.descriptor.size for layer in image.layers)
            layers = len(image.layers)
        arm = Arm(
            name=name,
            what=_WHAT[name],
            image=str(_reference(place)),
            digest=place.digest,
            stored=stored,
            unpacked=analysis.unpacked,
            layers=layers,
            weights="image" if baked else "",
            weights_stored=0,
            categories=tuple(Category(group.name, group.bytes, group.files) for group in analysis.groups),
        )
        return Prepared(arm, place)

    def _with(self, name: str, image: Place, beside: Beside) -> Prepared:
        plain = self._arm(name, image)
        artifact = _reference(beside.place)
        with open_artifact(artifact, self._context.cache, self._context.progress) as (found, _):
            stored = sum(blob.descriptor.size for blob in found.layers)
        return replace(plain, arm=replace(plain.arm, weights=beside.kind, weights_stored=stored), weights=beside)

    def _opened(self, place: Place) -> AbstractContextManager[Image]:
        context = self._context
        return open_image(_reference(place), self._wish.platform, context.cache, context.progress)

    def _analysis(self, place: Place) -> Analysis:
        with self._opened(place) as image:
            return analyze(image, self._context)


def _reference(place: Place) -> Reference:
    return by_digest(PathReference(PathTransport.OCI, place.layout), place.digest)
