"""What becomes of an image's weights: which files leave, and which directories say where they went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from slimgpu.analysis.weights import leading_to
from slimgpu.errors import UsageError
from slimgpu.oci.reference import DaemonReference, PathReference, PathTransport, RegistryReference
from slimgpu.weights.pointer import POINTER_FILE, pointer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from slimgpu.analysis.facts import Facts
    from slimgpu.oci.reference import Reference

SPLIT: Final = "weights.split"
DROP: Final = "weights.drop"
POINTER: Final = "weights.pointer"


@dataclass(frozen=True, slots=True)
class Weights:
    """What a build does with weights."""

    mode: Literal["keep", "split", "drop"] = "keep"
    ref: str = ""
    """For ``split``, the artifact that they go to."""

    @property
    def rule(self) -> str:
        """By which files leave."""
        return SPLIT if self.mode == "split" else DROP


KEEP: Final = Weights()


def check_artifact(reference: Reference, image: Reference | None) -> None:
    """Raise `UsageError` unless weights can be written to ``reference`` beside an image that goes to ``image``."""
    archive = isinstance(reference, PathReference) and reference.transport is not PathTransport.OCI
    if isinstance(reference, DaemonReference) or _is_dockers(reference):
        raise UsageError(
            f"{reference} can hold images only; name the artifact as docker://host/repo:tag, oci:dir[:tag] or "
            "oci-archive:file[:tag]"
        )
    if reference.digest:
        raise UsageError(f"{reference} names what is there by its digest; name what is written by a tag")
    if image is None or not share_place(reference, image):
        return
    if archive or _tag(reference) == _tag(image):
        raise UsageError(f"{reference} is where the image goes; give the weights a tag or a file of their own")


def _is_dockers(reference: Reference) -> bool:
    return isinstance(reference, PathReference) and reference.transport is PathTransport.DOCKER_ARCHIVE


def share_place(one: Reference, other: Reference) -> bool:
    """Whether two references name the same repository, directory or file."""
    if isinstance(one, PathReference) and isinstance(other, PathReference):
        return one.path.resolve() == other.path.resolve()
    if isinstance(one, RegistryReference) and isinstance(other, RegistryReference):
        return (one.host, one.repository) == (other.host, other.repository)
    return False


def _tag(reference: Reference) -> str | None:
    return None if isinstance(reference, DaemonReference) else reference.tag


def leaving(facts: Facts, is_kept: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """The weights that leave, each with what they are; what is kept under one name stays under all of them."""
    nodes = facts.files.nodes
    kept = {id(nodes[path].inode) for path in facts.weights if is_kept(path)}
    for path, found in facts.weights.items():
        if not found.stays and id(nodes[path].inode) not in kept:
            yield path, found.described


def pointers(facts: Facts, gone: Collection[str], is_gone: Callable[[str], bool]) -> Iterator[str]:
    """The pointer files for when ``gone`` have left: beside each, and beside each link that led there and stays.

    Raises `UsageError` for an image that has a pointer already.
    """
    links = (link for link, _ in leading_to(facts.files, gone) if not is_gone(link))
    directories = {path.rpartition("/")[0] for path in (*gone, *links)}
    places = [f"{directory}/{POINTER_FILE}".removeprefix("/") for directory in sorted(directories)]
    present = next((place for place in places if place in facts.files.nodes), None)
    before = pointer_of(facts.config) if places else None
    if before is not None or present is not None:
        where = before.ref if before is not None else f"what {present} names"
        raise UsageError(
            f"the image has weights although others of it are in {where} already; pull those into it before they are "
            "split again, or build with --weights keep"
        )
    yield from places
