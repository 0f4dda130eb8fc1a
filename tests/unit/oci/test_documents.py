from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import DigestError, ImageError
from slimgpu.oci import media
from slimgpu.oci.config import ImageConfig
from slimgpu.oci.digest import check_bytes, digest_bytes, is_digest, verified
from slimgpu.oci.manifest import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    choose,
    dump,
    is_index,
    parse_index,
    parse_manifest,
)

D1, D2, D3 = (digest_bytes(bytes([number])) for number in range(3))
AMD64 = Platform("amd64", "linux")

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9) | st.just(D1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=10,
)
_keys = st.sampled_from(
    [
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "manifests",
        "annotations",
        "subject",
        "artifactType",
        "digest",
        "size",
        "platform",
        "rootfs",
        "diff_ids",
        "history",
        "architecture",
        "os",
        "variant",
        "Env",
    ]
)
_documents = st.recursive(_json, lambda inner: st.dictionaries(_keys, inner, max_size=6), max_leaves=20)


@pytest.mark.parametrize("text", [D1, "sha512:" + "0" * 128])
def test_digests(text: str) -> None:
    assert is_digest(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        D1[:-1],
        D1 + "0",
        D1.upper(),
        D1 + "\n",
        " " + D1,
        "md5:" + "0" * 32,
        "sha512:" + "0" * 64,
        "sha256:" + "g" * 64,
        "sha256/" + "0" * 64,
        "sha256:../../" + "0" * 58,
    ],
)
def test_what_is_no_digest(text: str) -> None:
    assert not is_digest(text)


def test_bytes_are_checked() -> None:
    assert digest_bytes(b"x") == f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    assert check_bytes(b"x", digest_bytes(b"x"), "it") == b"x"
    long = f"sha512:{hashlib.sha512(b'x').hexdigest()}"
    assert check_bytes(b"x", long, "it") == b"x"
    with pytest.raises(DigestError, match="it has the digest sha512:"):
        check_bytes(b"y", long, "it")


@given(st.lists(st.binary(max_size=20), max_size=5), st.integers(-3, 3), st.booleans())
def test_chunks_are_checked_as_they_pass(chunks: list[bytes], more: int, spoil: bool) -> None:  # noqa: FBT001
    whole = b"".join(chunks)
    digest = digest_bytes(whole + b"!" if spoil else whole)
    size = max(0, len(whole) + more)
    passed = []
    try:
        for chunk in verified(iter(chunks), digest, size, "it"):
            passed.append(chunk)  # noqa: PERF402 - what came before an error counts
    except DigestError as error:
        assert size != len(whole) or spoil
        message = str(error)
        assert message.startswith("it ")
        assert len(b"".join(passed)) <= size
    else:
        assert (size, spoil, passed) == (len(whole), False, chunks)
    assert b"".join(verified(chunks, digest_bytes(whole), None, "it")) == whole


def descriptor(**more: Any) -> dict[str, Any]:
    return {"mediaType": media.OCI_LAYER_GZIP, "digest": D1, "size": 5, **more}


def manifest(**more: Any) -> dict[str, Any]:
    config = descriptor(mediaType=media.OCI_CONFIG)
    return {"schemaVersion": 2, "config": config, "layers": [descriptor(), descriptor(digest=D2)], **more}


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def test_a_manifest() -> None:
    data = encoded(manifest(mediaType=media.DOCKER_MANIFEST, annotations={"a": "b"}, unknown={"x": [1]}))
    found = parse_manifest(data, "it")
    assert [layer.digest for layer in found.layers] == [D1, D2]
    assert (found.media_type, found.annotations) == (media.DOCKER_MANIFEST, {"a": "b"})


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"schemaVersion": 1}, "schemaVersion"),
        ({"schemaVersion": "two"}, "schemaVersion"),
        ({"layers": None}, "layers"),
        ({"layers": [descriptor(digest="sha256:x")]}, "layers.0.digest"),
        ({"layers": [descriptor(digest="../../etc/passwd")]}, "layers.0.digest"),
        ({"layers": [descriptor(size=-1)]}, "layers.0.size"),
        ({"layers": [descriptor(size=1.5)]}, "layers.0.size"),
        ({"layers": [descriptor(mediaType=None)]}, "layers.0.mediaType"),
        ({"config": []}, "config"),
        ({"annotations": {"a": 1}}, "annotations.a"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(ImageError, match=f"the manifest of x is not a valid manifest: {where}: "):
        parse_manifest(encoded(manifest(**change)), "the manifest of x")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"null", b"[]", b"\xff", b'"x"', b"[" * 200_000, b'{"a":' * 100_000, b"1" * 9999]
)
def test_garbage_is_no_document(data: bytes) -> None:
    for parse in (parse_manifest, parse_index, ImageConfig.parse):
        with pytest.raises(ImageError, match="it"):
            parse(data, "it")


def test_documents_longer_than_registries_take_are_not_parsed() -> None:
    with pytest.raises(ImageError, match="a manifest has at most 4194304"):
        parse_manifest(b" " * 4_194_305, "it")


