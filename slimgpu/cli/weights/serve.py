"""``slimgpu weights serve``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import click

from slimgpu.cli.options import ArtifactType
from slimgpu.coldstart.shelf import CacheShelf
from slimgpu.errors import NotFoundError, UsageError
from slimgpu.oci.reference import PathReference, PathTransport
from slimgpu.store.cache import Cache
from slimgpu.store.serve import serving
from slimgpu.store.shelf import LayoutShelf

if TYPE_CHECKING:
    from slimgpu.oci.reference import Reference
    from slimgpu.store.shelf import Shelf

_LAST_PORT: Final = 65535
_NAP: Final = 0.5


@click.command("serve")
@click.argument("source", metavar="[SRC]", required=False, type=ArtifactType())
@click.option(
    "--listen",
    default="127.0.0.1:5005",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to answer; without encryption or authentication, so only on private networks.",
)
def command(source: Reference | None, listen: str) -> None:
    """Hand artifacts out to neighbours, read-only, as any registry does.

    What is handed out is what this machine has fetched from registries, also while more of it comes, or the OCI layout
    SRC (oci:DIR). Neighbours name this machine in SLIMGPU_PEERS. It prints its address, and ends with Ctrl-C or
    SIGTERM.
    """
    host, port = _address(listen)
    try:
        with serving(_shelf(source), host, port) as served:
            click.echo(f"{host}:{served.port}")
            sys.stdout.flush()
            while True:
                time.sleep(_NAP)  # not signal.pause(): a signal just before it would be slept through
    except KeyboardInterrupt:
        return


def _shelf(source: Reference | None) -> Shelf:
    if source is None:
        return CacheShelf(Cache())
    if not isinstance(source, PathReference) or source.transport is not PathTransport.OCI or source.identifier:
        raise UsageError(f"{source} is no OCI layout to serve; name a directory as oci:DIR, or nothing for the cache")
    if not (source.path / "index.json").exists():
        raise NotFoundError(f"{source} is not an OCI layout: index.json is missing")
    return LayoutShelf(source.path)


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > _LAST_PORT:
        raise UsageError(f"--listen {listen!r} is no address; write it like 127.0.0.1:5005")
    return host.strip("[]"), int(port)
