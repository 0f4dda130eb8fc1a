"""``slimgpu weights list``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slimgpu.cli.options import context_of, json_option, ref_argument
from slimgpu.report.document import to_json
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.listing import list_artifact

if TYPE_CHECKING:
    from slimgpu.oci.reference import Reference


@click.command("list")
@ref_argument
@json_option
@click.option("--all", "show_all", is_flag=True, help="Show every file and tensor, and whole digests.")
@click.pass_context
def command(ctx: click.Context, reference: Reference, *, as_json: bool, show_all: bool) -> None:
    """Show what the artifact REF holds: files, tensors and how they are stored.

    Only its index is read.
    """
    with open_weights(reference, context_of(ctx)) as weights:
        listing = list_artifact(weights.artifact)
    if as_json:
        click.echo(to_json(listing))
        return
    from slimgpu.cli.console import show, stdout  # noqa: PLC0415 - only where something is drawn
    from slimgpu.report.weight_tables import list_tables  # noqa: PLC0415

    show(stdout(), list_tables(listing, show_all=show_all))
