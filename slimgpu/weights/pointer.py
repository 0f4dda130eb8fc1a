"""What an image whose weights were taken out says of them: in its configuration, and in a file where they were."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from slimgpu.errors import ImageError, UsageError
from slimgpu.oci.digest import is_digest
from slimgpu.oci.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slimgpu.oci.config import ImageConfig

SCHEMA: Final = "slimgpu.pointer.v1"
POINTER_FILE: Final = "slimgpu-weights.json"
"""In each directory that weights, or links to them, were in."""
REF_LABEL: Final = "slimgpu.weights.ref"
INDEX_LABEL: Final = "slimgpu.weights.index"


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where the weights of an image are."""

    ref: str
    """The artifact's name, as everywhere."""
    index: str
    """Digest of the artifact's configuration, which stays the same whatever the artifact is attached to."""
    root: str = "/"
    """The directory of the image that the artifact's paths are relative to."""

    def dump(self) -> bytes:
        """The pointer file, always the same bytes for the same value."""
        document = {"schema": SCHEMA, "ref": self.ref, "index": self.index, "root": self.root}
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"

    @property
    def labels(self) -> Mapping[str, str]:
        """The same as labels of the image's configuration, and annotations of its manifest."""
        return {REF_LABEL: self.ref, INDEX_LABEL: self.index}


def pointer_of(config: ImageConfig) -> Pointer | None:
    """What an image's labels say of its weights; None when they say nothing. `ImageError` for a malformed pointer."""
    labels = config.runtime.get("Labels")
    if not isinstance(labels, dict) or REF_LABEL not in labels:
        return None
    return _checked(labels[REF_LABEL], labels.get(INDEX_LABEL), "/", f"the label {REF_LABEL}")


def parse_pointer(data: bytes, what: str = POINTER_FILE) -> Pointer:
    """The pointer in a file; `ImageError` naming ``what`` when it is none that can be followed."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not JSON; build the image again") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ImageError(f"{what} is no pointer of the schema {SCHEMA}; use the slimgpu that wrote it, or a newer one")
    return _checked(document.get("ref"), document.get("index"), document.get("root"), what)


def _checked(ref: Any, index: Any, root: Any, what: str) -> Pointer:
    try:
        parse_reference(ref if isinstance(ref, str) and _is_text(ref) else "")
    except UsageError as error:
        raise ImageError(f"{what} names no weights: {error}") from error
    if not isinstance(index, str) or not is_digest(index):
        raise ImageError(f"{what} has no valid digest of an index; build the image again")
    if not isinstance(root, str) or not _is_path(root):
        raise ImageError(f"{what} has no absolute path as its root; build the image again")
    return Pointer(ref, index, root)


def _is_path(root: str) -> bool:
    return root.startswith("/") and posixpath.normpath(root) == root and "\0" not in root and _is_text(root)


def _is_text(value: str) -> bool:
    """Whether no half of a character is in it, which JSON can hold, and no file system."""
    return value.isascii() or not any("\ud800" <= each <= "\udfff" for each in value)
