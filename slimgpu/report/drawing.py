"""What all tables have in common."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from slimgpu.units import printable


def new_table(title: str, *columns: str) -> Table:
    """A table whose last column gives way when the screen is narrow; names that end in ``>`` align right."""
    table = Table(title=f"\n{title}" if title else None, title_justify="left", title_style="bold", header_style="dim")
    table.box, table.pad_edge, table.expand = None, False, True
    for name in columns[:-1]:
        right = name.endswith(">")
        table.add_column(name.removesuffix(">"), justify="right" if right else "left", no_wrap=True)
    table.add_column(columns[-1], overflow="ellipsis", no_wrap=True, ratio=1)
    return table


def safe_text(foreign: str) -> Text:
    """Text that may come from the image: neither markup nor control characters of it count."""
    return Text(printable(foreign))
