"""Content digests, ``sha256:<64 hex digits>``.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.0/descriptor.md#digests
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Annotated, Any, Final

from slimgpu.errors import DigestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic_core import CoreSchema

_LENGTHS: Final = {"sha256": 64, "sha512": 128}
_DIGEST: Final = re.compile(r"([a-z0-9]+):([0-9a-f]+)")


def is_digest(text: str) -> bool:
    """Whether ``text`` is a well-formed digest of an algorithm that we can check."""
    match = _DIGEST.fullmatch(text)
    return match is not None and len(match[2]) == _LENGTHS.get(match[1])


def _validate(text: str) -> str:
    if not is_digest(text):
        raise ValueError("not a sha256 or sha512 digest")
    return text


class _IsDigest:
    """What pydantic's ``AfterValidator(_validate)`` is, for those who check digests without loading pydantic."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        from pydantic_core import core_schema  # noqa: PLC0415 - only pydantic calls this

        return core_schema.no_info_after_validator_function(_validate, handler(source))


Digest = Annotated[str, _IsDigest]


def digest_bytes(data: bytes) -> str:
    """The sha256 digest of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check_bytes(data: bytes, digest: str, what: str) -> bytes:
    """``data`` itself when it hashes to ``digest``, else `DigestError` naming ``what``."""
    found = f"{digest.partition(':')[0]}:{hashlib.new(digest.partition(':')[0], data).hexdigest()}"
    if found != digest:
        raise DigestError(f"{what} has the digest {found}, not {digest}; fetch or copy the image again")
    return data


def verified(chunks: Iterable[bytes], digest: str, size: int | None, what: str) -> Iterator[bytes]:
    """Pass ``chunks`` through; raise `DigestError` at their end, or at the first byte beyond ``size``.

    ``size`` None skips the length check, for stores that do not record one.
    """
    algorithm = digest.partition(":")[0]
    hasher = hashlib.new(algorithm)
    count = 0
    for chunk in chunks:
        count += len(chunk)
        if size is not None and count > size:
            raise DigestError(f"{what} is longer than the {size} bytes its manifest names")
        hasher.update(chunk)
        yield chunk
    if size is not None and count < size:
        raise DigestError(f"{what} ends after {count} of {size} bytes; fetch or copy the image again")
    found = f"{algorithm}:{hasher.hexdigest()}"
    if found != digest:
        raise DigestError(f"{what} has the digest {found}, not {digest}; fetch or copy the image again")


def is_whole(chunks: Iterable[bytes], digest: str, size: int) -> bool:
    """Whether ``chunks`` are the bytes that the digest names; raises what reading them raises."""
    try:
        for _ in verified(chunks, digest, size, digest):
            pass
    except DigestError:
        return False
    return True
