"""A llama-shaped model of random bf16 values as sharded safetensors, the same bytes for the same seed; numpy only.

Values are drawn as a trained model's are distributed: normal, with the deviation ``fan_in ** -0.5``. What compresses
in a model are its exponents, and theirs come out as those of real checkpoints (``benchmarks/codec.py`` shows both).
"""

from __future__ import annotations

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from slimgpu.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WIDTH = 2
_HEAD = 8
_KEY_VALUE_SHARE = 4
"""Heads of queries for one of keys and values."""
_HIDDEN = ((1_500_000_000, 2048), (100_000_000, 1024), (10_000_000, 256), (0, 64))
"""From how many bytes on a model is this wide."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a model is."""

    hidden: int
    layers: int
    vocabulary: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each tensor, in the model's order."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            yield from self._layer(f"model.layers.{layer}.")
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def _layer(self, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, inner = self.hidden, self.hidden * 11 // 4
        yield f"{prefix}self_attn.q_proj.weight", (hidden, hidden)
        yield f"{prefix}self_attn.k_proj.weight", (hidden // _KEY_VALUE_SHARE, hidden)
        yield f"{prefix}self_attn.v_proj.weight", (hidden // _KEY_VALUE_SHARE, hidden)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, hidden)
        yield f"{prefix}mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(_WIDTH * math.prod(shape) for _, shape in self.tensors())


def shape_of(size: int) -> Shape:
    """A model of about ``size`` bytes, and not less."""
    hidden = next(hidden for least, hidden in _HIDDEN if size >= least)
    vocabulary = min(32000, hidden * 16)
    empty = Shape(hidden, 0, vocabulary).size
    layer = Shape(hidden, 1, vocabulary).size - empty
    return Shape(hidden, max(1, math.ceil((size - empty) / layer)), vocabulary)


def normal(shape: Sequence[int], seed: Sequence[int]) -> np.ndarray:
    """Trained-like fp32 values; ``seed`` is any row of numbers."""
    values = np.random.default_rng(seed).standard_normal(math.prod(shape), dtype=np.float32)
    values *= np.float32(shape[-1] ** -0.5)
    return values


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Fp32 rounded to nearest, ties to even, as the 16 bits of bf16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_model(folder: Path, shape: Shape, shards: int = 2, seed: int = 7) -> int:
    """Write the model's files to ``folder``; gives the bytes of its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = list(shape.tensors())
    count = -(-len(tensors) // shards)
    parts = [tensors[start : start + count] for start in range(0, len(tensors), count)]
    names = ["model.safetensors"]
    if len(parts) > 1:
        names = [f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors" for number in range(len(parts))]
        weight_map = {name: file for file, part in zip(names, parts, strict=True) for name, _ in part}
        index = {"metadata": {"total_size": shape.size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "vocab_size": shape.vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for number, (name, part) in enumerate(zip(names, parts, strict=True)):
        _write_shard(folder / name, part, (seed, number))
    return shape.size


def _write_shard(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], seed: tuple[int, ...]) -> None:
    """Tensors sorted by name, as safetensors' own writer does for one type."""
    header = {}
    places = []
    end = 0
    for name, shape in sorted(tensors):
        start, end = end, end + _WIDTH * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        places.append((start, shape))
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % _HEAD)

    with path.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        file.write(len(head).to_bytes(_HEAD, "little") + head)
        file.flush()

        def write(number: int) -> None:
            start, shape = places[number]
            data = memoryview(to_bf16(normal(shape, (*seed, number)))).cast("B")
            assert os.pwrite(file.fileno(), data, _HEAD + len(head) + start) == len(data)

        list(pool.map(write, range(len(places))))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--size", default="2GB", show_default=True, help="Bytes of all tensors, at least.")
@click.option("--layers", type=click.IntRange(0), help="Instead of as many as the size needs.")
@click.option("--hidden", type=click.IntRange(8), help="Instead of a width that suits the size; a multiple of 4.")
@click.option("--shards", default=2, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=7, show_default=True)
def main(folder: Path, size: str, layers: int | None, hidden: int | None, shards: int, seed: int) -> None:
    """Write a model to FOLDER."""
    try:
        shape = shape_of(parse_size(size))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    shape = Shape(hidden or shape.hidden, shape.layers if layers is None else layers, shape.vocabulary)
    written = write_model(folder, shape, shards, seed)
    click.echo(f"{folder}: {format_size(written)} in {shape.layers} layers of width {shape.hidden}")


if __name__ == "__main__":
    main()
