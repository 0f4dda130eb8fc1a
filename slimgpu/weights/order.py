"""The order in which a model needs its tensors: embeddings, then layer by layer, then what follows the last one."""

from __future__ import annotations

import re
from typing import Final

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|blk|stages?|transformer_blocks|resblocks)\.(\d{1,9})(?:\.|$)")
_NUMBER: Final = re.compile(r"\.(\d{1,9})\.")
_LAST: Final = re.compile(
    r"(?:^|\.)(?:lm_head|output|output_norm|norm|final_norm|ln_f|final_layer_?norm|head|heads|classifier|pooler|score|"
    r"embed_out|proj_out)(?:\.|$)"
)
_DECODER: Final = re.compile(r"(?:^|\.)decoder(?:\.|$)")

Rank = tuple[int, int, int]


def rank(name: str) -> Rank:
    """Sorts tensors by when they are needed: (decoder after encoder, before/in/after the layers, layer)."""
    half = 1 if _DECODER.search(name) else 0
    match = _LAYER.search(name) or _NUMBER.search(name)
    if match:
        return half, 1, int(match[1])
    return (half, 2, 0) if _LAST.search(name) else (half, 0, 0)


def stage(names: list[str], world: int) -> dict[str, int]:
    """Which of ``world`` pipeline stages needs each tensor.

    Embeddings go with the first stage, heads with the last, and each has its share of the layers, as HydraServe
    (NSDI 2026) splits a model for a cold start.
    """
    layers = sorted({found for found in map(rank, names) if found[1] == 1})
    numbers = {layer: position * world // len(layers) for position, layer in enumerate(layers)}
    return {name: _stage(rank(name), numbers, world) for name in names}


def _stage(found: Rank, numbers: dict[Rank, int], world: int) -> int:
    if found[1] == 1:
        return numbers[found]
    return 0 if found[1] == 0 else world - 1
