"""Digests of tensors' values, whatever file they came in and however they were packed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slimgpu.weights.index import TensorEntry


def sha256(data: bytes | memoryview) -> str:
    """``sha256:<hex>`` of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tensor_digest(pieces: Iterable[str]) -> str:
    """The digest of a tensor from those of its pieces of 4 MiB (`slimgpu.weights.cut.PIECE`)."""
    return sha256(b"".join(bytes.fromhex(piece.removeprefix("sha256:")) for piece in pieces))


def values_digest(tensors: Iterable[TensorEntry]) -> str:
    """One digest for a set of tensors; a tensor that lies in several files counts once."""
    lines = {f"{t.name}\0{t.dtype}\0{','.join(map(str, t.shape))}\0{t.digest}\n" for t in tensors}
    return sha256("".join(sorted(lines)).encode("utf-8", "surrogatepass"))
