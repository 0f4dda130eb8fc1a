"""``slimgpu weights load``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slimgpu.cli.options import context_of, json_option, ref_argument
from slimgpu.report.document import to_json
from slimgpu.weights.measure import measure_load

if TYPE_CHECKING:
    from slimgpu.oci.reference import Reference


@click.command("load")
@ref_argument
@click.option("--device", default="cpu", show_default=True, help="Where the tensors go: cpu, cuda or cuda:N.")
@click.option("--only", metavar="PATTERN", help="Only tensors with names like this, as in the shell.")
@click.option("--check", is_flag=True, help="Compare what was loaded with the index's digests.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, reference: Reference, device: str, only: str | None, *, check: bool, as_json: bool
) -> None:
    """Load the tensors of the artifact REF as a program would, and say how long it took."""
    result = measure_load(reference, device, only, context_of(ctx), check=check)
    if as_json:
        click.echo(to_json(result))
        return
    from slimgpu.cli.console import show, stdout  # noqa: PLC0415 - only where something is drawn
    from slimgpu.report.weight_tables import load_tables  # noqa: PLC0415

    show(stdout(), load_tables(result))
