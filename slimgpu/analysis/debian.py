"""Packages that dpkg installed: its status database and its lists of files.

Sources: dpkg(1), deb-control(5); distroless images keep the status in ``status.d`` instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.errors import SlimgpuError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.rootfs.filesystem import FileSystem

STATUS: Final = "var/lib/dpkg/status"
_STATUS_D: Final = "var/lib/dpkg/status.d/"
_INFO: Final = "var/lib/dpkg/info/"
_MAX_STATUS: Final = 64 * 1024 * 1024
_NAME: Final = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)")


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """An installed package."""

    name: str
    version: str
    architecture: str
    essential: bool
    depends: tuple[tuple[str, ...], ...]
    """Depends and Pre-Depends: each a choice of names, versions left out."""
    provides: tuple[str, ...]
    files: tuple[str, ...]
    """What the package put into the image, directories included, as real paths in the tree."""
    records: tuple[str, ...]
    """dpkg's own files about the package."""


def read_packages(files: FileSystem) -> tuple[DebianPackage, ...]:
    """The installed packages, in the order of the database; none when the image has no dpkg."""
    records = _records(files)
    return tuple(_package(files, stanza, records) for stanza in _stanzas(files) if _installed(stanza))


def _stanzas(files: FileSystem) -> Iterator[dict[str, str]]:
    sources = [STATUS, *(p for p in files.nodes if p.startswith(_STATUS_D) and not p.endswith(".md5sums"))]
    for source in sources:
        try:
            text = files.read(source, _MAX_STATUS).decode(errors="replace")
        except SlimgpuError:
            continue
        for stanza in split_stanzas(text):
            fields = parse_stanza(stanza)
            if "Package" in fields:
                yield fields if source == STATUS else {"Status": "install ok installed", **fields}


def split_stanzas(text: str) -> list[str]:
    """The paragraphs of a control file, each without the blank lines around it."""
    return [stanza for stanza in re.split(r"\n{2,}", text.strip("\n")) if stanza]


def parse_stanza(stanza: str) -> dict[str, str]:
    """Field names to values; continuation lines are left out, no field that we read has any."""
    pairs = (line.partition(":") for line in stanza.splitlines() if not line.startswith((" ", "\t")))
    return {name: value.strip() for name, _, value in pairs}


def _installed(fields: dict[str, str]) -> bool:
    return fields.get("Status", "").endswith(" installed")


def _records(files: FileSystem) -> dict[str, list[str]]:
    """Dpkg's files of each package, by ``name`` or ``name:architecture``."""
    found: dict[str, list[str]] = {}
    for path in files.nodes:
        if path.startswith(_INFO):
            found.setdefault(path.removeprefix(_INFO).rpartition(".")[0], []).append(path)
    return found


def _package(files: FileSystem, fields: dict[str, str], records: dict[str, list[str]]) -> DebianPackage:
    name, architecture = fields["Package"], fields.get("Architecture", "")
    own = tuple(records.get(f"{name}:{architecture}") or records.get(name) or ())
    listing = next((path for path in own if path.endswith(".list")), None)
    return DebianPackage(
        name=name,
        version=fields.get("Version", ""),
        architecture=architecture,
        essential=fields.get("Essential") == "yes" or fields.get("Priority") == "required",
        depends=_choices(fields.get("Pre-Depends", "")) + _choices(fields.get("Depends", "")),
        provides=tuple(choice[0] for choice in _choices(fields.get("Provides", ""))),
        files=_listed(files, listing) if listing else (),
        records=own,
    )


def _choices(text: str) -> tuple[tuple[str, ...], ...]:
    groups = (group.split("|") for group in text.split(",") if group.strip())
    found = (tuple(match[1] for part in group if (match := _NAME.match(part))) for group in groups)
    return tuple(choice for choice in found if choice)


def _listed(files: FileSystem, listing: str) -> tuple[str, ...]:
    lines = files.read(listing, _MAX_STATUS).decode(errors="surrogateescape").splitlines()
    return tuple(path for line in lines if (path := real_path(files, line)) is not None and path)


def real_path(files: FileSystem, name: str) -> str | None:
    """``/lib/x`` as ``usr/lib/x`` where /lib is a symlink, the last part not followed; None if not there."""
    path = name.strip("/")
    if path == "." or not path:
        return None
    return path if path in files.nodes else files.tree.resolve(path, follow_last=False)
