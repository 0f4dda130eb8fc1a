"""``slimgpu build``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from slimgpu.analysis.claims import claim
from slimgpu.analysis.facts import Facts, gather
from slimgpu.analysis.unpack import unpack
from slimgpu.cli.code_options import code_options, wanted_of
from slimgpu.cli.console import stderr, stdout
from slimgpu.cli.options import (
    ReferenceType,
    context_of,
    image_argument,
    jobs_option,
    json_option,
    platform_option,
)
from slimgpu.elf.shrink import Wanted
from slimgpu.layers.compress import Format
from slimgpu.oci.reference import PathReference, parse_reference
from slimgpu.progress import SILENT
from slimgpu.report.document import to_json
from slimgpu.report.tables import plan_tables, result_tables
from slimgpu.slim.build import build, check_source
from slimgpu.slim.plan import Plan, Wishes, load_plan, make_plan
from slimgpu.slim.result import result_of
from slimgpu.slim.split import split
from slimgpu.slim.weights import Weights, check_artifact, share_place
from slimgpu.store.transport import open_artifact_sink, open_image, open_sink
from slimgpu.units import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from slimgpu.elf.arch import Sm
    from slimgpu.oci.image import Blob, Image
    from slimgpu.oci.manifest import Platform
    from slimgpu.oci.reference import Reference
    from slimgpu.rootfs.filesystem import FileSystem
    from slimgpu.slim.result import BuildResult
    from slimgpu.slim.split import Split
    from slimgpu.store.context import Context
    from slimgpu.store.transport import ArtifactSink, Sink


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
@click.option(
    "--weights",
    type=click.Choice(["keep", "split", "drop"]),
    default="keep",
    show_default=True,
    help="Whether model weights stay, become an artifact of their own (with --weights-to), or go.",
)
@click.option("--weights-to", type=ReferenceType(), help="With --weights split, where the weights go.")
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
    weights: Literal["keep", "split", "drop"],
    weights_to: Reference | None,
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
    chosen = (keep, drop, gpus, keep_ptx, gpu_native, weights_to, jit != "keep", symbols != "drop", weights != "keep")
    if plan_file is not None and any(chosen):
        raise click.UsageError("--plan replays a finished plan; --keep, --drop, --gpu and the like go into making one")
    wish = _weights_of(weights, weights_to)
    if weights_to is not None:
        check_artifact(weights_to, destination)
    wanted = wanted_of(gpus, symbols, keep_ptx=keep_ptx, gpu_native=gpu_native)
    context = context_of(ctx, jobs)
    with open_image(image, platform, context.cache, context.progress) as opened:
        planner = _Planner(opened, context, wanted, Wishes(keep, drop, wish), plan_file, heed_jit=jit == "keep")
        if destination is None or dry_run:
            planner.read()
            with unpack(opened, context) as files:
                _, plan = planner.plan(files)
            check_source(plan, opened)
            _print_plan(plan, as_json=as_json)
            return
        result = _store(opened, planner, destination, Format(layer_format), context)
    _print_result(result, as_json=as_json, quiet=ctx.obj["quiet"])


def _weights_of(mode: Literal["keep", "split", "drop"], reference: Reference | None) -> Weights:
    """What becomes of the weights, and where they go."""
    if mode == "split" and reference is None:
        raise click.UsageError("--weights split needs a place for the weights; name it with --weights-to")
    if mode != "split" and reference is not None:
        raise click.UsageError("--weights-to says where weights go that leave the image; add --weights split")
    if isinstance(reference, PathReference):  # so that whoever follows the pointer may be anywhere on this machine
        reference = replace(reference, path=reference.path.resolve())
    return Weights(mode, "" if reference is None else str(reference))


class _Planner:
    """Makes the plan, or replays one."""

    def __init__(
        self, image: Image, context: Context, wanted: Wanted, wishes: Wishes, plan_file: Path | None, *, heed_jit: bool
    ) -> None:
        self._image = image
        self._context = context
        self._wanted = wanted
        self._wishes = wishes
        self._plan_file = plan_file
        self._heed_jit = heed_jit
        self._replayed: Plan | None = None

    def read(self) -> Reference | None:
        """Read the plan that is replayed, if any; gives where weights go."""
        if self._plan_file is not None:
            self._replayed = load_plan(self._plan_file.read_bytes(), str(self._plan_file))
        weights = self._wishes.weights if self._replayed is None else self._replayed.weights
        return parse_reference(weights.ref) if weights.mode == "split" else None

    def plan(self, files: FileSystem) -> tuple[Facts, Plan]:
        """The image's facts and the plan for it."""
        if self._replayed is not None:
            wanted = Wanted(self._replayed.gpu_code.policy)
            return gather(files, self._image, self._context, wanted), self._replayed
        facts = gather(files, self._image, self._context, self._wanted, heed_jit=self._heed_jit)
        return facts, make_plan(self._image, facts, claim(facts), self._wishes)


