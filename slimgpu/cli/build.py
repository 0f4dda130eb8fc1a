"""``slimgpu build``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimgpu.analysis.claims import claim
from slimgpu.analysis.facts import Facts, gather
from slimgpu.analysis.unpack import unpack
from slimgpu.cli.console import stderr, stdout
from slimgpu.cli.options import (
    ReferenceType,
    code_options,
    context_of,
    image_argument,
    jobs_option,
    json_option,
    platform_option,
    wanted_of,
)
from slimgpu.elf.shrink import Wanted
from slimgpu.layers.compress import Format
from slimgpu.report.document import to_json
from slimgpu.report.tables import plan_tables, result_tables
from slimgpu.slim.build import build, check_source
from slimgpu.slim.plan import Plan, Wishes, load_plan, make_plan
from slimgpu.slim.result import result_of
from slimgpu.store.transport import open_image, open_sink

if TYPE_CHECKING:
    from slimgpu.elf.arch import Sm
    from slimgpu.oci.image import Image
    from slimgpu.oci.manifest import Platform
    from slimgpu.oci.reference import Reference
    from slimgpu.rootfs.filesystem import FileSystem
    from slimgpu.slim.result import BuildResult
    from slimgpu.store.context import Context
    from slimgpu.store.transport import Sink


@click.command("build")
@image_argument
@click.option("--to", "destination", type=ReferenceType(), help="Where the slim image goes.")
@click.option(
    "--format",
    "layer_format",
    type=click.Choice(["zstd", "gzip"]),
    default="zstd",
    show_default=True,
    help="Compression of the layers; docker-archive and docker-daemon always get plain tars.",
)
@code_options
@click.option(
    "--keep", multiple=True, metavar="PATTERN", help="Keep what matches, as in .gitignore; wins over all else."
)
@click.option("--drop", multiple=True, metavar="PATTERN", help="Drop what matches, as in .gitignore.")
@click.option(
    "--jit",
    type=click.Choice(["keep", "ignore"]),
    default="keep",
    show_default=True,
    help="Whether compilers and headers stay for packages that compile at run time.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and build nothing.")
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Replay a plan that --dry-run --json printed.",
)
@platform_option
@jobs_option
@json_option
@click.pass_context
def command(  # noqa: PLR0913, PLR0917 - the options of the command line
    ctx: click.Context,
    image: Reference,
    destination: Reference | None,
    layer_format: str,
    gpus: tuple[Sm, ...],
    symbols: str,
    keep: tuple[str, ...],
    drop: tuple[str, ...],
    jit: str,
    plan_file: Path | None,
    platform: Platform,
    jobs: int | None,
    *,
    keep_ptx: bool,
    gpu_native: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build a slim image from IMAGE: the same files but for what cannot be used at run time.

    Nothing of the image is run, and no engine is needed unless a name asks for one. What stays is the same in every
    attribute, and every library that a kept file loads is still there, or the build fails and says which is not.
    """
    if destination is None and not dry_run:
        raise click.UsageError("name the destination with --to, or ask for the plan with --dry-run")
    if plan_file is not None and (keep or drop or gpus or keep_ptx or gpu_native or (jit, symbols) != ("keep", "drop")):
        raise click.UsageError("--plan replays a finished plan; --keep, --drop, --gpu and the like go into making one")
    wanted = wanted_of(gpus, symbols, keep_ptx=keep_ptx, gpu_native=gpu_native)
    context = context_of(ctx, jobs)
    with open_image(image, platform, context.cache, context.progress) as opened:

        def planned(files: FileSystem) -> tuple[Facts, Plan]:
            if plan_file is not None:
                plan = load_plan(plan_file.read_bytes(), str(plan_file))
                return gather(files, opened, context, Wanted(plan.gpu_code.policy)), plan
            facts = gather(files, opened, context, wanted, heed_jit=jit == "keep")
            return facts, make_plan(opened, facts, claim(facts), Wishes(keep, drop))

        if destination is None or dry_run:
            with unpack(opened, context) as files:
                _, plan = planned(files)
            check_source(plan, opened)
            _print_plan(plan, as_json=as_json)
            return
        with open_sink(destination, context.cache) as sink, unpack(opened, context) as files:
            facts, plan = planned(files)
            result = _build(opened, facts, plan, sink, Format(layer_format), context)
    _print_result(result, as_json=as_json, quiet=ctx.obj["quiet"])


def _build(image: Image, facts: Facts, plan: Plan, sink: Sink, wanted: Format, context: Context) -> BuildResult:
    layer_format = wanted if sink.stores == "compressed" else Format.TAR
    built = build(image, facts, plan, layer_format, sink.workspace / "blobs", context)
    stored = sum(written.layer.descriptor.size for written in built.layers)
    with context.progress.task("storing the image", stored) as task:
        digest = sink.write(built.image, task)
    return result_of(image, facts, plan, built, digest)


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        click.echo(plan.dump(), nl=False)
        return
    console = stdout()
    for table in plan_tables(plan):
        console.print(table)


def _print_result(result: BuildResult, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(to_json(result))
        return
    if not quiet:
        console = stderr()
        for table in result_tables(result):
            console.print(table)
    click.echo(result.digest)
