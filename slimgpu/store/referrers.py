"""What is attached to a manifest in a registry: its referrers.

A registry without the referrers API, which its answer to a manifest with a ``subject`` shows, has a list kept by its
clients instead: an index with a tag made of the subject's digest. Clients that write at the same time can lose one
another's entries there, so each looks again after a moment, and adds its own once more.

Sources: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#listing-referrers,
#pushing-manifests-with-subject and #referrers-tag-schema
"""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urljoin

from slimgpu.errors import ImageError, NotFoundError, RegistryError
from slimgpu.oci import media
from slimgpu.oci.manifest import parse_index, referrers_of_type
from slimgpu.store.documents import MAX_DOCUMENT
from slimgpu.store.http_session import origin, read_bounded

if TYPE_CHECKING:
    import requests

    from slimgpu.oci.manifest import Descriptor
    from slimgpu.store.registry import Repository

_OK: Final = 200
_NO_API: Final = (400, 404, 405, 501)
_ATTEMPTS: Final = 8
_SETTLE: Final = (0.1, 0.3)
"""Seconds from a write to its check: much longer than another client's way from reading the list to writing it."""
_MAX_PAGES: Final = 100
_EMPTY: Final = {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": []}


def registry_referrers(repository: Repository, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
    """What is attached to ``digest`` in a repository, of any or of one type.

    Raises `RegistryError`, and `ImageError` for an answer that is no index.
    """
    found = _ask(repository, digest, artifact_type)
    if found is None:
        data = json.dumps(_read_list(repository, digest)).encode()
        found = list(parse_index(data, f"the referrers of {digest} of {repository.name}").manifests)
    return referrers_of_type(found, artifact_type)


def _ask(repository: Repository, digest: str, artifact_type: str | None) -> list[Descriptor] | None:
    """The answer of the referrers API, page by page; None when the registry has none."""
    what = f"the referrers of {digest}"
    query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
    target: str | None = repository.path("referrers", digest + query)
    found: list[Descriptor] = []
    for _ in range(_MAX_PAGES):
        if target is None:
            return found
        with repository.send("GET", target, what, good=(_OK, *_NO_API)) as response:
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
            if response.status_code != _OK or kind != media.OCI_INDEX:
                return None
            data = read_bounded(response, MAX_DOCUMENT) or b""
            found += parse_index(data, f"{what} of {repository.name}").manifests
            target = _next_page(response, f"{what} of {repository.name}")
    raise RegistryError(f"{what} of {repository.name} do not end; name one artifact by its digest")


def _next_page(response: requests.Response, what: str) -> str | None:
    following = response.links.get("next", {}).get("url")
    if not following:
        return None
    try:
        target = urljoin(response.url, following)
    except ValueError:
        target = ""
    if origin(target) != origin(response.url):
        raise RegistryError(f"{what} go on at another host; mend the registry")
    return target


def attach(repository: Repository, entry: Descriptor, subject: str) -> None:
    """Add ``entry`` to the list that clients keep of what is attached to ``subject``.

    Other entries stay, but for those whose manifest is gone where that keeps the registry from taking the list.
    Raises `RegistryError` when others keep writing over it.
    """
    for _ in range(_ATTEMPTS):
        document = _read_list(repository, subject)
        if any(present["digest"] == entry.digest for present in document["manifests"]):
            return
        document["manifests"].append(_entry(entry))
        _write_list(repository, subject, document)
        time.sleep(random.uniform(*_SETTLE))  # noqa: S311 - so that two writers do not meet again
    raise RegistryError(
        f"{entry.digest} was stored in {repository.name}, but others keep writing the list of what is attached to "
        f"{subject}; push it again"
    )


def _entry(descriptor: Descriptor) -> dict[str, Any]:
    found = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
        "artifactType": descriptor.artifact_type,
        "annotations": dict(descriptor.annotations or {}),
    }
    return {key: value for key, value in found.items() if value}


def _tag(digest: str) -> str:
    return digest.replace(":", "-")


def _read_list(repository: Repository, subject: str) -> dict[str, Any]:
    """The list as it is, with all that others wrote there; an empty one where there is none."""
    try:
        media_type, data = repository.manifest(_tag(subject))
    except NotFoundError:
        return {**_EMPTY, "manifests": []}
    if media_type not in media.INDEXES:
        raise ImageError(f"{_tag(subject)} of {repository.name} is no list of referrers; remove that tag")
    parse_index(data, f"the list of referrers {_tag(subject)} of {repository.name}")
    document: dict[str, Any] = json.loads(data)
    return {**document, "manifests": document.get("manifests", [])}


def _write_list(repository: Repository, subject: str, document: dict[str, Any]) -> None:
    try:
        _put(repository, subject, document)
    except RegistryError:
        present = [entry for entry in document["manifests"] if repository.has("manifests", entry["digest"])]
        if len(present) == len(document["manifests"]):
            raise
        _put(repository, subject, {**document, "manifests": present})


def _put(repository: Repository, subject: str, document: dict[str, Any]) -> None:
    data = json.dumps(document, indent=2).encode()
    repository.put_manifest(_tag(subject), document.get("mediaType", media.OCI_INDEX), data)
