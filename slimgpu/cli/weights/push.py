"""``slimgpu weights push``."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from slimgpu.cli.options import ArtifactType, check_option, context_of, goes_on, json_option
from slimgpu.oci.reference import RegistryReference
from slimgpu.report.document import to_json
from slimgpu.report.tally import Tally
from slimgpu.weights.copy import copy_artifact
from slimgpu.weights.results import PUSH_SCHEMA, PushResult

if TYPE_CHECKING:
    from slimgpu.oci.reference import Reference


@click.command("push")
@click.argument("source", metavar="SRC", type=ArtifactType())
@click.argument("destination", metavar="REF", type=ArtifactType())
@check_option
@json_option
@click.pass_context
def command(ctx: click.Context, source: Reference, destination: Reference, *, check: bool, as_json: bool) -> None:
    """Copy the artifact SRC to REF, from any store to any other, and print its digest.

    Every blob is checked against its digest on the way, and what REF's repository has already is not sent again, so
    that a copy to a registry that broke off goes on behind the last whole blob; elsewhere it leaves nothing.
    """
    began = time.monotonic()
    context = context_of(ctx)
    tally = Tally(context.progress)
    keeps = isinstance(destination, RegistryReference)
    with goes_on("copied") if keeps else nullcontext():
        digest = copy_artifact(source, destination, replace(context, progress=tally), check=check)
    if not as_json:
        click.echo(digest)
        return
    seconds = round(time.monotonic() - began, 3)
    click.echo(to_json(PushResult(PUSH_SCHEMA, str(source), str(destination), digest, tally.total, seconds)))