def _store(image: Image, planner: _Planner, destination: Reference, wanted: Format, context: Context) -> BuildResult:
    """Build and store the image and, after it, its weights, whose blobs are on their way while they are packed."""
    with ExitStack() as stack:
        store = None
        with open_sink(destination, context.cache) as sink:
            weights_to = planner.read()
            if weights_to is not None:
                check_artifact(weights_to, destination)
                if not _is_same_layout(weights_to, destination):
                    store = stack.enter_context(open_artifact_sink(weights_to, context.cache))
            with unpack(image, context) as files:
                facts, plan = planner.plan(files)
                check_source(plan, image)
                packed = split(plan, files, (store or sink).workspace / "blobs", context, _sender(store))
                result, built = _build(image, facts, plan, packed, sink, wanted, context)
            subject = built if sink.stores == "compressed" else None
        if weights_to is None:
            return result
        if packed is None:
            said = f"slimgpu: {image.name} holds no weights to split off; {weights_to} was not written"
            click.echo(printable(said), err=True)
            return result
        if store is None:
            store = stack.enter_context(open_artifact_sink(weights_to, context.cache))
        return _store_weights(result, packed, subject, store, context)


def _is_same_layout(weights_to: Reference, destination: Reference) -> bool:
    """A layout has one writer at a time: there the blobs go along with the image."""
    return isinstance(weights_to, PathReference) and share_place(weights_to, destination)


def _sender(store: ArtifactSink | None) -> Callable[[Blob], None]:
    def send(blob: Blob) -> None:
        if store is not None:
            with SILENT.task("weights", None) as uncounted:
                store.put(blob, uncounted)

    return send


def _build(  # noqa: PLR0917 - from where, by what and to where
    image: Image,
    facts: Facts,
    plan: Plan,
    packed: Split | None,
    sink: Sink,
    wanted: Format,
    context: Context,
) -> tuple[BuildResult, Image]:
    layer_format = wanted if sink.stores == "compressed" else Format.TAR
    pointer = None if packed is None else packed.pointer
    built = build(image, facts, plan, layer_format, sink.workspace / "blobs", context, pointer=pointer)
    stored = sum(written.layer.descriptor.size for written in built.layers)
    with context.progress.task("storing the image", stored) as task:
        digest = sink.write(built.image, task)
    return result_of(image, facts, plan, built, digest), built.image


def _store_weights(
    result: BuildResult, packed: Split, subject: Image | None, store: ArtifactSink, context: Context
) -> BuildResult:
    with context.progress.task("storing the weights", packed.stored) as task:
        digest = store.write(packed.artifact(subject), task)
    assert result.weights is not None
    pointer = packed.pointer
    weights = replace(result.weights, ref=pointer.ref, digest=digest, index=pointer.index, stored=packed.stored)
    return replace(result, weights=weights)


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
