"""``slimgpu weights export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimgpu.cli.options import ArtifactType, context_of, goes_on, ref_argument
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.copy import write_tree
from slimgpu.weights.modelpack import export_modelpack

if TYPE_CHECKING:
    from slimgpu.oci.reference import Reference


@click.command("export")
@ref_argument
@click.argument("destination", metavar="DEST")
@click.option(
    "--as",
    "form",
    type=click.Choice(["files", "modelpack"]),
    default="files",
    show_default=True,
    help="The files in a directory, or a CNCF ModelPack artifact at a reference like oci:dir:tag.",
)
@click.pass_context
def command(ctx: click.Context, reference: Reference, destination: str, form: str) -> None:
    """Write the artifact REF to DEST in a form that other tools read.

    A ModelPack artifact has each file as a layer of its own, neither archived nor compressed; its digest is printed.
    """
    context = context_of(ctx)
    if form == "files":
        with goes_on("written"), open_weights(reference, context) as weights:
            write_tree(weights, Path(destination), context)
        return
    target = ArtifactType().convert(destination, None, ctx)
    with open_weights(reference, context) as weights:
        click.echo(export_modelpack(weights, target, context))
