"""Options and arguments that several commands share."""

from __future__ import annotations

from typing import Any

import click

from slimgpu.cli.console import progress
from slimgpu.oci.manifest import Platform
from slimgpu.oci.reference import Reference, parse_reference
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context


class ReferenceType(click.ParamType[Reference]):
    """An image's name."""

    name = "image"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reference:
        """Parse it; what is wrong with it is a usage error."""
        del param, ctx
        return value if not isinstance(value, str) else parse_reference(value)


class PlatformType(click.ParamType[Platform]):
    """A platform like linux/amd64."""

    name = "os/arch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Platform:
        """Parse it; what is wrong with it is a usage error."""
        try:
            return value if not isinstance(value, str) else Platform.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


image_argument = click.argument("image", type=ReferenceType())
platform_option = click.option(
    "--platform", type=PlatformType(), default="linux/amd64", show_default=True, help="Which image of an index."
)
jobs_option = click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Workers; as many as there are cores unless given."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")


def context_of(ctx: click.Context, jobs: int | None) -> Context:
    """The cache, workers and progress that the command line asks for."""
    shown = progress(quiet=ctx.obj["quiet"])
    return Context(Cache(), jobs, shown) if jobs else Context(Cache(), progress=shown)
