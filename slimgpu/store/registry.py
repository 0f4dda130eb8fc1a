"""Reading from a registry: manifests and blobs of one repository, and images made of them.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin

import requests
import urllib3

from slimgpu.errors import ImageError, NotFoundError, RegistryError
from slimgpu.oci import media
from slimgpu.oci.digest import check_bytes, is_digest
from slimgpu.oci.image import CHUNK
from slimgpu.store.documents import MAX_DOCUMENT, check_document_size, resolve_artifact, resolve_image
from slimgpu.store.http_session import (
    PASSING,
    RANGE_TIMEOUT,
    TIMEOUT,
    UPLOAD_TIMEOUT,
    is_loopback,
    new_session,
    origin,
    read_bounded,
    reason,
)
from slimgpu.store.registry_auth import Authenticator
from slimgpu.store.registry_ranges import RegistryRanges

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from slimgpu.oci.image import Artifact, Image
    from slimgpu.oci.manifest import Descriptor, Platform
    from slimgpu.oci.mutate import OpenBlob
    from slimgpu.oci.reference import RegistryReference
    from slimgpu.store.documents import Documents
    from slimgpu.store.ranges import RangeSource

_API_HOSTS: Final = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_DOCUMENTS: Final = media.INDEXES | media.MANIFESTS
_ACCEPT: Final = ", ".join(sorted(_DOCUMENTS))
_OK: Final = (200,)
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_STORED: Final = (200, 201, 202)
_TOO_MANY: Final = 429
_MAX_DETAIL: Final = 200
_SURPRISES: Final = ("DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN")
"""What we send is checked, so it was damaged on its way, or storage does not show yet what was just stored there."""
_BROKEN: Final = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class PassingError(RegistryError):
    """A failure that another attempt may not meet; to callers of the store it is a `RegistryError` like any other."""


class Repository:
    """One repository of a registry over HTTP; any number of threads may use it."""

    def __init__(self, reference: RegistryReference, actions: str = "pull") -> None:
        self.name = str(reference)
        self._host = reference.host
        self._repository = reference.repository
        self._session = new_session()
        self._auth = Authenticator(self._session, reference.host, reference.repository, actions)

    @contextmanager
    def opened(self) -> Iterator[Repository]:
        """Close all connections in the end."""
        with self._session:
            yield self

    @cached_property
    def _base(self) -> str:
        """How the host is spoken to: on loopback by HTTP, unless it wants HTTPS, which Go's servers say with a 400."""
        secure, plain = f"https://{_API_HOSTS.get(self._host, self._host)}/", f"http://{self._host}/"
        if not is_loopback(origin(secure)[1]):
            return secure
        try:
            with self._session.get(f"{plain}v2/", timeout=TIMEOUT, allow_redirects=False, stream=True) as response:
                return secure if response.status_code == requests.codes.bad_request else plain
        except requests.RequestException as error:
            raise RegistryError(f"{self.name} is out of reach: {reason(error, self._host)}") from error

    def manifest(self, identifier: str) -> tuple[str, bytes]:
        """Media type and bytes of the manifest or index with this tag or digest; the digest is checked."""
        what = f"the manifest {identifier}"
        target = self.path("manifests", identifier)
        with self.send("GET", target, what, good=(*_OK, _NOT_FOUND), headers={"Accept": _ACCEPT}) as response:
            if response.status_code == _NOT_FOUND:
                raise NotFoundError(
                    f"{self.name} does not exist: {self._host} has no {identifier} in {self._repository}; "
                    "check the repository and the tag"
                )
            data = self._document(response, what)
            told = response.headers.get("Docker-Content-Digest", "")
            media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        digest = identifier if is_digest(identifier) else told
        return media_type, check_bytes(data, digest, f"{what} of {self.name}") if is_digest(digest) else data

    def put_manifest(self, identifier: str, media_type: str, data: bytes) -> Mapping[str, str]:
        """Store a manifest or index by tag or digest; gives the headers of the answer."""
        target = self.path("manifests", identifier)
        headers = {"Content-Type": media_type}
        with self.send(
            "PUT", target, f"the manifest {identifier}", good=_STORED, headers=headers, body=data
        ) as response:
            return response.headers

    def has(self, kind: str, digest: str) -> bool:
        """Whether the repository holds the manifest or blob."""
        headers = {"Accept": _ACCEPT}
        good = (*_OK, _NOT_FOUND)
        with self.send("HEAD", self.path(kind, digest), f"{kind} {digest}", good=good, headers=headers) as response:
            return response.status_code in _OK

    def may_read(self, repository: str) -> None:
        """Be allowed to read another repository of the same registry, too; `RegistryError` when that is refused."""
        self._auth.include(repository)

    def document(self, descriptor: Descriptor) -> bytes:
        """The manifest, index or configuration that ``descriptor`` names, checked."""
        if descriptor.media_type in _DOCUMENTS:
            return self.manifest(descriptor.digest)[1]
        what = f"{descriptor.media_type} of {self.name}"
        check_document_size(descriptor.size, what)
        with self._get_blob(descriptor.digest) as response:
            return check_bytes(self._document(response, what), descriptor.digest, what)

    def open_blob(self, descriptor: Descriptor) -> OpenBlob:
        """The blob as it is stored; the caller checks its digest."""

        @contextmanager
        def opened() -> Iterator[Iterator[bytes]]:
            with self._get_blob(descriptor.digest) as response:
                yield self._chunks(response, descriptor.digest)

        return opened

    def _get_blob(self, digest: str) -> requests.Response:
        good = (*_OK, _NOT_FOUND)
        response = self.send("GET", self.path("blobs", digest), f"the blob {digest}", good=good)
        if response.status_code == _NOT_FOUND:
            response.close()
            raise ImageError(f"{self.name} lacks the blob {digest}; push the image again")
        return response

    def _chunks(self, response: requests.Response, digest: str) -> Iterator[bytes]:
        """Undecoded: a ``Content-Encoding`` would only be a layer's own compression, mistaken for transport's."""
        try:
            yield from response.raw.stream(CHUNK, decode_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise PassingError(f"reading {digest} of {self.name} broke off; try again") from error

    def _document(self, response: requests.Response, what: str) -> bytes:
        try:
            data = read_bounded(response, MAX_DOCUMENT)
        except requests.RequestException as error:
            raise RegistryError(f"reading {what} of {self.name} broke off; try again") from error
        if data is None:
            raise ImageError(f"{what} of {self.name} is longer than {MAX_DOCUMENT} bytes, which no image needs")
        return data

    def path(self, kind: str, identifier: str) -> str:
        """The address of a manifest, a blob or an upload, relative to the registry."""
        return f"v2/{self._repository}/{kind}/{identifier}"

    def send(
        self,
        method: str,
        target: str,
        what: str,
        *,
        good: Collection[int] = _OK,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        renewals: int = 1,
    ) -> requests.Response:
        """The answer, whose status is one of ``good``; answers a demand for credentials ``renewals`` times.

        ``body`` is bytes, or can be iterated again and has a length. Credentials go to the registry's own origin
        only. Raises `RegistryError` naming the reference and ``what``.
        """
        url = urljoin(self._base, target)
        for left in range(renewals, -1, -1):
            used = self._auth.header() if origin(url) == origin(self._base) else None
            sent = {**(headers or {}), **({"Authorization": used} if used else {})}
            response = self._send_once(method, url, sent, body)
            if response.status_code in good:
                return response
            if response.status_code != _UNAUTHORIZED or origin(response.url) != origin(self._base):
                raise self._failure(response, what)
            response.close()
            if not left:
                break
            self._auth.renew(response.headers.get("WWW-Authenticate", ""), used, response.url)
        raise self._auth.refused()

    def _send_once(self, method: str, url: str, headers: Mapping[str, str], body: Any) -> requests.Response:
        follow = method in ("GET", "HEAD")
        timeout = UPLOAD_TIMEOUT if method == "PUT" else RANGE_TIMEOUT if "Range" in headers else TIMEOUT
        try:
            return self._session.request(
                method, url, headers=headers, data=body, timeout=timeout, allow_redirects=follow, stream=True
            )
        except (requests.RequestException, ValueError) as error:  # the latter for a redirect to no URL
            passing = isinstance(error, _BROKEN) and not isinstance(error, requests.exceptions.SSLError)
            kind = PassingError if passing else RegistryError
            raise kind(f"{self.name} is out of reach: {reason(error, origin(url)[1])}") from error

    def _failure(self, response: requests.Response, what: str) -> RegistryError:
        status, detail = response.status_code, _detail(response)
        response.close()
        if status in (_UNAUTHORIZED, _FORBIDDEN):
            return self._auth.refused()
        if status == _TOO_MANY:
            return PassingError(f"{self._host} wants fewer requests ({what} of {self.name}); try again later")
        way_out = "try again later" if status >= requests.codes.internal_server_error else "check the reference"
        kind = PassingError if status in PASSING or any(code in detail for code in _SURPRISES) else RegistryError
        return kind(f"{self._host} answered {status}{detail} for {what} of {self.name}; {way_out}")


def _detail(response: requests.Response) -> str:
    """What the registry says of its failure, made harmless."""
    try:
        errors = json.loads(read_bounded(response, CHUNK) or b"")["errors"]
        text = f"{errors[0].get('code', '')}: {errors[0].get('message', '')}"
    except (requests.RequestException, ValueError, LookupError, TypeError, AttributeError):
        return ""
    return f" ({''.join(c for c in text if c.isprintable())[:_MAX_DETAIL]})"


@contextmanager
def open_registry_image(reference: RegistryReference, platform: Platform) -> Iterator[tuple[Image, RangeSource]]:
    """The image in the registry, whose layers are fetched as they are opened, and its blobs by position."""
    with Repository(reference).opened() as repository:
        media_type, data = repository.manifest(reference.identifier)
        image = resolve_image(
            str(reference),
            media_type,
            data,
            platform,
            fetch=repository.document,
            open_blob=repository.open_blob,
            origin=reference,
        )
        yield image, RegistryRanges(repository)


@contextmanager
def open_registry_artifact(
    reference: RegistryReference, kept: Documents | None = None
) -> Iterator[tuple[Artifact, RangeSource]]:
    """The artifact in the registry, and its blobs by position; what is ``kept`` here, the registry isn't asked for."""
    with Repository(reference).opened() as repository:

        def fetch(descriptor: Descriptor) -> bytes:
            return (kept and kept.document(descriptor)) or repository.document(descriptor)

        data = (kept and kept.manifest(reference)) or repository.manifest(reference.identifier)[1]
        name = str(reference)
        artifact = resolve_artifact(name, data, fetch=fetch, open_blob=repository.open_blob, origin=reference)
        yield artifact, RegistryRanges(repository)
