"""The registry behind a link: slimgpu's own read-only one over OCI layouts, or Debian's ``docker-registry``.

Its own is a process that ends with its owner: ``python -m slimgpu.bench.registry HOST PORT REPOSITORY=LAYOUT...``.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slimgpu.bench.link.helper import helper, say
from slimgpu.bench.link.keep import keep_arguments
from slimgpu.errors import MissingComponentError, NotFoundError, SlimgpuError
from slimgpu.oci.reference import is_repository
from slimgpu.store.serve import serving
from slimgpu.store.shelf import LayoutShelf

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from slimgpu.bench.link.values import Side
    from slimgpu.oci.manifest import Descriptor
    from slimgpu.store.shelf import ShelvedBlob

_MODULE: Final = "slimgpu.bench.registry"
_DEBIAN: Final = "docker-registry"


@contextmanager
def layout_registry(on: Side, port: int, layouts: Mapping[str, Path]) -> Iterator[None]:
    """Serve layouts, by their repositories, on ``on`` (a link's registry side, or `MACHINE`) until the block ends.

    Raises `NotFoundError` for a path that is no layout, and `MissingComponentError` when it can't listen.
    """
    for repository, layout in layouts.items():
        if not is_repository(repository):
            raise NotFoundError(f"{repository!r} cannot be a repository's name; use lower case, digits, . _ - and /")
        if not (layout / "oci-layout").is_file():
            raise NotFoundError(f"{layout} is no OCI layout; name a directory with an oci-layout file")
    served = [f"{repository}={layout.resolve()}" for repository, layout in layouts.items()]
    with helper("the registry", [on.host(), str(port), *served], on.command([]), _MODULE):
        yield


@contextmanager
def debian_registry(on: Side, port: int, storage: Path) -> Iterator[None]:
    """Serve ``storage`` with Debian's registry in the same way; it takes pushes, too.

    Raises `MissingComponentError` when it is not installed or doesn't start.
    """
    if shutil.which(_DEBIAN) is None:
        raise MissingComponentError(f"{_DEBIAN} must be installed to serve as Debian's registry does")
    storage.mkdir(parents=True, exist_ok=True)
    config = storage / "config.yml"
    config.write_text(json.dumps(_config(on.host(), port, storage)))  # which is YAML, too
    command = [_DEBIAN, "serve", str(config)]
    with helper(_DEBIAN, keep_arguments(on.host(), port, command), on.command([])):
        yield


def _config(host: str, port: int, storage: Path) -> dict[str, object]:
    """What it is told to do.

    Source: https://distribution.github.io/distribution/about/configuration/
    """
    return {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "cache": {}},
        "http": {"addr": f"{host}:{port}", "secret": "benchmark"},
    }


class LayoutShelves:
    """Several layouts, a repository each; see `slimgpu.store.shelf.Shelf`. Blobs are known by their digests alone."""

    def __init__(self, layouts: Mapping[str, Path]) -> None:
        self._shelves = {name: LayoutShelf(layout, name) for name, layout in layouts.items()}

    def manifest(self, repository: str, identifier: str) -> tuple[str, bytes] | None:
        """See `Shelf.manifest`."""
        shelf = self._shelves.get(repository)
        return shelf.manifest(repository, identifier) if shelf else None

    def blob(self, digest: str) -> ShelvedBlob | None:
        """See `Shelf.blob`."""
        found = (shelf.blob(digest) for shelf in self._shelves.values())
        return next((blob for blob in found if blob), None)

    def tags(self, repository: str) -> Sequence[str] | None:
        """See `Shelf.tags`."""
        shelf = self._shelves.get(repository)
        return shelf.tags(repository) if shelf else None

    def referrers(self, repository: str, digest: str) -> Sequence[Descriptor]:
        """See `Shelf.referrers`."""
        shelf = self._shelves.get(repository)
        return shelf.referrers(repository, digest) if shelf else ()


def _main(host: str, port: str, *served: str) -> None:
    layouts = {name: Path(layout) for name, _, layout in (each.partition("=") for each in served)}
    try:
        with serving(LayoutShelves(layouts), host, int(port)) as found:
            say(found.port)
            sys.stdin.read()
    except SlimgpuError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main(*sys.argv[1:])
