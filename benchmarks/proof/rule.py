"""The rule by which GPU code stays, stated once more and apart from slimgpu's own, for the proof."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proof.read import Entry

TEGRA = {32, 53, 62, 72, 87, 101, 110}
"""Embedded GPUs: that code for them runs on others of the same major version, or the reverse, is not promised."""


def stays(entries: Sequence[Entry], targets: Iterable[int]) -> list[Entry]:
    """What stays of one container for GPUs with these architectures, given as 90 for sm_90."""
    kept = [entry for target in targets for entry in _chosen(entries, target)]
    return [entry for entry in entries if entry in kept or entry.form == "other" or number(entry) == 0]


def number(entry: Entry) -> int:
    """Of an entry's architecture."""
    return int(re.sub(r"\D", "", entry.arch))


def runs(entry: Entry, target: int) -> bool:
    """A cubin of sm_XYa runs on X.Y; others on the same major version from their minor version on."""
    if entry.arch.endswith("a"):
        return number(entry) == target
    return number(entry) // 10 == target // 10 and number(entry) <= target


def compiles(entry: Entry, target: int) -> bool:
    """The driver compiles plain PTX for its own and later GPUs, other PTX for those on which such a cubin runs."""
    return runs(entry, target) if entry.arch[-1] in "af" else number(entry) <= target


def _chosen(entries: Sequence[Entry], target: int) -> list[Entry]:
    cubins = [entry for entry in entries if entry.form == "elf" and runs(entry, target)]
    sure = [e for e in cubins if number(e) == target or not {number(e), target} & TEGRA]
    best = max(map(number, sure), default=0)
    chosen = [entry for entry in cubins if number(entry) >= best]
    if not sure:
        ptx = [entry for entry in entries if entry.form == "ptx" and compiles(entry, target)]
        chosen += [entry for entry in ptx if number(entry) == max(map(number, ptx))]
    return chosen + [entry for entry in entries if entry.form == "lto" and compiles(entry, target)]