@given(st.binary(max_size=100) | _documents.map(encoded))
def test_any_bytes_are_a_document_or_an_image_error(data: bytes) -> None:
    for parse in (parse_manifest, parse_index, ImageConfig.parse):
        try:
            parse(data, "it")
        except ImageError as error:
            message = str(error)
            assert "it" in message


@given(_documents, st.sampled_from(["config", "layers", "annotations", "subject", "platform"]))
def test_a_manifest_with_one_wrong_field(value: Any, field: str) -> None:
    try:
        found = parse_manifest(encoded(manifest(**{field: value})), "it")
    except ImageError:
        return
    assert parse_manifest(dump(found), "it") == found


_platforms = st.builds(Platform, st.sampled_from(["amd64", "arm64"]), st.just("linux"), st.none() | st.just("v8"))
_descriptors = st.builds(
    Descriptor,
    media_type=st.text(min_size=1),
    digest=st.sampled_from([D1, D2, D3]),
    size=st.integers(0, 2**50),
    urls=st.none() | st.lists(st.text(), max_size=2).map(tuple),
    annotations=st.none() | st.dictionaries(st.text(), st.text(), max_size=2),
    platform=st.none() | _platforms,
    artifact_type=st.none() | st.text(),
)


@given(_descriptors, st.lists(_descriptors, max_size=3), st.none() | st.dictionaries(st.text(), st.text(), max_size=2))
def test_manifests_and_indexes_read_back(
    config: Descriptor, layers: list[Descriptor], notes: dict[str, str] | None
) -> None:
    one = Manifest(2, config, tuple(layers), media.OCI_MANIFEST, None, config, notes)
    assert parse_manifest(dump(one), "it") == one
    assert dump(parse_manifest(dump(one), "it")) == dump(one)
    several = Index(2, tuple(layers), media.OCI_INDEX, notes)
    assert parse_index(dump(several), "it") == several


def image(digest: str, platform: Platform | None, **more: Any) -> Descriptor:
    return Descriptor(media.OCI_MANIFEST, digest, 1, platform=platform, **more)


_ATTESTATION = image(
    D3, Platform("unknown", "unknown"), annotations={"vnd.docker.reference.type": "attestation-manifest"}
)


@pytest.mark.parametrize(
    ("manifests", "wanted", "chosen"),
    [
        ([image(D1, Platform("arm64", "linux")), image(D2, AMD64)], AMD64, D2),
        ([_ATTESTATION, image(D1, AMD64)], AMD64, D1),
        ([image(D1, None), _ATTESTATION], AMD64, D1),
        ([image(D1, None), image(D2, AMD64)], AMD64, D2),
        ([image(D1, None), image(D2, None, artifact_type="x")], AMD64, D1),
        ([image(D1, Platform("arm", "linux", "v6")), image(D2, Platform("arm", "linux", "v7"))], "linux/arm/v7", D2),
        ([image(D1, Platform("arm64", "linux", "v8"))], "linux/arm64", D1),
        ([image(D1, Platform("arm64", "linux"))], "linux/arm64/v8", D1),
        ([image(D1, AMD64), image(D2, AMD64)], AMD64, D1),
    ],
)
def test_the_image_for_a_platform(manifests: list[Descriptor], wanted: Platform | str, chosen: str) -> None:
    platform = Platform.parse(wanted) if isinstance(wanted, str) else wanted
    assert choose(Index(2, tuple(manifests)), platform, "it").digest == chosen


@pytest.mark.parametrize(
    ("manifests", "offered"),
    [
        ([], "none"),
        ([_ATTESTATION], "none"),
        ([image(D1, None), image(D2, None)], "none"),
        ([image(D1, Platform("arm64", "linux", "v8"))], "linux/arm64/v8"),
        ([image(D1, Platform("amd64", "windows"))], "windows/amd64"),
        ([image(D1, None, artifact_type="weights")], "none"),
    ],
)
def test_no_image_for_a_platform(manifests: list[Descriptor], offered: str) -> None:
    with pytest.raises(
        ImageError, match=rf"it has no image for linux/amd64; it offers {offered} \(choose with --platform"
    ):
        choose(Index(2, tuple(manifests)), AMD64, "it")


