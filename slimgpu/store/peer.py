"""A neighbour's cache as a source of parts of blobs (`slimgpu weights serve` on another node).

Neighbours speak plain HTTP: nobody sends them credentials, they send nothing that is secret to who may pull the image,
and their bytes count only once they have the digest that the registry's index names.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import requests

from slimgpu.errors import NotFoundError, RegistryError
from slimgpu.store.http_session import new_session, reason
from slimgpu.store.registry_ranges import read_part

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT: Final = (2.0, 10.0)
"""Seconds to connect, which is a matter of milliseconds between neighbours, and to wait for the next bytes."""
_PARTIAL: Final = 206
_NOT_FOUND: Final = 404


class Peer:
    """One neighbour, see `slimgpu.store.ranges.RangeSource`."""

    def __init__(self, host: str, repository: str) -> None:
        """``host`` is a name or address, with a port."""
        self.name = host
        self._base = f"http://{host}/v2/{repository}/blobs/"
        self._session = new_session(retries=0)  # what fails is asked of another source, or again later
        self._session.trust_env = False  # no proxy lies between neighbours

    @contextmanager
    def opened(self) -> Iterator[Peer]:
        """Close all connections in the end; none is made before something is read."""
        with self._session:
            yield self

    def read_into(self, digest: str, offset: int, buffer: memoryview) -> None:
        """See `RangeSource.read_into`. Raises `NotFoundError` for what isn't there, `RegistryError` else."""
        if not len(buffer):
            return
        span = f"{offset}-{offset + len(buffer) - 1}"
        what = f"bytes {span} of the blob {digest} of {self.name}"
        try:
            response = self._session.get(
                self._base + digest,
                headers={"Range": f"bytes={span}"},
                timeout=_TIMEOUT,
                allow_redirects=False,
                stream=True,
            )
        except (requests.RequestException, ValueError) as error:
            raise RegistryError(f"{self.name} is out of reach: {reason(error, self.name)}") from error
        if response.status_code == _PARTIAL:
            read_part(response, span, buffer, what)
            return
        response.close()
        if response.status_code == _NOT_FOUND:
            raise NotFoundError(f"{self.name} lacks {what}; another source may have it")
        raise RegistryError(f"{self.name} answered {response.status_code} for {what}; try again later")
