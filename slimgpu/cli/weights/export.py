"""``slimgpu weights export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimgpu.cli.options import ArtifactType, context_of, goes_on, ref_argument
from slimgpu.errors import UsageError
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
    if _is_like_path(destination):
        raise UsageError(
            f"{destination!r} looks like a path; write oci:{destination} for an OCI layout there, or "
            "docker://host/repo:tag for a registry"
        )
    target = ArtifactType().convert(destination, None, ctx)
    with open_weights(reference, context) as weights:
        click.echo(export_modelpack(weights, target, context))


def _is_like_path(destination: str) -> bool:
    """Whether somebody who wrote this meant no registry: its names could be those of directories, too."""
    path = Path(destination)
    bare = "/" not in destination and ":" not in destination
    inside = "/" in destination and path.parent.is_dir()
    return bare or destination.startswith(("/", ".", "~")) or path.exists() or inside
