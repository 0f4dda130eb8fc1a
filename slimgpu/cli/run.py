"""``slimgpu run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slimgpu.cli.options import ref_argument
from slimgpu.coldstart.run import run_beside

if TYPE_CHECKING:
    from slimgpu.oci.reference import Reference


@click.command("run")
@ref_argument
@click.argument("arguments", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--keep", is_flag=True, help="Leave the weights in memory when CMD has ended.")
@click.pass_context
def command(ctx: click.Context, reference: Reference, arguments: tuple[str, ...], *, keep: bool) -> None:
    """Run CMD while its weights REF are being fetched into memory.

    Both start at once. CMD finds REF in SLIMGPU_WEIGHTS; slimgpu.weights.load() and vLLM's --load-format slimgpu in it
    take what is already there and wait for the rest. CMD's exit code is ours, signals are passed on to it, and when it
    ends, the fetch ends and the memory is given back unless an earlier prefetch kept it. What came from a registry
    stays in the disk cache as far as the disk kept up.
    """
    ctx.exit(run_beside(reference, arguments, keep=keep))
