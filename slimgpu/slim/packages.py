"""Tool packages that leave whole, and so have to leave dpkg's database as well.

A package of which something stays also stays in the database, with dpkg's own files about it, so that dpkg, apt and
scanners go on telling the truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slimgpu.analysis.debian import STATUS
from slimgpu.analysis.tools import leads_to_library
from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from slimgpu.analysis.debian import DebianPackage
    from slimgpu.analysis.facts import Facts


def leaving(facts: Facts, gone: Callable[[str], bool]) -> list[DebianPackage]:
    """The tool packages all of whose files are gone, but for what a staying package names or loads too.

    None leaves when the database is no ordinary file, which we could not edit.
    """
    status = facts.files.nodes.get(STATUS)
    if status is None or status.inode.entry.kind is not Kind.FILE:
        return []
    removable = facts.apt_tools.removable
    staying = {path for package in facts.packages if package.name not in removable for path in package.files}

    def lost(path: str) -> bool:
        return gone(path) or path in staying or leads_to_library(facts, path)

    def is_lost(package: DebianPackage) -> bool:
        leaves = [path for path in package.files if facts.files.nodes[path].children is None]
        return package.name in removable and any(map(gone, leaves)) and all(map(lost, leaves))

    return [package for package in facts.packages if is_lost(package)]
