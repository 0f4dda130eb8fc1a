"""What helper processes are started as: ``python -m slimgpu.bench.link ROLE ARGUMENT...``; not for users."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from slimgpu.bench.link import keep, network, proxy, trial
from slimgpu.errors import SlimgpuError

if TYPE_CHECKING:
    from collections.abc import Callable

_ROLES: Final[dict[str, Callable[..., None]]] = {
    "network": network.run,
    "proxy": proxy.run,
    "keep": keep.run,
    "send": trial.send,
    "fetch": trial.fetch,
}


def main(role: str, *arguments: str) -> None:
    """Be the helper."""
    try:
        _ROLES[role](*arguments)
    except (SlimgpuError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
