"""The maps of sparse files in tar archives, in all four forms that GNU tar has written.

Source: https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slimgpu.rootfs.tarread import Buffer

_BLOCK: Final = 512
_MAX_EXTENTS: Final = 100_000

Extents = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SparseMap:
    """Where a sparse file has content."""

    size: int
    """Of the whole file, in bytes."""
    extents: Extents
    """(position, length) of each stored piece."""
    skip: int
    """Bytes of map that lie between the header (or the content's start) and the stored pieces."""

    def check(self, stored: int, limit: int) -> None:
        """ValueError unless the pieces are in order, inside the file, and ``stored`` bytes long."""
        if not 0 <= self.size <= limit:
            raise ValueError(f"a file of {self.size} bytes")
        if any(position < 0 or length < 0 for position, length in self.extents):
            raise ValueError("a negative piece")
        ends = [position + length for position, length in self.extents]
        if any(end > following[0] for end, following in zip(ends, self.extents[1:], strict=False)):
            raise ValueError("pieces overlap")
        if ends and ends[-1] > self.size:
            raise ValueError("a piece beyond the end")
        if sum(length for _, length in self.extents) != stored:
            raise ValueError("pieces do not add up to what is stored")


def is_sparse(pax: Mapping[str, bytes]) -> bool:
    """Whether PAX records say that the entry is a sparse file."""
    return any(key in pax for key in ("GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.offset"))


def gnu_map(data: Buffer, position: int) -> SparseMap:
    """The old GNU form: four pieces in the header at ``position``, more in blocks behind it."""
    header = data[position : position + _BLOCK]
    fields = [header[386 + 24 * i : 410 + 24 * i] for i in range(4)]
    skip = 0
    extended = header[482]
    while extended:
        block = data[position + _BLOCK + skip : position + 2 * _BLOCK + skip]
        if len(block) < _BLOCK or len(fields) > _MAX_EXTENTS:
            raise ValueError("it does not end")
        fields += [block[24 * i : 24 * i + 24] for i in range(21)]
        extended = block[504]
        skip += _BLOCK
    extents = tuple((_number(f[:12]), _number(f[12:])) for f in fields if f[:1] != b"\0")
    return SparseMap(_number(header[483:495]), extents, skip)


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << 88) - 1)
    return int(field.rstrip(b"\0 ") or b"0", 8)


def pax_map(pax: Mapping[str, bytes], content: bytes) -> SparseMap:
    """The PAX forms: 0.0 and 0.1 in records, 1.0 at the start of the content."""
    if "GNU.sparse.major" in pax and int(pax["GNU.sparse.major"]) == 1:
        numbers, skip = _leading_numbers(content)
        size = int(pax["GNU.sparse.realsize"]) if "GNU.sparse.realsize" in pax else -1
        return SparseMap(size, _pairs(numbers), skip)
    if "GNU.sparse.map" in pax:
        numbers = [int(n) for n in pax["GNU.sparse.map"].split(b",") if n]
    else:
        positions = pax.get("GNU.sparse.offset", b"").split(b",")[:-1]
        lengths = pax.get("GNU.sparse.numbytes", b"").split(b",")[:-1]
        numbers = [int(n) for pair in zip(positions, lengths, strict=True) for n in pair]
    return SparseMap(int(pax.get("GNU.sparse.size", b"-1")), _pairs(numbers), 0)


def _leading_numbers(content: bytes) -> tuple[list[int], int]:
    count_text, newline, rest = content.partition(b"\n")
    count = int(count_text) if newline else -1
    if not 0 <= count <= _MAX_EXTENTS:
        raise ValueError(f"{count} pieces")
    texts = rest.split(b"\n", 2 * count)
    if len(texts) != 2 * count + 1:
        raise ValueError("it is cut short")
    used = len(content) - len(texts[-1])
    return [int(text) for text in texts[:-1]], (used + _BLOCK - 1) // _BLOCK * _BLOCK


def _pairs(numbers: list[int]) -> Extents:
    if len(numbers) % 2 or len(numbers) > 2 * _MAX_EXTENTS:
        raise ValueError("positions and lengths do not pair up")
    return tuple(pair for i, pair in enumerate(pairwise(numbers)) if i % 2 == 0)
