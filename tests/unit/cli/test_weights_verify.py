"""``verify`` believes no packer: chunks may be cut in any way, and tensors' digests are computed from bytes."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import DigestError
from slimgpu.oci.manifest import Descriptor
from slimgpu.oci.mutate import CheckedBlob, compose_artifact, open_file
from slimgpu.oci.reference import parse_reference
from slimgpu.progress import SILENT
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from slimgpu.store.transport import open_artifact_sink
from slimgpu.weights.cut import PIECE
from slimgpu.weights.digests import sha256, tensor_digest, values_digest
from slimgpu.weights.index import ARTIFACT_TYPE, CHUNKS_TYPE, SCHEMA, Blob, Chunk, File, Index, TensorEntry
from slimgpu.weights.verify import verify

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_DATA = random.Random(1).randbytes(2 * PIECE + 5000)  # noqa: S311 - no secret


def artifact(folder: Path, cuts: Sequence[int], tensors: Sequence[tuple[int, int]], *, wrong: int | None = None) -> str:
    """One file, cut at ``cuts``, with tensors from offset to offset, of which one has a wrong digest."""
    (folder / "blob").write_bytes(_DATA)
    places = list(zip([0, *cuts], [*cuts, len(_DATA)], strict=True))
    digests = [sha256(_DATA[start:end]) for start, end in places]
    chunks = [Chunk(0, s, e - s, e - s, "raw", 0, d, d) for (s, e), d in zip(places, digests, strict=True)]
    entries = []
    for number, (start, end) in enumerate(tensors):
        pieces = [sha256(_DATA[at : min(at + PIECE, end)]) for at in range(start, end, PIECE)]
        digest = tensor_digest(pieces if number != wrong else [sha256(b"")])
        entries.append(TensorEntry(f"t{number}", "U8", (end - start,), 0, start, end - start, digest))
    files = (File("m.bin", len(_DATA), sha256(_DATA), tuple(range(len(chunks)))),)
    blob = Descriptor(CHUNKS_TYPE, sha256(_DATA), len(_DATA))
    blobs = (Blob(blob.digest, blob.size),)
    index = Index(SCHEMA, values_digest(entries), blobs, tuple(chunks), files, (), tuple(entries))
    composed = compose_artifact("x", ARTIFACT_TYPE, index.dump(), [CheckedBlob(blob, open_file(folder / "blob"))])
    reference = f"oci:{folder}/layout:x"
    with open_artifact_sink(parse_reference(reference), Cache(folder / "cache")) as sink, SILENT.task("x", 1) as task:
        sink.write(composed, task)
    return reference


_SIZE = len(_DATA)
_CUTS = {
    "one chunk": [],
    "as we cut": [PIECE, 2 * PIECE],
    "across pieces": [PIECE - 100, PIECE + 100, 2 * PIECE + 1],
    "small": list(range(300_000, _SIZE, 300_000)),
}
_TENSORS = {
    "none": [],
    "whole": [(0, _SIZE)],
    "small ones": [(8, 2000), (2000, 4096), (PIECE - 7, PIECE + 9)],
    "overlapping and empty": [(5, PIECE + 77), (50, 2 * PIECE), (9, 9)],
}


@pytest.mark.parametrize("cuts", _CUTS)
@pytest.mark.parametrize("tensors", _TENSORS)
def test_any_way_to_cut(tmp_path: Path, cuts: str, tensors: str) -> None:
    reference = parse_reference(artifact(tmp_path, _CUTS[cuts], _TENSORS[tensors]))
    result = verify(reference, None, Context(Cache(tmp_path / "cache")))
    assert (result.chunks, result.tensors) == (len(_CUTS[cuts]) + 1, len(_TENSORS[tensors]))


@pytest.mark.parametrize("cuts", _CUTS)
@pytest.mark.parametrize("wrong", [0, 1])
def test_a_tensor_whose_digest_is_wrong(tmp_path: Path, cuts: str, wrong: int) -> None:
    reference = parse_reference(artifact(tmp_path, _CUTS[cuts], _TENSORS["overlapping and empty"], wrong=wrong))
    with pytest.raises(DigestError, match=rf"the tensor t{wrong} in m\.bin"):
        verify(reference, None, Context(Cache(tmp_path / "cache")))


def test_the_manifest_must_name_what_the_index_names(tmp_path: Path) -> None:
    """Registries keep only what a manifest lists."""
    reference = artifact(tmp_path, [], [])
    blobs = tmp_path / "layout/blobs/sha256"
    layout = json.loads((tmp_path / "layout/index.json").read_text())
    manifest = json.loads((blobs / layout["manifests"][0]["digest"][7:]).read_text())
    manifest["layers"] = []
    data = json.dumps(manifest).encode()
    (blobs / sha256(data)[7:]).write_bytes(data)
    layout["manifests"][0] |= {"digest": sha256(data), "size": len(data)}
    (tmp_path / "layout/index.json").write_text(json.dumps(layout))
    with pytest.raises(Exception, match="does not list the blob"):
        verify(parse_reference(reference), None, Context(Cache(tmp_path / "cache")))
