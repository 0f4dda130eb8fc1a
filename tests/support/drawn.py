"""What a console of a set width shows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType


def drawn(parts: Iterable[RenderableType], width: int = 100) -> str:
    """The text, without the blanks at the ends of lines."""
    console = Console(file=io.StringIO(), width=width, highlight=False, force_terminal=False)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())
