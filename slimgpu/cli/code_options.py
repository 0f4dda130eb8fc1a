"""Options for what may go of files with GPU code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from slimgpu.elf.arch import Sm, parse_target
from slimgpu.elf.choice import Policy
from slimgpu.elf.shrink import Wanted

F = TypeVar("F", bound=Callable[..., Any])


class GpuType(click.ParamType[Sm]):
    """A GPU by its product or architecture."""

    name = "gpu"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Sm:
        """Parse it; what is wrong with it is a usage error."""
        del param, ctx
        return value if not isinstance(value, str) else parse_target(value)


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
