"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from slimgpu.cli.console import progress
from slimgpu.elf.arch import Sm, parse_target
from slimgpu.elf.choice import Policy
from slimgpu.elf.shrink import Wanted
from slimgpu.oci.manifest import Platform
from slimgpu.oci.reference import Reference, parse_reference
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context

F = TypeVar("F", bound=Callable[..., Any])


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


class GpuType(click.ParamType[Sm]):
    """A GPU by its product or architecture."""

    name = "gpu"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Sm:
        """Parse it; what is wrong with it is a usage error."""
        del param, ctx
        return value if not isinstance(value, str) else parse_target(value)


image_argument = click.argument("image", type=ReferenceType())
platform_option = click.option(
    "--platform", type=PlatformType(), default="linux/amd64", show_default=True, help="Which image of an index."
)
jobs_option = click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Workers; as many as there are cores unless given."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")


_CODE_OPTIONS = (
    click.option(
        "--gpu",
        "gpus",
        multiple=True,
        type=GpuType(),
        help="Keep only GPU code that this GPU can use: h100, l40s, sm_90, ...; may be repeated.",
    ),
    click.option("--keep-ptx", is_flag=True, help="With --gpu, also keep the newest PTX, for GPUs to come."),
    click.option(
        "--gpu-native", is_flag=True, help="With --gpu, keep no PTX, and fail for kernels that would need it."
    ),
    click.option(
        "--symbols",
        type=click.Choice(["drop", "keep"]),
        default="drop",
        show_default=True,
        help="What becomes of symbol tables and debug sections of libraries and programs.",
    ),
)


def code_options(command: F) -> F:
    """The options from which `wanted_of` makes what may go of files."""
    for option in reversed(_CODE_OPTIONS):
        command = option(command)
    return command


def wanted_of(gpus: tuple[Sm, ...], symbols: str, *, keep_ptx: bool, gpu_native: bool) -> Wanted:
    """What may go of files."""
    if not gpus and (keep_ptx or gpu_native):
        raise click.UsageError("--keep-ptx and --gpu-native say what to keep for a GPU; name it with --gpu")
    if keep_ptx and gpu_native:
        raise click.UsageError("--gpu-native keeps no PTX; leave out --keep-ptx")
    policy = Policy(tuple(sorted(set(gpus))), keep_ptx=keep_ptx, native=gpu_native) if gpus else None
    return Wanted(policy, symbols=symbols == "drop")


def context_of(ctx: click.Context, jobs: int | None) -> Context:
    """The cache, workers and progress that the command line asks for."""
    shown = progress(quiet=ctx.obj["quiet"])
    return Context(Cache(), jobs, shown) if jobs else Context(Cache(), progress=shown)
