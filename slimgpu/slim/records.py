"""What distributions record of their files (RECORD), brought in line with what a build leaves.

Source: https://packaging.python.org/en/latest/specifications/recording-installed-packages/#the-record-file
"""

from __future__ import annotations

import base64
import csv
import io
import posixpath
import re
from typing import TYPE_CHECKING, Final

from slimgpu.analysis.python import MAX_RECORD
from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slimgpu.analysis.facts import Facts
    from slimgpu.rootfs.entry import Entry
    from slimgpu.rootfs.filesystem import FileSystem

_FIELDS: Final = 3
_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")


def stale_records(facts: Facts, changes: Callable[[str], bool]) -> Iterator[tuple[str, int]]:
    """The RECORD of each distribution that stays, with how many of the files that it names change or go.

    One that is no ordinary file, or is signed, stays as it is.
    """
    nodes = facts.files.nodes
    for distribution in facts.distributions:
        record = distribution.record
        count = sum(map(changes, distribution.files))
        if count and record in nodes and not changes(record) and not _is_signed(facts.files, record):
            entry = nodes[record].inode.entry
            if entry.kind is Kind.FILE and entry.extents is None:
                yield record, count


def _is_signed(files: FileSystem, record: str) -> bool:
    return any(f"{record}.{ending}" in files.nodes for ending in ("jws", "p7s"))


def edited_record(files: FileSystem, record: str, now: Callable[[str], Entry | None]) -> bytes:
    """The RECORD at ``record`` without what is gone, and with hash and size of what is another file now.

    ``now`` gives the entry of a path in the slim image. Lines of files that are the same stay to the byte.
    """
    location = posixpath.dirname(posixpath.dirname(record))
    text = files.read(record, MAX_RECORD).decode(errors="surrogateescape")
    lines = (_line(line, location, files, now) for line in _LINE.findall(text))
    return "".join(lines).encode(errors="surrogateescape")


def _line(line: str, location: str, files: FileSystem, now: Callable[[str], Entry | None]) -> str:
    try:
        row = next(csv.reader([line]), [])
    except csv.Error:
        return line
    path = files.tree.resolve(posixpath.join("/", location, row[0]), follow_last=False) if len(row) == _FIELDS else None
    if path is None:
        return line
    entry = now(path)
    if entry is None:
        return ""
    if not row[1] or entry.digest == files.nodes[path].inode.entry.digest:
        return line
    out = io.StringIO()
    ending = line[len(line.rstrip("\r\n")) :]
    csv.writer(out, lineterminator=ending).writerow([row[0], f"sha256={_encoded(entry.digest)}", entry.size])
    return out.getvalue()


def _encoded(digest: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).rstrip(b"=").decode()
