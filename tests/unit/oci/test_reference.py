from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import UsageError
from slimgpu.oci.reference import (
    DaemonReference,
    PathReference,
    PathTransport,
    Reference,
    RegistryReference,
    parse_reference,
)

_HEX = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("nginx", RegistryReference("docker.io", "library/nginx", "latest")),
        ("docker://nginx", RegistryReference("docker.io", "library/nginx", "latest")),
        ("nginx:1.27", RegistryReference("docker.io", "library/nginx", "1.27")),
        ("vllm/vllm-openai:v0.6", RegistryReference("docker.io", "vllm/vllm-openai", "v0.6")),
        ("ghcr.io/a/b/c", RegistryReference("ghcr.io", "a/b/c", "latest")),
        ("localhost/a", RegistryReference("localhost", "a", "latest")),
        ("localhost:5000/a:b", RegistryReference("localhost:5000", "a", "b")),
        ("docker://[::1]:5000/a", RegistryReference("[::1]:5000", "a", "latest")),
        ("HOST/a", RegistryReference("HOST", "a", "latest")),
        (f"h.io/a@{_HEX}", RegistryReference("h.io", "a", None, _HEX)),
        (f"docker://h.io/a:t@{_HEX}", RegistryReference("h.io", "a", "t", _HEX)),
        ("docker-daemon:nginx:1", DaemonReference("nginx:1")),
        ("docker-daemon:nginx", DaemonReference("nginx:latest")),
        ("docker-daemon:host:5000/a", DaemonReference("host:5000/a:latest")),
        (f"docker-daemon:{_HEX}", DaemonReference(_HEX)),
        ("oci:dir", PathReference(PathTransport.OCI, Path("dir"))),
        ("oci:/a/b:v1", PathReference(PathTransport.OCI, Path("/a/b"), "v1")),
        ("oci:a:b/c", PathReference(PathTransport.OCI, Path("a:b/c"))),
        ("oci:dir with spaces:x", PathReference(PathTransport.OCI, Path("dir with spaces"), "x")),
        ("oci-archive:/a.tar", PathReference(PathTransport.OCI_ARCHIVE, Path("/a.tar"))),
        ("oci-archive:/a.tar:t", PathReference(PathTransport.OCI_ARCHIVE, Path("/a.tar"), "t")),
        ("docker-archive:/a.tar", PathReference(PathTransport.DOCKER_ARCHIVE, Path("/a.tar"))),
        ("docker-archive:a.tar:h/r:t", PathReference(PathTransport.DOCKER_ARCHIVE, Path("a.tar"), "h/r:t")),
        ("oci", RegistryReference("docker.io", "library/oci", "latest")),
    ],
)
def test_names(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " nginx",
        "nginx ",
        "a\x00b",
        "docker:",
        "docker://",
        "docker:///x",
        "docker://a b",
        "Nginx",
        "a//b",
        "/a",
        "a:",
        "a:b:c",
        "a@",
        "a@b",
        f"a@{_HEX}0",
        f"a@{_HEX.upper()}",
        "-a",
        "a-",
        "a..b",
        "a/B",
        "h.io/",
        "h.io:/a",
        "h.io:123456/a",
        "a:-b",
        "a:" + "t" * 129,
        "h.io/" + "a" * 256,
        "oci:",
        "oci::tag",
        "docker-archive:",
        "docker-daemon:",
        f"docker-daemon:a@{_HEX}",
        "docker-daemon:A",
        "containers-storage:a",
        "dir:/x",
        "http://h/a",
        "https://h.io/a",
        "oci-arhive:/x",
        "docker-deamon:x",
        "[::1/a",
        "docker://h:p@ss/a",
        "a\nb",
    ],
)
def test_what_names_no_image(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


def test_the_error_shows_the_way_out() -> None:
    with pytest.raises(UsageError, match="did you mean docker-daemon:"):
        parse_reference("docker-deamon:x")
    with pytest.raises(UsageError, match=r"name an image as docker://host/repo:tag"):
        parse_reference("Nginx")


_component = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+){0,2}", fullmatch=True)
_repository = st.lists(_component, min_size=1, max_size=4).map("/".join).filter(lambda text: len(text) <= 200)
_host = st.from_regex(r"[a-z0-9]{1,9}\.[a-z]{2,5}(:[0-9]{1,5})?", fullmatch=True) | st.sampled_from(
    ["localhost", "localhost:5000", "[::1]:5000", "docker.io"]
)
_tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True)
_digest = st.binary(min_size=32, max_size=32).map(lambda data: f"sha256:{data.hex()}")
_path = st.text(st.characters(codec="utf-8", exclude_characters="\0:"), min_size=1, max_size=20)


@st.composite
def registry(draw: st.DrawFn) -> RegistryReference:
    digest = draw(st.none() | _digest)
    tag = draw(_tag if digest is None else st.none() | _tag)
    return RegistryReference(draw(_host), draw(_repository), tag, digest)


@st.composite
def paths(draw: st.DrawFn) -> PathReference:
    transport = draw(st.sampled_from(PathTransport))
    return PathReference(transport, Path(draw(_path)), draw(st.none() | _tag))


@given(registry())
def test_registry_references_read_back(reference: RegistryReference) -> None:
    assert parse_reference(str(reference)) == reference
    assert reference.identifier == (reference.digest or reference.tag)


@given(paths())
def test_path_references_read_back(reference: PathReference) -> None:
    text = str(reference)
    if text == text.strip():
        assert parse_reference(text) == reference


@given(_repository.filter(lambda text: "." not in text.partition("/")[0]), _tag)
def test_daemon_references_read_back(repository: str, tag: str) -> None:
    reference = parse_reference(f"docker-daemon:{repository}:{tag}")
    assert reference == DaemonReference(f"{repository}:{tag}")
    assert parse_reference(str(reference)) == reference


_hostile = st.text(max_size=60) | st.text(st.sampled_from("docker:/@.-_ai0[]\0\n%sha256"), max_size=40)


@given(_hostile)
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError:
        return
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "a/" * 50_000, "a-" * 50_000 + "!", "a." * 50_000, "oci:" + "x:" * 50_000]
)
def test_long_names_do_not_keep_the_parser_busy(text: str) -> None:
    try:
        parse_reference(text)
    except UsageError:
        return
