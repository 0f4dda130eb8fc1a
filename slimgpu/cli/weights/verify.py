"""``slimgpu weights verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimgpu.cli.options import context_of, jobs_option, json_option, ref_argument
from slimgpu.report.document import to_json
from slimgpu.weights.verify import verify

if TYPE_CHECKING:
    from slimgpu.oci.reference import Reference


@click.command("verify")
@ref_argument
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@jobs_option
@json_option
@click.pass_context
def command(
    ctx: click.Context, reference: Reference, directory: Path | None, jobs: int | None, *, as_json: bool
) -> None:
    """Check every digest of the artifact REF: chunks as stored and as decoded, tensors, and all values.

    With DIR, only the index is read, and the files in DIR are compared with it. The first thing that is wrong ends it
    with exit code 1.
    """
    result = verify(reference, directory, context_of(ctx, jobs))
    if as_json:
        click.echo(to_json(result))
        return
    from slimgpu.cli.console import show, stdout  # noqa: PLC0415 - only where something is drawn
    from slimgpu.report.weight_tables import verify_tables  # noqa: PLC0415

    show(stdout(), verify_tables(result))
