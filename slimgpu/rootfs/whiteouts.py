"""Names in a layer that stand for what it deletes.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.0/layer.md#whiteouts
"""

from __future__ import annotations

from typing import Final

_PREFIX: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_AUFS: Final = ".wh..wh."
"""Other names with this prefix are bookkeeping of AUFS that old layers carry."""

EVERYTHING: Final = ""
"""What an opaque marker hides: all that lower layers put into its directory."""


def is_whiteout(name: str) -> bool:
    """Whether an entry of this name is no file, but hides some."""
    return name.startswith(_PREFIX)


def hidden_by(name: str) -> str | None:
    """The name that a whiteout hides in its directory, `EVERYTHING`, or None for nothing."""
    if name == _OPAQUE:
        return EVERYTHING
    hidden = name.removeprefix(_PREFIX)
    return None if name.startswith(_AUFS) or hidden in ("", ".", "..") else hidden
