"""Parts of a registry's blobs, straight from the socket into the reader's buffer.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pulling-blobs (``Range``, RFC 9110
section 14)
"""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Final

from slimgpu.errors import NotFoundError, RegistryError

if TYPE_CHECKING:
    import requests

    from slimgpu.store.registry import Repository

_PIECE: Final = 1024 * 1024
_WHOLE: Final = 200
_PARTIAL: Final = 206
_NOT_FOUND: Final = 404


class RegistryRanges:
    """The blobs of one repository, see `slimgpu.store.ranges.RangeSource`."""

    def __init__(self, repository: Repository) -> None:
        self.name = repository.name
        self._repository = repository

    def read_into(self, digest: str, offset: int, buffer: memoryview) -> None:
        """See `RangeSource.read_into`. Raises `RegistryError`, and `NotFoundError` for what isn't there."""
        if not len(buffer):
            return
        span = f"{offset}-{offset + len(buffer) - 1}"
        what = f"bytes {span} of the blob {digest}"
        target = self._repository.path("blobs", digest)
        headers = {"Range": f"bytes={span}"}
        response = self._repository.send("GET", target, what, good=(_PARTIAL, _NOT_FOUND, _WHOLE), headers=headers)
        if response.status_code == _NOT_FOUND:
            response.close()
            raise NotFoundError(f"{self.name} lacks {what}; push the artifact again")
        if response.status_code == _WHOLE:
            response.close()
            raise RegistryError(f"{self.name} lies in a registry that serves no parts of blobs; copy it to another one")
        read_part(response, span, buffer, f"{what} of {self.name}")


def read_part(response: requests.Response, span: str, buffer: memoryview, what: str) -> None:
    """Fill ``buffer`` from a 206 answer, which must be of the bytes ``span``; ends the answer in any case.

    Raises `RegistryError` naming ``what``.
    """
    try:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {span}/"):
            raise http.client.HTTPException("the answer holds another part")  # noqa: TRY301 - one way out for all
        # http.client's own answer: urllib3 would read it through two copies, at half the speed.
        body = response.raw._original_response  # noqa: SLF001 - requests itself relies on it
        assert body is not None
        _fill(body, buffer)
        response.raw.release_conn()
    except BaseException as error:
        response.close()
        if isinstance(error, (OSError, http.client.HTTPException)):
            raise RegistryError(f"reading {what} broke off ({error}); try again") from error
        raise


def _fill(body: http.client.HTTPResponse, buffer: memoryview) -> None:
    filled = 0
    while filled < len(buffer):
        count = body.readinto(buffer[filled : filled + _PIECE])
        if not count:
            raise http.client.IncompleteRead(b"", len(buffer) - filled)
        filled += count
    if body.read(1):  # reads what ends the answer, so that the connection can be used again
        raise http.client.HTTPException("the answer is longer than its range")
