"""Model weights: those that can leave the image, and what else looks like some."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slimgpu.analysis.rules.rule import Effect, Match, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.analysis.facts import Facts

_MIN: Final = 1024 * 1024
_ZIP: Final = b"PK\x03\x04"
_PICKLE: Final = re.compile(r".*\.(pt|pth|bin|ckpt)")


def weights_format(name: str, size: int, magic: bytes) -> str:
    """The format of a file of weights; '' when it is none.

    Sources: https://github.com/huggingface/safetensors#format, GGUF's specification in ggml/docs/gguf.md,
    torch.save's zip of a pickle (``archive/data.pkl``).
    """
    if magic.startswith(b"GGUF"):
        return "GGUF"
    header = int.from_bytes(magic[:8], "little")
    if len(magic) > 9 and 2 <= header <= size - 8 and magic[8:10] in (b'{"', b"{ ", b"{}"):  # noqa: PLR2004
        return "safetensors"
    if size >= _MIN and name.endswith((".onnx", ".onnx_data", ".onnx.data")):
        return "ONNX"
    if size >= _MIN and magic.startswith((_ZIP, b"\x80\x02")) and _PICKLE.fullmatch(name):
        return "torch pickle"
    if size >= _MIN and name.endswith((".engine", ".plan")):
        return "TensorRT engine"
    return ""


def _baked(facts: Facts) -> Iterator[Match]:
    for path, found in facts.weights.items():
        if not found.stays:
            yield Match(path, found.described)


def _other(facts: Facts) -> Iterator[Match]:
    for path, node in facts.files.files():
        found = facts.weights.get(path)
        if found is not None:
            if found.stays:
                yield Match(path, f"{found.described}: {found.stays}")
            continue
        entry = node.inode.entry
        kind = weights_format(path.rpartition("/")[2], entry.size, entry.magic)
        if kind:
            yield Match(path, kind)


RULES: Final = (
    Rule(
        "weights.baked",
        "weights",
        "model weights in the image",
        "they change at another pace than the code and are pulled with it; `build --weights split` makes them an "
        "artifact of their own, which is fetched in parallel.",
        Effect.KEEP,
        _baked,
    ),
    Rule(
        "weights.other",
        "weights",
        "weights that go with the code",
        "they are small, sparse, damaged, part of a package, or code as well (engines, graphs), and "
        "`build --weights split` leaves them where they are.",
        Effect.KEEP,
        _other,
    ),
)
