"""The slim image: plan applied, checked, written as new layers under the old configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu import __version__
from slimgpu.errors import BrokenClosureError, UsageError
from slimgpu.layers.group import group_layers
from slimgpu.layers.write import WrittenLayer, write_layers
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.image import Image
from slimgpu.oci.mutate import compose
from slimgpu.rootfs.tree import Tree, merge
from slimgpu.slim.apply import apply, shrunk_files
from slimgpu.slim.check import check
from slimgpu.slim.weights import POINTER, SPLIT

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.analysis.facts import Facts
    from slimgpu.layers.compress import Format
    from slimgpu.rootfs.filesystem import FileSystem
    from slimgpu.slim.plan import Plan
    from slimgpu.store.context import Context
    from slimgpu.weights.pointer import Pointer

_LABEL: Final = "slimgpu"


@dataclass(frozen=True, slots=True)
class Built:
    """A slim image whose layers lie in the workspace that they were written to."""

    image: Image
    layers: Sequence[WrittenLayer]
    unpacked: int
    """Bytes of the files that a container sees, hard links counted once."""
    files: int


def check_source(plan: Plan, image: Image) -> None:
    """Raise `UsageError` unless the plan was made for this very image."""
    digest = digest_bytes(image.raw_manifest)
    if plan.source != digest:
        raise UsageError(f"the plan was made for {plan.source}, but {image.name} is {digest}; make a new plan")


def build(
    image: Image,
    facts: Facts,
    plan: Plan,
    layer_format: Format,
    blobs: Path,
    context: Context,
    *,
    pointer: Pointer | None = None,
) -> Built:
    """Build the image that ``plan`` describes; its layers go to ``blobs/sha256``.

    ``pointer`` says where the weights went that the plan splits (`slimgpu.slim.split`).

    Raises `BrokenClosureError` before anything is written when the result would lack what it needs.
    """
    check_source(plan, image)
    _check_pointer(plan, pointer)
    content = b"" if pointer is None else pointer.dump()
    with apply(plan, facts.files, shrunk_files(plan, facts.files, context), content) as slim:
        check(facts, plan, slim)
        plans = group_layers(slim, facts.owners)
        layers = write_layers(slim, plans, layer_format, blobs, context)
        _compare(slim, layers)
        inodes = [node.inode for _, node in slim.files()]
    unpacked = sum({id(inode): inode.entry.size for inode in inodes}.values())
    return Built(_compose(image, plan, layers, pointer), layers, unpacked, len(inodes))


def _check_pointer(plan: Plan, pointer: Pointer | None) -> None:
    """Weights that were not packed must not go, and a pointer must not lead nowhere."""
    needs = any(action.rule in (SPLIT, POINTER) for action in plan.actions)
    if needs != (pointer is not None):
        raise UsageError(f"the plan of {plan.image} and its weights do not belong together; make the plan again")


def _compose(image: Image, plan: Plan, layers: Sequence[WrittenLayer], pointer: Pointer | None) -> Image:
    said = {} if pointer is None else pointer.labels
    labels = {
        f"{_LABEL}.version": __version__,
        f"{_LABEL}.level": "safe",
        f"{_LABEL}.source.digest": plan.source,
        f"{_LABEL}.plan.digest": plan.digest,
    }
    config = image.config.with_layers(
        [written.layer.diff_id for written in layers],
        [f"slimgpu build: {written.name}" for written in layers],
        {**labels, **said},
    )
    annotations = {**(image.manifest.annotations or {}), **said}
    return compose(image.name, config, [written.layer for written in layers], annotations)


def _compare(slim: FileSystem, layers: Sequence[WrittenLayer]) -> None:
    """Stack what was written and hold it against what was meant: every path, every attribute, every link."""
    names = [written.name for written in layers]
    written = merge([written.entries for written in layers], names)
    if _facts_of(written) != _facts_of(slim.tree):
        raise BrokenClosureError("the written layers do not stack to the planned tree; please report this image")


def _facts_of(tree: Tree) -> dict[str, tuple[object, ...]]:
    first: dict[int, str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for path, node in tree.walk():
        entry = node.inode.entry
        owner = (entry.mode, entry.uid, entry.gid, entry.uname, entry.gname)
        content = (entry.size, entry.digest, entry.link, entry.device, entry.xattrs, entry.mtime)
        found[path] = (entry.kind, owner, content, first.setdefault(id(node.inode), path))
    return found
