"""Options and arguments that several commands share."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from slimgpu.errors import UsageError
from slimgpu.oci.reference import DaemonReference, PathReference, PathTransport, Reference, parse_reference
from slimgpu.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.oci.manifest import Platform
    from slimgpu.progress import Progress
    from slimgpu.store.context import Context


class ReferenceType(click.ParamType[Reference]):
    """An image's name."""

    name = "image"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reference:
        """Parse it; what is wrong with it is a usage error."""
        del param, ctx
        return value if not isinstance(value, str) else parse_reference(value)


class ArtifactType(ReferenceType):
    """An artifact's name: stores that hold images only are refused before anything begins."""

    name = "ref"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reference:
        """Parse it; what is wrong with it is a usage error."""
        found = super().convert(value, param, ctx)
        archive = isinstance(found, PathReference) and found.transport is PathTransport.DOCKER_ARCHIVE
        if archive or isinstance(found, DaemonReference):
            raise UsageError(
                f"{found} can hold images only; name the artifact as docker://host/repo:tag, oci:dir[:tag] or "
                "oci-archive:file[:tag]"
            )
        return found


class PlatformType(click.ParamType[Any]):
    """A platform like linux/amd64."""

    name = "os/arch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Platform:
        """Parse it; what is wrong with it is a usage error."""
        from slimgpu.oci.manifest import Platform  # noqa: PLC0415 - not for those who start in a hurry

        try:
            return value if isinstance(value, Platform) else Platform.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


image_argument = click.argument("image", type=ReferenceType())
ref_argument = click.argument("reference", metavar="REF", type=ArtifactType())
platform_option = click.option(
    "--platform", type=PlatformType(), default="linux/amd64", show_default=True, help="Which image of an index."
)
jobs_option = click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Workers; as many as there are cores unless given."
)
check_option = click.option(
    "--check", is_flag=True, help="Read what the destination has already, too, and store it again where it is damaged."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")


def context_of(ctx: click.Context, jobs: int | None = None) -> Context:
    """The cache, workers and progress that the command line asks for."""
    from slimgpu.store.cache import Cache  # noqa: PLC0415 - not for those who start in a hurry
    from slimgpu.store.context import Context  # noqa: PLC0415

    shown: Progress = SILENT
    if not ctx.obj["quiet"] and sys.stderr.isatty():
        from slimgpu.cli.console import progress  # noqa: PLC0415

        shown = progress(quiet=False)
    return Context(Cache(), jobs, shown) if jobs else Context(Cache(), progress=shown)


@contextmanager
def goes_on(what: str) -> Iterator[None]:
    """Ctrl-C ends the block, and the message says that the next start goes on with ``what``."""
    try:
        yield
    except KeyboardInterrupt as error:
        message = f"interrupted; what has been {what} stays, and the next start goes on from there"
        raise KeyboardInterrupt(message) from error
