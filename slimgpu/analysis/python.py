"""Python distributions: what each brought (RECORD) and what it says of itself (METADATA).

Sources: https://packaging.python.org/en/latest/specifications/recording-installed-packages/ and core-metadata/.
"""

from __future__ import annotations

import csv
import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from packaging.utils import canonicalize_name

from slimgpu.analysis.debian import parse_stanza, real_path
from slimgpu.errors import SlimgpuError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.rootfs.filesystem import FileSystem

METADATA: Final = ".dist-info/METADATA"
RECORD: Final = ".dist-info/RECORD"
_MAX_METADATA: Final = 16 * 1024 * 1024
MAX_RECORD: Final = 256 * 1024 * 1024
_REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution."""

    name: str
    """Canonical: lower case, '-' between words."""
    version: str
    location: str
    """The directory that holds it, mostly ``.../site-packages``."""
    requires: tuple[str, ...]
    """Canonical names of what it requires without any extra."""
    files: tuple[str, ...]
    """What its RECORD names and the image has, as paths in the tree."""
    missing: tuple[str, ...]
    """What its RECORD names and the image lacks."""
    record: str
    """The path of its RECORD, whether or not it has one."""


def read_distributions(files: FileSystem) -> tuple[Distribution, ...]:
    """Every distribution of every environment in the image, sorted by the path of its metadata."""
    return tuple(_distribution(files, path) for path in files.nodes if path.endswith(METADATA))


def _distribution(files: FileSystem, metadata: str) -> Distribution:
    info = metadata.rpartition("/")[0]
    location = info.rpartition("/")[0]
    header = _text(files, metadata, _MAX_METADATA).partition("\n\n")[0]
    fields = parse_stanza(header)
    recorded = [
        (name, real_path(files, posixpath.normpath(posixpath.join("/", location, name))))
        for name in _recorded(files, f"{info}/RECORD")
    ]
    stem = info.rpartition("/")[2].removesuffix(".dist-info")
    return Distribution(
        name=canonicalize_name(fields.get("Name") or stem.partition("-")[0]),
        version=fields.get("Version") or stem.partition("-")[2],
        location=location,
        requires=tuple(_required(header)),
        files=tuple(path for _, path in recorded if path),
        missing=tuple(name for name, path in recorded if not path),
        record=f"{info}/RECORD",
    )


def _text(files: FileSystem, path: str, limit: int) -> str:
    try:
        return files.read(path, limit).decode(errors="surrogateescape")
    except SlimgpuError:
        return ""


def _recorded(files: FileSystem, record: str) -> Iterator[str]:
    try:
        for row in csv.reader(_text(files, record, MAX_RECORD).splitlines()):
            if row and row[0]:
                yield row[0]
    except csv.Error:
        return  # what could not be read is then owned by nobody, and so never dropped as a part of it


def _required(header: str) -> Iterator[str]:
    for line in header.splitlines():
        if line.startswith("Requires-Dist:") and "extra ==" not in line and "extra==" not in line:
            match = _REQUIREMENT.match(line.removeprefix("Requires-Dist:").strip())
            if match:
                yield canonicalize_name(match[0])
