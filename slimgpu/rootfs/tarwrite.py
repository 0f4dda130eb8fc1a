"""Writing tar archives, always the same bytes for the same entries.

ustar headers, with PAX records only for what ustar cannot hold (long or non-ASCII names, large numbers,
fractions of a second, extended attributes), as Go's archive/tar writes layers. Sparse files are written out
in full: no reader of layers keeps holes, and some refuse them.

Source: POSIX.1-2017 pax "ustar Interchange Format" and "pax Extended Header".
"""

from __future__ import annotations

import os
from typing import Final

from slimgpu.rootfs.entry import Entry, Kind

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""What follows the last entry."""

_FLAGS: Final = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_NAME: Final = 100
_OWNER: Final = 32
_MAX_SIZE: Final = 8**11 - 1
_MAX_ID: Final = 8**7 - 1
_SECOND: Final = 10**9


def header(entry: Entry) -> bytes:
    """The block or blocks that go before the entry's content."""
    name = os.fsencode(entry.path or ".") + (b"/" if entry.kind is Kind.DIRECTORY else b"")
    link = os.fsencode(entry.link)
    records = _records(entry, name, link)
    block = _ustar(
        name=name[:_NAME],
        mode=entry.mode,
        uid=entry.uid if entry.uid <= _MAX_ID else 0,
        gid=entry.gid if entry.gid <= _MAX_ID else 0,
        size=entry.size if entry.size <= _MAX_SIZE else 0,
        mtime=entry.mtime // _SECOND if 0 <= entry.mtime // _SECOND <= _MAX_SIZE else 0,
        flag=_FLAGS[entry.kind],
        link=link[:_NAME],
        owners=(os.fsencode(entry.uname), os.fsencode(entry.gname)),
        device=entry.device,
    )
    return _extended(name, records) + block if records else block


def padding(size: int) -> bytes:
    """The zero bytes that fill the last block of ``size`` bytes of content."""
    return bytes(-size % BLOCK)


def _records(entry: Entry, name: bytes, link: bytes) -> bytes:
    records: dict[bytes, bytes] = {}
    if len(name) > _NAME or not name.isascii():
        records[b"path"] = name
    if len(link) > _NAME or not link.isascii():
        records[b"linkpath"] = link
    owners = {b"uname": os.fsencode(entry.uname), b"gname": os.fsencode(entry.gname)}
    records |= {key: owner for key, owner in owners.items() if len(owner) >= _OWNER or not owner.isascii()}
    numbers = {b"uid": entry.uid, b"gid": entry.gid}
    records |= {key: b"%d" % number for key, number in numbers.items() if number > _MAX_ID}
    if entry.size > _MAX_SIZE:
        records[b"size"] = b"%d" % entry.size
    seconds, fraction = divmod(entry.mtime, _SECOND)
    if fraction or not 0 <= seconds <= _MAX_SIZE:
        records[b"mtime"] = _decimal(entry.mtime)
    for key, value in entry.xattrs:
        records[b"SCHILY.xattr." + os.fsencode(key)] = value
    return b"".join(_record(key, records[key]) for key in sorted(records))


def _decimal(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, fraction = divmod(abs(nanoseconds), _SECOND)
    return sign + (b"%d.%09d" % (seconds, fraction)).rstrip(b"0").rstrip(b".")


def _record(key: bytes, value: bytes) -> bytes:
    """``"<length> <key>=<value>"`` and a newline, where the length counts its own digits too."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def _extended(name: bytes, records: bytes) -> bytes:
    stem = name.rstrip(b"/").rpartition(b"/")[2].decode("ascii", "replace").replace("\ufffd", "_").encode()
    block = _ustar(
        name=(b"PaxHeaders/" + stem)[:_NAME],
        mode=0o644,
        uid=0,
        gid=0,
        size=len(records),
        mtime=0,
        flag=b"x",
        link=b"",
        owners=(b"", b""),
        device=(0, 0),
    )
    return block + records + padding(len(records))


def _ustar(  # noqa: PLR0913 - a header's fields
    *,
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    flag: bytes,
    link: bytes,
    owners: tuple[bytes, bytes],
    device: tuple[int, int],
) -> bytes:
    uname, gname = (owner if len(owner) < _OWNER and owner.isascii() else b"" for owner in owners)
    head = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(_NAME, b"\0"), mode, uid, gid, size, mtime)
    tail = b"%b%bustar\x0000%b%b%07o\0%07o\0" % (
        flag,
        link.ljust(_NAME, b"\0"),
        uname.ljust(_OWNER, b"\0"),
        gname.ljust(_OWNER, b"\0"),
        *device,
    )
    tail = tail.ljust(BLOCK - len(head) - 8, b"\0")
    checksum = sum(head) + sum(tail) + 8 * 32
    return head + b"%06o\0 " % checksum + tail
