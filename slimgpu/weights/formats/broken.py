"""How readers of weight files complain: by what is wrong, and the file's name is added on the way out."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from slimgpu.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN: Final = 80


class BrokenError(ValueError):
    """What breaks the format, and what its user can do."""

    def __init__(self, complaint: str, way_out: str = "fetch or export it again") -> None:
        super().__init__(complaint)
        self.way_out = way_out


@contextmanager
def reading(name: str, kind: str) -> Iterator[None]:
    """A `BrokenError` inside becomes an `ImageError` that names the file and the ``kind`` that it should be."""
    try:
        yield
    except BrokenError as error:
        raise ImageError(f"{name} is not a valid {kind}: {error}; {error.way_out}") from error


def shown(text: str) -> str:
    """A text of the file for a message: quoted, escaped and short."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
