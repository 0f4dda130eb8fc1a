"""``slimgpu weights push``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from slimgpu.cli.options import ArtifactType, context_of, goes_on
from slimgpu.oci.reference import RegistryReference
from slimgpu.weights.copy import copy_artifact

if TYPE_CHECKING:
    from slimgpu.oci.reference import Reference


@click.command("push")
@click.argument("source", metavar="SRC", type=ArtifactType())
@click.argument("destination", metavar="REF", type=ArtifactType())
@click.pass_context
def command(ctx: click.Context, source: Reference, destination: Reference) -> None:
    """Copy the artifact SRC to REF, from any store to any other, and print its digest.

    Every blob is checked against its digest on the way, and what REF's repository has already is not sent again, so
    that a copy to a registry that broke off goes on behind the last whole blob; elsewhere it leaves nothing.
    """
    keeps = isinstance(destination, RegistryReference)
    with goes_on("copied") if keeps else nullcontext():
        click.echo(copy_artifact(source, destination, context_of(ctx)))
