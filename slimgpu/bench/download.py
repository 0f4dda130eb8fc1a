"""Weights as plain files, the peer of the artifact: many ranges at once, straight into files, nothing checked.

``python -m slimgpu.bench.download REF DIRECTORY`` fetches the layers of a ModelPack artifact, as the fastest ordinary
downloaders do.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slimgpu.errors import ImageError
from slimgpu.oci.reference import parse_reference
from slimgpu.progress import SILENT
from slimgpu.store.cache import Cache
from slimgpu.store.transport import open_artifact
from slimgpu.weights.index import is_safe
from slimgpu.weights.modelpack import FILEPATH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.oci.manifest import Descriptor
    from slimgpu.oci.reference import Reference
    from slimgpu.store.ranges import RangeSource

CONNECTIONS: Final = 16
_RANGE: Final = 8 * 1024 * 1024


def download(reference: Reference, folder: Path, cache: Cache) -> None:
    """Fetch every file of the artifact to ``folder``; raises what opening and reading an artifact raise."""
    with open_artifact(reference, cache, SILENT) as (artifact, source), ThreadPoolExecutor(CONNECTIONS) as pool:
        parts = [part for layer in artifact.layers for part in _parts(layer.descriptor, folder)]
        list(pool.map(lambda part: _fetch(source, *part), parts))


def _parts(file: Descriptor, folder: Path) -> Iterator[tuple[Path, str, int, int]]:
    """Path, digest, offset and size of each range of a file, which is made as long as it will be."""
    name = (file.annotations or {}).get(FILEPATH, "")
    if not is_safe(name):
        raise ImageError(f"the blob {file.digest} names no file of a model; export the weights again")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as made:
        made.truncate(file.size)
    for offset in range(0, file.size, _RANGE):
        yield path, file.digest, offset, min(_RANGE, file.size - offset)


def _fetch(source: RangeSource, path: Path, digest: str, offset: int, size: int) -> None:
    buffer = memoryview(bytearray(size))
    source.read_into(digest, offset, buffer)
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        while buffer:
            buffer = buffer[file.write(buffer) :]


if __name__ == "__main__":
    download(parse_reference(sys.argv[1]), Path(sys.argv[2]), Cache())
