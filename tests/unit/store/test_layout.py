"""Layouts: what their references name, and parts of their blobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimgpu.errors import ImageError
from slimgpu.oci.reference import PathReference, PathTransport, parse_reference
from slimgpu.store.layout import BlobFiles
from slimgpu.store.ranges import LayoutRanges

DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("text", "path", "tag", "digest"),
    [
        (f"oci:a@{DIGEST}", "a", None, DIGEST),
        (f"oci:/a@b:v1@{DIGEST}", "/a@b", "v1", DIGEST),
        (f"oci-archive:a.tar@{DIGEST}", "a.tar", None, DIGEST),
        ("oci:a@sha256:b", "a@sha256", "b", None),
        (f"docker-archive:a@{DIGEST}", "a@sha256", "a" * 64, None),
    ],
)
def test_a_digest_in_a_layout(text: str, path: str, tag: str | None, digest: str | None) -> None:
    found = parse_reference(text)
    assert isinstance(found, PathReference)
    assert found == PathReference(PathTransport(text.partition(":")[0]), Path(path), tag, digest)
    assert str(found) == text
    assert found.identifier == (digest or tag)


def test_a_part_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "blobs/sha256"
    folder.mkdir(parents=True)
    source = LayoutRanges("oci:here", BlobFiles(tmp_path))
    (folder / ("a" * 64)).write_bytes(b"12345")
    buffer = bytearray(3)
    source.read_into(DIGEST, 2, memoryview(buffer))
    assert buffer == b"345"
    with pytest.raises(ImageError, match=f"the blob {DIGEST} of oci:here is shorter than its index says"):
        source.read_into(DIGEST, 3, memoryview(buffer))
    (folder / ("a" * 64)).unlink()
    with pytest.raises(ImageError, match="oci:here lacks the blob"):
        source.read_into(DIGEST, 0, memoryview(buffer))
    (folder / ("a" * 64)).mkdir()
    with pytest.raises(ImageError, match=r"cannot be read \(Is a directory\)"):
        source.read_into(DIGEST, 0, memoryview(buffer))
