"""The index of a model that is cut to several files, as transformers writes it.

Files: ``model.safetensors.index.json``, ``pytorch_model.bin.index.json`` and their like. Source:
https://huggingface.co/docs/transformers/big_models#sharded-checkpoints
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.weights.formats.broken import BrokenError, reading
from slimgpu.weights.formats.cursor import exactly
from slimgpu.weights.formats.documents import is_text, parse_object
from slimgpu.weights.formats.paths import beside

if TYPE_CHECKING:
    from slimgpu.weights.formats.tensor import Content

_MAX_INDEX: Final = 64 * 1024 * 1024
"""The largest in use are about 20 MB."""


def shard_index(name: str, content: Content) -> dict[str, str]:
    """By each tensor's name, the file that holds it, relative to the index's directory and never outside of it.

    Raises `ImageError` naming ``name`` for anything but an object with a map of texts named ``weight_map``.
    """
    with reading(name, "index of weight files"):
        if content.size > _MAX_INDEX:
            raise BrokenError(f"it has {content.size} bytes, and at most {_MAX_INDEX} are read")
        found = parse_object(exactly(content, 0, content.size)).get("weight_map")
        if not isinstance(found, dict) or not all(map(is_text, (*found, *found.values()))):
            raise BrokenError("its weight_map is no map of texts")
        places = {file: beside(file) for file in set(found.values())}
        return {tensor: places[file] for tensor, file in found.items()}
