"""Files whose exact bytes something vouches for, so that they cannot be changed, only kept or dropped.

Sources: NSS signs its libraries in ``.chk`` files (shlibsign); libgcrypt, GnuTLS and OpenSSL of Fedora and Red Hat keep
HMACs beside theirs, named after the library or one of its links (``.libgcrypt.so.20.hmac``), or in ``fipscheck`` and
``hmaccalc``; that of GnuTLS names other libraries inside; OpenSSL's own FIPS module is covered by its configuration,
https://docs.openssl.org/3.0/man5/fips_config/.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Final

from slimgpu.errors import SlimgpuError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.rootfs.filesystem import FileSystem

_BESIDE: Final = re.compile(
    r"\.?(?P<name>.+)\.(?:hmac|sig|sign|asc|p7s|minisig|md5|sha1|sha224|sha256|sha384|sha512|sha256sum|sha512sum)"
)
_NSS: Final = re.compile(r"(?P<stem>.+)\.chk")
_LIST: Final = re.compile(r"(?i)(?:md5|sha\d+)sums?(?:\.txt)?|checksums\.(?:txt|md5|sha256)")
_FOLDERS: Final = ("fipscheck", "hmaccalc", ".libcheck")
"""Directories of HMACs for what lies beside them."""
_PATH: Final = re.compile(r"/[^\s\"']+")
_ATTRIBUTES: Final = ("security.ima", "security.evm")
_FIPS: Final = "fips.so"
_MAX_TEXT: Final = 16 * 1024 * 1024


def sealed(files: FileSystem) -> dict[str, str]:
    """What vouches for each such file, by the file's path, for all names of it."""
    found: dict[int, str] = {}
    for path, node in files.files():
        signed = next((name for name, _ in node.inode.entry.xattrs if name in _ATTRIBUTES), "")
        if signed or path.rpartition("/")[2] == _FIPS:
            found[id(node.inode)] = f"its attribute {signed}" if signed else "the configuration of OpenSSL"
        for target in _covered(files, path):
            resolved = files.tree.resolve(target)
            if resolved in files.nodes:
                found.setdefault(id(files.nodes[resolved].inode), path)
    return {path: found[id(node.inode)] for path, node in files.files() if id(node.inode) in found}


def _covered(files: FileSystem, path: str) -> Iterator[str]:
    """The paths that a file vouches for, if it is such a file; they need not be there."""
    folder, _, name = path.rpartition("/")
    beside = _BESIDE.fullmatch(name)
    if beside:
        yield posixpath.join(folder, beside["name"])
        if folder.rpartition("/")[2] in _FOLDERS:
            yield posixpath.join(posixpath.dirname(folder), beside["name"])
    nss = _NSS.fullmatch(name)
    if nss:
        yield from (posixpath.join(folder, f"{nss['stem']}{ending}") for ending in ("", ".so"))
    if name.endswith(".hmac"):
        yield from _PATH.findall(_text(files, path))
    if _LIST.fullmatch(name):
        for line in _text(files, path).splitlines():
            yield posixpath.join(folder, line.rpartition(" ")[2].lstrip("*"))


def _text(files: FileSystem, path: str) -> str:
    try:
        return files.read(path, _MAX_TEXT).decode(errors="replace")
    except SlimgpuError:
        return ""
