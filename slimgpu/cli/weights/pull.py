"""``slimgpu weights pull``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimgpu.cli.options import context_of, goes_on, ref_argument
from slimgpu.cli.weights.cache_options import cache_options, key_of
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.caches import open_cache
from slimgpu.weights.copy import write_tree

if TYPE_CHECKING:
    from slimgpu.elf.arch import Sm
    from slimgpu.oci.reference import Reference


@click.command("pull")
@ref_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@cache_options
@click.pass_context
def command(  # noqa: PLR0917 - the options of the command line
    ctx: click.Context,
    reference: Reference,
    directory: Path,
    image: str | None,
    gpu: Sm | None,
    configuration: str | None,
    versions: tuple[str, ...],
) -> None:
    """Write the files that were packed to DIR, the same in every byte.

    DIR appears when all of them are there. Ctrl-C, or a failure, leaves what has been written beside it, and the next
    start goes on from there. Files that DIR has already stay; a file with other content is an error.

    A compiler's cache is found by its key: --image, --gpu and --configuration.
    """
    context = context_of(ctx)
    key = key_of(image, gpu, configuration, versions)
    with goes_on("written"), ExitStack() as stack:
        opened = open_cache(reference, key, context) if key else open_weights(reference, context)
        write_tree(stack.enter_context(opened), directory, context)
