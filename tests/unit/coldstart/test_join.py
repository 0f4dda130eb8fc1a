"""Layers written side by side and mounted over each other against the merged tree."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given

from slimgpu.coldstart.join import EMPTY, copy_root, join
from slimgpu.errors import ImageError
from slimgpu.rootfs.extract import Extracted, extract
from slimgpu.rootfs.tarstream import TarStream
from slimgpu.rootfs.tree import merge
from slimgpu.store.mounts import overlaid
from tests.support.fuzz import examples
from tests.support.stacks import Listing, in_tree, layers, on_disk, tar_of_entries

if TYPE_CHECKING:
    from slimgpu.rootfs.entry import Entry


def mounted(stack: list[list[Entry]]) -> Listing | None:
    """What is in the mount in the end; None where a layer is refused."""
    tars = [tar_of_entries(layer) for layer in stack]

    def write(number: int, root: Path, *, alone: bool) -> Extracted:
        return extract(TarStream(iter([tars[number]]), "it"), root, f"layer {number}", alone=alone)

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        place = Path(folder)
        try:
            found = []
            for number in range(len(stack)):
                (place / str(number)).mkdir()
                found.append(write(number, place / str(number), alone=True))
            join(place, found, lambda number, root: write(number, root, alone=False))
        except ImageError:
            return None
        lower = [*(str(number) for number in reversed(range(len(stack)))), EMPTY]
        with overlaid(place, lower, "root", writable=True) as root:
            copy_root(place / lower[0], place / "root.upper")
            return on_disk(root)


def whiteouts_first(layer: list[Entry]) -> list[Entry]:
    return sorted(layer, key=lambda entry: not entry.name.startswith(".wh."))


@examples(300)
@given(layers)
def test_what_is_mounted_is_the_merged_tree(stack: list[list[Entry]]) -> None:
    stack = [whiteouts_first(layer) for layer in stack]
    try:
        tree = merge(stack, [f"layer {number}" for number in range(len(stack))])
    except ImageError:
        assert mounted(stack) is None
        return
    assert mounted(stack) == in_tree(tree)
