"""Moving an artifact: from any store to any other, or to a directory with the files that were packed."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from slimgpu.errors import DestinationError
from slimgpu.store.transport import open_artifact_sink
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.fetch import Fetcher
from slimgpu.weights.tree import writing

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.oci.reference import Reference
    from slimgpu.store.context import Context
    from slimgpu.weights.artifact import Weights


def copy_artifact(source: Reference, destination: Reference, context: Context, *, check: bool = False) -> str:
    """Copy the weights artifact with all its blobs, each checked against its digest; gives the artifact's digest.

    What the destination has is not sent again, unless ``check`` finds it damaged. Raises what reading and writing
    artifacts raise, and `ImageError` for anything but weights.
    """
    with (
        open_weights(source, context) as weights,
        open_artifact_sink(destination, context.cache, check=check) as sink,
    ):
        total = sum(blob.descriptor.size for blob in weights.artifact.layers)
        with context.progress.task("copying", total) as task:
            return sink.write(weights.artifact, task)


def write_tree(weights: Weights, root: Path, context: Context) -> None:
    """Write the files that were packed to the directory ``root``, the same in every byte.

    What is there already stays; after a failure or Ctrl-C the next start goes on. Raises `DestinationError` for files
    in the way and for a disk that is full or read-only.
    """
    index = weights.index
    try:
        with writing(root, weights.artifact.manifest.config.digest, index) as tree:
            missing = [number for number in tree.wanted if not tree.has(number)]
            total = sum(index.chunks[number].stored for number in missing)
            with context.progress.task("writing files", total) as task:
                Fetcher(index, [weights.source], tree, jobs=context.jobs).run(missing, task)
    except OSError as error:
        raise DestinationError(_sentence(root, error)) from error


def _sentence(root: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"{root} is on a disk that is full; free some space and start again (it goes on), or use another disk"
    return f"{root} cannot be written ({error.strerror or error}); choose another directory"
