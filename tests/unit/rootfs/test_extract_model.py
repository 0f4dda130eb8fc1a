"""Layers written to one directory against the merged tree, which has a model of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given

from slimgpu.errors import ImageError
from slimgpu.rootfs.extract import extract
from slimgpu.rootfs.tarstream import TarStream
from slimgpu.rootfs.tree import merge
from tests.support.fuzz import examples
from tests.support.stacks import Listing, in_tree, layers, on_disk, tar_of_entries

if TYPE_CHECKING:
    from slimgpu.rootfs.entry import Entry


def written(stack: list[list[Entry]]) -> Listing | None:
    """What is in the directory in the end; None where it is refused."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        for number, layer in enumerate(stack):
            tar = tar_of_entries(layer)
            pieces = (tar[at : at + 700] for at in range(0, len(tar), 700))
            try:
                extract(TarStream(pieces, "it"), Path(root), f"layer {number}", alone=False)
            except ImageError as error:
                message = str(error)
                assert f"layer {number}" in message
                return None
        return on_disk(Path(root))


def whiteouts_first(layer: list[Entry]) -> list[Entry]:
    return sorted(layer, key=lambda entry: not entry.name.startswith(".wh."))


@examples(300)
@given(layers)
def test_what_is_written_is_the_merged_tree(stack: list[list[Entry]]) -> None:
    stack = [whiteouts_first(layer) for layer in stack]
    try:
        tree = merge(stack, [f"layer {number}" for number in range(len(stack))])
    except ImageError:
        assert written(stack) is None
        return
    assert written(stack) == in_tree(tree)