@pytest.mark.parametrize("text", ["", "linux", "/", "linux/", "/amd64", "a/b/c/d", "a//c"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(ValueError, match="is not a platform"):
        Platform.parse(text)


@pytest.mark.parametrize("text", ["linux/amd64", "linux/arm64/v8"])
def test_platforms_read_back(text: str) -> None:
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize(
    ("media_type", "data", "answer"),
    [
        (media.OCI_INDEX, b"", True),
        (media.DOCKER_INDEX, b'{"layers":[]}', True),
        (media.OCI_MANIFEST, b'{"manifests":[]}', False),
        (None, b'{"manifests":[]}', True),
        (None, b'{"layers":[]}', False),
        ("application/json", b'{"manifests":[]}', True),
    ],
)
def test_indexes_are_told_from_manifests(media_type: str | None, data: bytes, answer: bool) -> None:  # noqa: FBT001
    assert is_index(media_type, data) is answer


CONFIG = {
    "architecture": "arm64",
    "os": "linux",
    "variant": "v8",
    "created": "2024-01-01T00:00:00Z",
    "author": "me",
    "moby.buildkit.buildinfo.v1": {"x": [1]},
    "config": {"Env": ["A=1", "PATH=/bin", "A=2=3", "B"], "Labels": {"old": "x", "both": "x"}, "Healthcheck": {"y": 1}},
    "rootfs": {"type": "layers", "diff_ids": [D1, D2]},
    "history": [
        {"created_by": "ADD"},
        {"created_by": "ENV", "empty_layer": True},
        {"created_by": "RUN", "comment": "c"},
    ],
}


def config(**more: Any) -> ImageConfig:
    return ImageConfig.parse(encoded({**CONFIG, **more}), "it")


def test_a_configuration() -> None:
    found = config()
    assert found.diff_ids == (D1, D2)
    assert str(found.platform) == "linux/arm64/v8"
    assert found.environment == {"A": "2=3", "PATH": "/bin", "B": ""}
    assert found.steps() == ("ADD", "RUN")


def test_words_of_commands() -> None:
    found = config(
        config={
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["cd /a&&exec 'b c' >log;d|e"],
            "Healthcheck": {"Test": ["CMD-SHELL", "it's open"]},
        }
    )
    whole = ("/bin/sh", "-c", "cd /a&&exec 'b c' >log;d|e", "CMD-SHELL", "it's open")
    named = {"/bin/sh", "-c", "cd", "/a", "exec", "b", "c", "log", "d", "e", "CMD-SHELL", "it", "s", "open"}
    assert found.command_words == {*whole, *named}


@pytest.mark.parametrize(
    "text", ["true;make", "exec `make` x", 'echo "$(make all)"', "bash -c 'make all'", "a\tmake", "${SHELL:-make}"]
)
def test_a_program_in_shell_text_is_a_word(text: str) -> None:
    assert "make" in config(config={"Cmd": ["sh", "-c", text]}).command_words


@pytest.mark.parametrize("runtime", [None, {"Entrypoint": "a b", "Cmd": None, "Healthcheck": [1]}, {"Cmd": []}])
def test_no_words_of_commands(runtime: Any) -> None:
    assert config(config=runtime).command_words == frozenset()


def test_new_layers_keep_all_that_is_unknown() -> None:
    old = config()
    new = old.with_layers([D3], ["slimgpu build: base"], {"both": "new", "mine": "y"})
    document = new.document
    assert {key: document[key] for key in CONFIG if key not in ("config", "rootfs", "history")} == {
        key: value for key, value in CONFIG.items() if key not in ("config", "rootfs", "history")
    }
    assert document["config"]["Healthcheck"] == {"y": 1}
    assert document["config"]["Labels"] == {"old": "x", "both": "new", "mine": "y"}
    assert new.diff_ids == (D3,)
    assert new.steps() == ("slimgpu build: base",)
    assert [entry["created_by"] for entry in new.history] == ["ADD", "ENV", "RUN", "slimgpu build: base"]
    assert new.history[2]["comment"] == "c"
    assert all(entry["empty_layer"] for entry in new.history[:3])
    assert old.document == CONFIG, "a change makes a new value"
    assert ImageConfig.parse(new.dump(), "it") == new


@pytest.mark.parametrize(
    "more",
    [
        {"config": None},
        {"config": []},
        {"config": {"Env": None, "Labels": None}},
        {"config": {"Env": "A=1", "Labels": []}},
        {"config": {"Env": [1, None]}},
        {"config": {"Labels": "x"}},
        {"history": None},
        {"history": {}},
        {"history": [None, 1, {"created_by": 5}]},
        {"architecture": None, "os": 5, "variant": 7},
        {"created": 5},
    ],
)
def test_odd_configurations_are_read_all_the_same(more: dict[str, Any]) -> None:
    found = config(**more)
    assert isinstance(found.environment, dict)
    assert len(found.steps()) == 2
    str(found.platform)
    new = found.with_layers([D1], ["step"], {"a": "b"})
    assert new.document["config"]["Labels"]["a"] == "b"
    ImageConfig.parse(new.dump(), "it")


@pytest.mark.parametrize(
    "rootfs", [None, {}, [], {"diff_ids": None}, {"diff_ids": "x"}, {"diff_ids": [1]}, {"diff_ids": ["x"]}]
)
def test_without_diff_ids_there_is_no_image(rootfs: Any) -> None:
    with pytest.raises(ImageError, match=r"the configuration of it has no valid list rootfs\.diff_ids"):
        config(rootfs=rootfs)


def test_a_history_that_does_not_fit_tells_nothing() -> None:
    assert config(history=[{"created_by": "x"}]).steps() == ("", "")


def test_the_same_value_is_the_same_bytes() -> None:
    found = config()
    assert found.dump() == ImageConfig.parse(found.dump(), "it").dump()
    assert digest_bytes(dump(Manifest(2, image(D1, None), ()))) == digest_bytes(dump(Manifest(2, image(D1, None), ())))
    assert replace(image(D1, None), size=2) != image(D1, None)
