"""Options that name a compiler's cache by what it was compiled for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slimgpu.cli.code_options import GpuType
from slimgpu.errors import UsageError
from slimgpu.oci.digest import is_digest
from slimgpu.weights.caches import CacheKey

if TYPE_CHECKING:
    from slimgpu.elf.arch import Sm

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--image", metavar="DIGEST", help="For a cache: digest of the image whose programs compile."),
    click.option("--gpu", type=GpuType(), help="For a cache: the GPU that it was compiled for."),
    click.option("--configuration", metavar="TEXT", help="For a cache: the program's configuration, in any form."),
    click.option("--versions", multiple=True, metavar="NAME=VERSION", help="For a cache: whatever else it depends on."),
)


def cache_options(command: F) -> F:
    """The options from which `key_of` makes a cache's key."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def key_of(image: str | None, gpu: Sm | None, configuration: str | None, versions: tuple[str, ...]) -> CacheKey | None:
    """The key that the options name; None when they name none."""
    for version in versions:
        name, _, value = version.partition("=")
        if not name.strip() or not value.strip():
            raise UsageError(f"--versions {version!r} names no version; write it like driver=570.1")
    if image is None and gpu is None and configuration is None and not versions:
        return None
    if image is None or gpu is None or configuration is None:
        raise UsageError("a cache is named by all of --image, --gpu and --configuration; add what is missing")
    if not is_digest(image):
        raise UsageError(f"--image {image!r} is no digest; write sha256: and 64 hexadecimal digits")
    return CacheKey(image, str(gpu), configuration, versions)
