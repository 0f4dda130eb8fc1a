"""A small model in safetensors files, as large ones come: two shards with an index, a tokenizer, a link."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from tests.support.weight_files import entry, safetensors

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 512


def bf16(shape: tuple[int, ...], seed: int) -> bytes:
    """Values drawn like trained weights."""
    values = np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def shard(shapes: dict[str, tuple[int, ...]], seed: int) -> bytes:
    header, data = {}, b""
    for number, (name, shape) in enumerate(shapes.items()):
        values = bf16(shape, seed * 100 + number)
        header[name] = entry("BF16", shape, len(data), len(data) + len(values))
        data += values
    return safetensors(header, data)


def layers(first: int, last: int, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    return {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(first, last)
        for name, shape in {
            "self_attn.q_proj": (width, width),
            "mlp.up_proj": (4 * width, width),
            "norm": (width,),
        }.items()
    }


def write_model(root: Path, width: int = WIDTH, seed: int = 1) -> Path:
    """A directory with a model of 10 MB, or less or more with another ``width``."""
    root.mkdir(parents=True)
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    parts = ({"model.embed_tokens.weight": (1000, width), **layers(0, 1, width)}, layers(1, 3, width))
    places = {}
    for number, (name, shapes) in enumerate(zip(names, parts, strict=True)):
        (root / name).write_bytes(shard(shapes, seed + number))
        places |= dict.fromkeys(shapes, name)
    (root / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (root / "config.json").write_text('{"model_type": "llama"}')
    (root / "README.md").write_text("# A model\n")
    (root / "tools").mkdir()
    (root / "tools/convert.py").write_text("#!/usr/bin/env python3\n")
    (root / "tools/convert.py").chmod(0o755)
    (root / "tokenizer.json").write_text(json.dumps({"vocab": {str(n): n for n in range(5000)}}))
    (root / "tools/tokenizer.json").symlink_to("../tokenizer.json")
    return root


def tree_of(root: Path) -> dict[str, tuple[bytes | str, int]]:
    """Everything in a directory: bytes or a link's target, and whether it may be run."""
    found: dict[str, tuple[bytes | str, int]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(root))] = (str(path.readlink()), 0)
        elif path.is_file():
            found[str(path.relative_to(root))] = (path.read_bytes(), path.stat().st_mode & 0o100)
    return found
