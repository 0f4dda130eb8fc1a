"""``slimgpu weights pull``."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimgpu.cli.options import context_of, goes_on, json_option, ref_argument
from slimgpu.cli.weights.cache_options import cache_options, key_of
from slimgpu.oci.digest import digest_bytes
from slimgpu.report.document import to_json
from slimgpu.report.tally import Tally
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.caches import open_cache
from slimgpu.weights.copy import write_tree
from slimgpu.weights.results import PULL_SCHEMA, PullResult

if TYPE_CHECKING:
    from slimgpu.elf.arch import Sm
    from slimgpu.oci.reference import Reference
    from slimgpu.weights.artifact import Weights


@click.command("pull")
@ref_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@cache_options
@json_option
@click.pass_context
def command(  # noqa: PLR0913, PLR0917 - the options of the command line
    ctx: click.Context,
    reference: Reference,
    directory: Path,
    image: str | None,
    gpu: Sm | None,
    configuration: str | None,
    versions: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Write the files that were packed to DIR, the same in every byte.

    DIR appears when all of them are there. Ctrl-C, or a failure, leaves what has been written beside it, and the next
    start goes on from there. Files that DIR has already stay; a file with other content is an error.

    A compiler's cache is found by its key: --image, --gpu and --configuration.
    """
    began = time.monotonic()
    context = context_of(ctx)
    tally = Tally(context.progress)
    key = key_of(image, gpu, configuration, versions)
    with goes_on("written"), ExitStack() as stack:
        opened = open_cache(reference, key, context) if key else open_weights(reference, context)
        weights = stack.enter_context(opened)
        write_tree(weights, directory, replace(context, progress=tally))
    if as_json:
        click.echo(to_json(_result(weights, directory, tally.total, time.monotonic() - began)))


def _result(weights: Weights, directory: Path, fetched: int, seconds: float) -> PullResult:
    return PullResult(
        schema=PULL_SCHEMA,
        reference=str(weights.reference),
        digest=digest_bytes(weights.artifact.raw_manifest),
        directory=str(directory),
        files=len(weights.index.files),
        bytes=sum(file.size for file in weights.index.files),
        fetched=fetched,
        seconds=round(seconds, 3),
    )
