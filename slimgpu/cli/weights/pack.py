"""``slimgpu weights pack``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimgpu.cli.options import (
    ArtifactType,
    ReferenceType,
    check_option,
    context_of,
    jobs_option,
    json_option,
    platform_option,
)
from slimgpu.cli.weights.cache_options import cache_options, key_of
from slimgpu.errors import UsageError
from slimgpu.oci import media
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.manifest import Descriptor
from slimgpu.report.document import to_json
from slimgpu.store.transport import open_image
from slimgpu.weights.publish import publish

if TYPE_CHECKING:
    from slimgpu.elf.arch import Sm
    from slimgpu.oci.manifest import Platform
    from slimgpu.oci.reference import Reference
    from slimgpu.store.context import Context
    from slimgpu.weights.results import PackResult


@click.command("pack")
@click.argument("sources", metavar="SRC...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--to", "destination", type=ArtifactType(), required=True, help="Where the artifact goes.")
@click.option(
    "--base",
    "bases",
    multiple=True,
    type=ArtifactType(),
    help="An artifact whose chunks are not stored again; may be repeated. What --to names so far is one.",
)
@click.option("--subject", type=ReferenceType(), help="The image to which the artifact is attached.")
@platform_option
@click.option("--cache", "is_cache", is_flag=True, help="SRC is what a compiler left behind, not weights.")
@cache_options
@check_option
@jobs_option
@json_option
@click.pass_context
def command(  # noqa: PLR0913, PLR0917 - the options of the command line
    ctx: click.Context,
    sources: tuple[Path, ...],
    destination: Reference,
    bases: tuple[Reference, ...],
    subject: Reference | None,
    platform: Platform,
    image: str | None,
    gpu: Sm | None,
    configuration: str | None,
    versions: tuple[str, ...],
    jobs: int | None,
    *,
    is_cache: bool,
    check: bool,
    as_json: bool,
) -> None:
    """Pack the files at and below SRC to an artifact and store it.

    Tensors in safetensors, GGUF, ONNX and torch files are cut and transformed so that they compress; nothing in a file
    is run. All other files are packed, too. The same files give the same digest.

    With --cache the artifact is tagged by its key unless --to has a tag of its own; the summary says where it is.
    """
    key = key_of(image, gpu, configuration, versions)
    if is_cache != (key is not None):
        raise UsageError("--cache goes together with --image, --gpu and --configuration; give all of them or none")
    context = context_of(ctx, jobs)
    attached = _descriptor(subject, platform, context) if subject is not None else None
    result = publish(sources, destination, context, bases=bases, subject=attached, key=key, check=check)
    _print(result, as_json=as_json, quiet=ctx.obj["quiet"])


def _descriptor(subject: Reference, platform: Platform, context: Context) -> Descriptor:
    with open_image(subject, platform, context.cache, context.progress) as image:
        media_type = image.manifest.media_type or media.OCI_MANIFEST
        return Descriptor(media_type, digest_bytes(image.raw_manifest), len(image.raw_manifest))


def _print(result: PackResult, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(to_json(result))
        return
    if not quiet:
        from slimgpu.cli.console import show, stderr  # noqa: PLC0415 - only where something is drawn
        from slimgpu.report.weight_tables import pack_tables  # noqa: PLC0415

        show(stderr(), pack_tables(result))
    click.echo(result.digest)
