"""What is attached to an image is found: by the registry's API, by the tag that clients keep, and in layouts."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import requests

from slimgpu.errors import ImageError, RegistryError
from slimgpu.oci import media
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.manifest import Descriptor, referrer
from slimgpu.oci.reference import by_digest, parse_reference
from slimgpu.progress import SILENT
from slimgpu.store import referrers
from slimgpu.store.transport import find_referrers, open_artifact
from tests.support.fake_http import Answer, Request, serving
from tests.support.images import hello_image
from tests.support.store import contents, make_artifact, put, put_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.oci.image import Artifact, Image
    from slimgpu.store.cache import Cache
    from tests.support.registry import Registry

WEIGHTS, OTHER = "application/vnd.test.weights", "application/vnd.test.other"


def own_image() -> Image:
    return hello_image(text=f"{uuid.uuid4()}\n")


def subject_of(image: Image) -> Descriptor:
    return Descriptor(media.OCI_MANIFEST, digest_bytes(image.raw_manifest), len(image.raw_manifest))


def found(name: str, digest: str, kind: str | None, cache: Cache) -> list[Descriptor]:
    return list(find_referrers(parse_reference(name), digest, kind, cache, SILENT))


@pytest.mark.parametrize("transport", ["oci", "docker"])
def test_attached_and_found(transport: str, tmp_path: Path, cache: Cache, registry: Registry) -> None:
    places = {"oci": f"oci:{tmp_path}/image", "docker": f"docker://{registry.host}/{uuid.uuid4().hex}"}
    place = places[transport]
    image = own_image()
    subject = subject_of(image)
    put(image, f"{place}:v1", cache)
    assert found(f"{place}:v1", subject.digest, None, cache) == []
    attached = {kind: make_artifact([kind.encode()], kind, subject) for kind in (WEIGHTS, OTHER)}
    for artifact in attached.values():
        digest = digest_bytes(artifact.raw_manifest)
        put_artifact(artifact, place if transport == "oci" else f"{place}@{digest}", cache)
    described = [referrer(artifact.manifest, artifact.raw_manifest) for artifact in attached.values()]
    assert found(f"{place}:v1", subject.digest, None, cache) == described
    (only,) = found(f"{place}:v1", subject.digest, WEIGHTS, cache)
    reference = by_digest(parse_reference(f"{place}:v1"), only.digest)
    with open_artifact(reference, cache, SILENT) as (read, _):
        assert contents(read) == [WEIGHTS.encode()]
        put_artifact(read, f"oci-archive:{tmp_path}/copy.tar", cache)
    assert found(f"oci-archive:{tmp_path}/copy.tar", subject.digest, WEIGHTS, cache) == [described[0]]
    for elsewhere in (f"docker-archive:{tmp_path}/a.tar", "docker-daemon:a:v1"):
        assert found(elsewhere, subject.digest, None, cache) == []


def list_url(registry: Registry, repository: str, subject: Descriptor) -> str:
    return f"http://{registry.host}/v2/{repository}/manifests/{subject.digest.replace(':', '-')}"


def attach_all(registry: Registry, repository: str, artifacts: list[Artifact], cache: Cache) -> None:
    with ThreadPoolExecutor(len(artifacts)) as threads:
        names = [f"docker://{registry.host}/{repository}@{digest_bytes(a.raw_manifest)}" for a in artifacts]
        list(threads.map(put_artifact, artifacts, names, [cache] * len(names)))


def test_several_writers_at_once(cache: Cache, registry: Registry) -> None:
    repository, subject = uuid.uuid4().hex, subject_of(own_image())
    artifacts = [make_artifact([b"x"], WEIGHTS, subject) for _ in range(6)]
    attach_all(registry, repository, artifacts, cache)
    kept = found(f"docker://{registry.host}/{repository}:v1", subject.digest, None, cache)
    assert {entry.digest for entry in kept} == {digest_bytes(artifact.raw_manifest) for artifact in artifacts}


def test_what_others_wrote_stays(cache: Cache, registry: Registry) -> None:
    repository, subject = uuid.uuid4().hex, subject_of(own_image())
    first, second = (make_artifact([b"x"], WEIGHTS, subject) for _ in range(2))
    attach_all(registry, repository, [first], cache)
    url = list_url(registry, repository, subject)
    document = requests.get(url, headers={"Accept": media.OCI_INDEX}, timeout=10).json()
    assert document["manifests"][0]["artifactType"] == WEIGHTS
    document["manifests"][0]["data"] = "e30="
    document["annotations"] = {"by": "others"}
    requests.put(url, json.dumps(document), headers={"Content-Type": media.OCI_INDEX}, timeout=10).raise_for_status()
    attach_all(registry, repository, [second, first], cache)
    after = requests.get(url, headers={"Accept": media.OCI_INDEX}, timeout=10).json()
    assert after["annotations"] == {"by": "others"}
    assert after["manifests"][0] == document["manifests"][0]
    assert len(after["manifests"]) == 2


def test_entries_whose_manifest_is_gone_do_not_stop_us(cache: Cache, registry: Registry) -> None:
    repository, subject = uuid.uuid4().hex, subject_of(own_image())
    gone, new = (make_artifact([b"x"], WEIGHTS, subject) for _ in range(2))
    attach_all(registry, repository, [gone], cache)
    digest = digest_bytes(gone.raw_manifest)
    requests.delete(f"http://{registry.host}/v2/{repository}/manifests/{digest}", timeout=10).raise_for_status()
    attach_all(registry, repository, [new], cache)
    kept = found(f"docker://{registry.host}/{repository}:v1", subject.digest, None, cache)
    assert [entry.digest for entry in kept] == [digest_bytes(new.raw_manifest)]


def test_a_tag_that_is_no_list(cache: Cache, registry: Registry) -> None:
    image, repository = own_image(), uuid.uuid4().hex
    subject = subject_of(image)
    put(image, f"docker://{registry.host}/{repository}:{subject.digest.replace(':', '-')}", cache)
    with pytest.raises(ImageError, match="is no list of referrers; remove that tag"):
        attach_all(registry, repository, [make_artifact([b"x"], WEIGHTS, subject)], cache)


SUBJECT = subject_of(hello_image())
API = f"/v2/a/referrers/{SUBJECT.digest}"


def entry(number: int) -> dict[str, object]:
    return {"mediaType": media.OCI_MANIFEST, "digest": f"sha256:{number:064}", "size": 3, "artifactType": WEIGHTS}


def listing(*numbers: int, **headers: str) -> Answer:
    body = json.dumps({"schemaVersion": 2, "manifests": [entry(number) for number in numbers]}).encode()
    return Answer(body=body, headers={"Content-Type": media.OCI_INDEX, **headers})


def test_the_api_of_a_registry_page_by_page(cache: Cache) -> None:
    def behave(request: Request) -> Answer:
        if "page=2" in request.path:
            return listing(2, 3)
        return listing(1, 2, Link=f'<{API}?page=2>; rel="next"') if request.path.startswith(API) else Answer()

    with serving(behave) as server:
        kept = found(f"docker://{server.host}/a:v1", SUBJECT.digest, WEIGHTS, cache)
        assert "artifactType=application%2Fvnd.test.weights" in server.asked(API)[0].path
    assert [int(descriptor.digest[7:]) for descriptor in kept] == [1, 2, 3]


@pytest.mark.parametrize("link", [f"<{API}>", "<http://127.0.0.1:1/>", "<http://[>"])
def test_the_api_of_a_registry_that_lies(link: str, cache: Cache) -> None:
    with (
        serving(lambda _: listing(1, Link=f'{link}; rel="next"')) as server,
        pytest.raises(RegistryError, match=r"do not end|go on at another host"),
    ):
        found(f"docker://{server.host}/a:v1", SUBJECT.digest, None, cache)


def test_a_page_is_no_answer(cache: Cache) -> None:
    def behave(request: Request) -> Answer:
        page = Answer(body=b"<html>", headers={"Content-Type": "text/html"})
        return page if request.path == API else Answer(404)

    with serving(behave) as server:
        assert found(f"docker://{server.host}/a:v1", SUBJECT.digest, None, cache) == []


@pytest.mark.parametrize("answered", [True, False])
def test_the_list_is_kept_only_where_it_is_needed(
    answered: bool,  # noqa: FBT001
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The registry that forgets what is written is that of clients who write at the same time, all the time."""
    monkeypatch.setattr(referrers, "_SETTLE", (0.0, 0.0))

    def behave(request: Request) -> Answer:
        if request.method == "POST":
            return Answer(202, headers={"Location": "/upload"})
        if request.method == "PUT":
            return Answer(201, headers={"OCI-Subject": SUBJECT.digest} if answered else {})
        return Answer(404 if request.method == "GET" and "sha256-" in request.path else 200)

    artifact = make_artifact([b"x"], WEIGHTS, SUBJECT)
    with serving(behave) as server:
        if answered:
            put_artifact(artifact, f"docker://{server.host}/a:v1", cache)
        else:
            with pytest.raises(RegistryError, match=r"others keep writing the list .*; push it again"):
                put_artifact(artifact, f"docker://{server.host}/a:v1", cache)
        lists = server.asked(f"/v2/a/manifests/{SUBJECT.digest.replace(':', '-')}")
        assert bool(lists) != answered
