"""Names of files that weight files refer to."""

from __future__ import annotations

from typing import Final

from slimgpu.weights.formats.broken import BrokenError, shown

_MAX: Final = 4096
"""Linux's PATH_MAX."""


def beside(text: str) -> str:
    """A relative path of a file in the same directory or below, in its shortest form.

    Raises `BrokenError` for one that is absolute, leads out of the directory, is empty or no path at all.
    """
    parts = [part for part in text.split("/") if part not in ("", ".")]
    bad = not parts or ".." in parts or text.startswith("/") or "\\" in text or "\0" in text or len(text) > _MAX
    if bad or not text.isprintable():
        raise BrokenError(f"it names the file {shown(text)}, which does not lie beside it")
    return "/".join(parts)
