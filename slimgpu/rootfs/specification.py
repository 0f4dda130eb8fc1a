"""What `slimgpu.rootfs.run` hands to the processes that it starts, as JSON: everything looked up, users as numbers."""

from __future__ import annotations

from typing import TypedDict


class Specification(TypedDict):
    """See `slimgpu.rootfs.command.Command`."""

    root: str
    arguments: list[str]
    environment: dict[str, str]
    variable: str
    """Where the command finds the moment at which it began."""
    uid: int
    gid: int
    groups: list[int]
    directory: str
    mounts: list[tuple[str, str, bool]]
    """Source, target and whether it can be written."""
    files: dict[str, str]
    """Small files of the command's own: contents by path."""
    hostname: str
    network: bool
    shared_memory: int
    new_privileges: bool
