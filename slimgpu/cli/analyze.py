"""``slimgpu analyze``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slimgpu.analysis.analysis import analyze
from slimgpu.cli.code_options import code_options, wanted_of
from slimgpu.cli.console import stdout
from slimgpu.cli.options import (
    context_of,
    image_argument,
    jobs_option,
    json_option,
    platform_option,
)
from slimgpu.report.document import to_json
from slimgpu.report.tables import analysis_tables
from slimgpu.store.transport import open_image

if TYPE_CHECKING:
    from slimgpu.elf.arch import Sm
    from slimgpu.oci.manifest import Platform
    from slimgpu.oci.reference import Reference


@click.command("analyze")
@image_argument
@code_options
@platform_option
@jobs_option
@json_option
@click.option("--all", "show_all", is_flag=True, help="Show every layer, package and finding.")
@click.pass_context
def command(  # noqa: PLR0913 - the options of the command line
    ctx: click.Context,
    image: Reference,
    gpus: tuple[Sm, ...],
    symbols: str,
    platform: Platform,
    jobs: int | None,
    *,
    keep_ptx: bool,
    gpu_native: bool,
    as_json: bool,
    show_all: bool,
) -> None:
    """Show where the bytes of IMAGE are, and what a build would do about them.

    Nothing of the image is run. Unpacked layers are kept in SLIMGPU_CACHE_DIR, so a second look is quick.
    """
    wanted = wanted_of(gpus, symbols, keep_ptx=keep_ptx, gpu_native=gpu_native)
    context = context_of(ctx, jobs)
    with open_image(image, platform, context.cache, context.progress) as opened:
        analysis = analyze(opened, context, wanted)
    if as_json:
        click.echo(to_json(analysis))
        return
    console = stdout()
    for table in analysis_tables(analysis, show_all=show_all):
        console.print(table)
