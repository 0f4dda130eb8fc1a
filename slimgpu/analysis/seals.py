"""Files whose exact bytes something vouches for, so that they cannot be changed, only kept or dropped.

Sources: NSS signs its libraries in ``.chk`` files, https://firefox-source-docs.mozilla.org/security/nss/ (shlibsign);
libgcrypt, GnuTLS and OpenSSL of Fedora keep an HMAC beside theirs; OpenSSL's own FIPS module is covered by an HMAC in
its configuration, https://docs.openssl.org/3.0/man5/fips_config/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from slimgpu.rootfs.filesystem import FileSystem

_SUFFIXES: Final = (".hmac", ".chk", ".sig", ".asc", ".p7s", ".md5", ".sha1", ".sha256", ".sha512", ".sha256sum")
_ATTRIBUTES: Final = ("security.ima", "security.evm")
_FIPS: Final = "fips.so"


def seal_of(files: FileSystem, path: str) -> str:
    """What vouches for the file's bytes; '' when nothing that is known does."""
    directory, _, name = path.rpartition("/")
    for attribute, _ in files.nodes[path].inode.entry.xattrs:
        if attribute in _ATTRIBUTES:
            return f"its attribute {attribute}"
    if name == _FIPS:
        return "the configuration of OpenSSL's FIPS provider"
    stem = name.partition(".so")[0]
    for candidate in (*(f"{hidden}{name}{suffix}" for hidden in ("", ".") for suffix in _SUFFIXES), f"{stem}.chk"):
        beside = f"{directory}/{candidate}" if directory else candidate
        if beside in files.nodes:
            return candidate
    return ""
