"""What a link's registry serves: the layouts that arms lie in, each under a name."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from slimgpu.bench.pages import warm
from slimgpu.bench.registry import layout_registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from slimgpu.bench.link.values import Link
    from slimgpu.bench.prepare import Place


class Served:
    """Places by the names under which nodes find them."""

    def __init__(self, names: Mapping[Path, str], host: str) -> None:
        self._names = names
        self._host = host

    def reference(self, place: Place) -> str:
        """What a node asks for: by digest, so that nothing else can be meant."""
        return f"docker://{self._host}/{self._names[place.layout]}@{place.digest}"

    def warm(self, places: Sequence[Place]) -> None:
        """Have what will be asked for in the page cache: a registry's disk is not what is measured."""
        warm(file for place in places for file in place.files())


@contextmanager
def served(layouts: Sequence[Path], link: Link, port: int) -> Iterator[Served]:
    """Serve ``layouts`` on the link's registry side until the block ends; raises as `layout_registry` does."""
    names = {layout: f"bench/{number}" for number, layout in enumerate(layouts)}
    host, at = link.address(port)
    with layout_registry(link, port, {name: layout for layout, name in names.items()}):
        yield Served(names, f"{host}:{at}")
