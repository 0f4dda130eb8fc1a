"""Patterns over paths, written as in .gitignore and .dockerignore: ``*.md``, ``/usr/share/doc/**``, ``**``.

Source: https://git-scm.com/docs/gitignore#_pattern_format
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore import GitIgnorePatternError

from slimgpu.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Patterns:
    """A list of patterns; a path matches when the last one that speaks of it is not negated with ``!``."""

    def __init__(self, lines: Sequence[str]) -> None:
        try:
            self._spec = GitIgnoreSpec.from_lines(lines)
        except (GitIgnorePatternError, ValueError) as error:
            raise UsageError(f"a pattern is malformed ({error}); write patterns as in .gitignore") from error
        self._empty = not lines

    def match(self, path: str) -> bool:
        """Whether the path, or a directory above it, is named by the patterns."""
        return not self._empty and self._spec.match_file(path)
