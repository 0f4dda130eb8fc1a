from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import ImageError
from slimgpu.weights.index import (
    INDEX_TYPE,
    MAX_INDEX,
    ZSTD_INDEX_TYPE,
    Chunk,
    File,
    Index,
    TensorEntry,
    leads_inside,
    parse_index,
)
from tests.support.fuzz import examples
from tests.support.weights import opened, pack_into, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_D = "sha256:" + "ab" * 32


def document() -> dict[str, Any]:
    """An index with two chunks in one blob, which make up two files, a link and a tensor."""
    chunk = {"blob": 0, "offset": 0, "stored": 10, "size": 16, "transform": "float2", "packed": 1, "digest": _D,
             "raw": _D}  # fmt: skip
    return {
        "schema": "slimgpu.weights.v1",
        "values": _D,
        "blobs": [{"digest": _D, "size": 30}],
        "chunks": [chunk, {**chunk, "offset": 10, "stored": 20, "size": 20, "transform": "raw", "packed": 0}],
        "files": [
            {"path": "a/b.safetensors", "size": 36, "digest": _D, "chunks": [0, 1]},
            {"path": "c", "size": 32, "digest": _D, "chunks": [0, 0], "executable": True},
        ],
        "links": [{"path": "a/l", "target": "../c"}],
        "tensors": [{"name": "t", "dtype": "BF16", "shape": [9], "file": 0, "offset": 8, "size": 18, "digest": _D}],
    }


def parse(value: Any) -> Index:
    return parse_index(INDEX_TYPE, json.dumps(value).encode(), "the model")


def test_what_is_dumped_is_parsed() -> None:
    index = parse(document())
    media_type, data = index.dump()
    assert media_type == INDEX_TYPE
    assert json.loads(data) == document()
    assert parse_index(media_type, data, "it") == index
    assert (index.bases, index.total) == ([0, 4096, 8192], 8192)
    assert index.places == [[0, 4096, 4112], [16]]
    parts = [(part.chunk, part.place, part.skip, part.into, part.length) for part in index.parts(index.tensors[0])]
    assert parts == [(0, 0, 8, 0, 8), (1, 16, 0, 8, 10)]


def test_a_long_index_is_compressed() -> None:
    value = document()
    value["tensors"] = [{**value["tensors"][0], "name": f"t{number}"} for number in range(2000)]
    index = parse(value)
    media_type, data = index.dump()
    assert media_type == ZSTD_INDEX_TYPE
    assert len(data) < 50_000
    assert parse_index(media_type, data, "it") == index


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.data())
def test_parts_are_the_bytes_of_a_tensor(sizes: list[int], data: st.DataObject) -> None:
    used = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=12))
    chunks = tuple(Chunk(0, 0, size, size, "raw", 0, _D, _D) for size in sizes)
    raw = [bytes((7 * number + at) % 251 for at in range(size)) for number, size in enumerate(sizes)]
    whole = b"".join(raw[number] for number in used)
    offset = data.draw(st.integers(0, len(whole)))
    size = data.draw(st.integers(0, len(whole) - offset))
    tensor = TensorEntry("t", "U8", (size,), 1, offset, size, _D)
    first = File("first", 9, _D, (0,) * 9)
    index = Index("slimgpu.weights.v1", _D, (), chunks, (first, File("f", len(whole), _D, tuple(used))), (), (tensor,))
    out, buffer = bytearray(size), bytearray(index.total)
    for number, places in enumerate(index.places):
        for place in places:
            buffer[place : place + sizes[number]] = raw[number]
    base = index.bases[1]
    assert buffer[base : base + len(whole)] == whole
    assert index.count_parts(tensor) == len(list(index.parts(tensor)))
    for part in index.parts(tensor):
        assert part.place in index.places[part.chunk]
        out[part.into : part.into + part.length] = raw[part.chunk][part.skip : part.skip + part.length]
    assert out == whole[offset : offset + size]


def test_tensors_may_not_overlap_without_end() -> None:
    value = document()
    value["files"][1] |= {"size": 16 * 50, "chunks": [0] * 50}
    value["tensors"] = [{**value["tensors"][0], "file": 1, "offset": 0, "size": 800, "shape": [400]}] * 8
    assert parse(value).count_parts(parse(value).tensors[0]) == 50
    value["tensors"] *= 2
    with pytest.raises(ImageError, match="overlap so much that they have 800 parts"):
        parse(value)


def change(*path: str | int, to: Any) -> Callable[[Any], None]:
    def changed(value: Any) -> None:
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = to

    return changed


_COMPLAINTS: list[tuple[str, Callable[[Any], None], str]] = [
    (
        "a newer version",
        change("schema", to="slimgpu.weights.v2"),
        "another version than slimgpu.weights.v1; use a new",
    ),
    ("no version", lambda value: value.pop("schema"), "another version"),
    ("no digest", change("values", to="sha256:12"), "values: .*not a sha256"),
    ("no list", change("chunks", to={}), "chunks: "),
    ("no chunk", change("chunks", 0, to=None), "chunks.0"),
    ("a negative size", change("chunks", 0, "stored", to=-1), "chunks.0.stored"),
    ("an empty chunk", change("chunks", 0, "size", to=0), "chunks.0.size"),
    ("a huge chunk", change("chunks", 0, "size", to=2**26 + 1), "chunks.0.size"),
    ("a huge number", change("blobs", 0, "size", to=2**63), "blobs.0.size"),
    ("a blob that is not there", change("chunks", 1, "blob", to=1), "chunk 1 lies outside of its blob"),
    ("beyond the blob", change("blobs", 0, "size", to=29), "chunk 1 lies outside of its blob"),
    ("an offset beyond all", change("chunks", 1, "offset", to=2**63 - 1), "chunk 1 lies outside of its blob"),
    ("an overlap", change("chunks", 1, "offset", to=9), "two chunks overlap in blob 0"),
    ("a chunk that grew", change("chunks", 1, "size", to=19), "chunk 1 is stored in more bytes than it has"),
    (
        "an unknown transform",
        change("chunks", 0, "transform", to="float3"),
        "unknown transform 'float3'.*newer slimgpu",
    ),
    ("unknown planes", change("chunks", 0, "packed", to=4), "unknown transform 'float2' .4."),
    ("no planes", change("chunks", 0, "packed", to=0), "unknown transform 'float2' .0."),
    ("half a number", change("chunks", 0, "size", to=17), "chunk 0 has 17 bytes, which are no numbers of float2"),
    ("a chunk that is not there", change("files", 0, "chunks", to=[0, 2]), "names a chunk that is not there"),
    ("a file longer than its chunks", change("files", 1, "size", to=33), "'c' has 33 bytes, but not its chunks"),
    ("the same file twice", change("files", 1, "path", to="a/b.safetensors"), "two files have the same path"),
    ("a link in place of a file", change("links", 0, "path", to="c"), "two files have the same path"),
    ("a file below a file", change("files", 1, "path", to="a/b.safetensors/x"), "which is no directory"),
    ("a file below a link", change("files", 1, "path", to="a/l/x/y"), "lies below 'a/l', which is no directory"),
    ("a tensor of no file", change("tensors", 0, "file", to=2), "the tensor 't' lies outside of its file"),
    ("a tensor beyond its file", change("tensors", 0, "size", to=29), "the tensor 't' lies outside of its file"),
    *(
        (f"the path {path!r}", change("files", 0, "path", to=path), "is not a path inside the artifact")
        for path in ("", "/a", "a/", "a//b", "..", "../a", "a/../b", ".", "./a", "a/.", "a\0b")
    ),
    *(
        (f"a link to {target!r}", change("links", 0, "target", to=target), "leads out of the artifact")
        for target in ("", "/etc/passwd", "../../x", "..", "../..", "../c/..", "../d/../x", "x/../../c", "a\0")
    ),
]


@pytest.mark.parametrize(("broken", "complaint"), [each[1:] for each in _COMPLAINTS], ids=[e[0] for e in _COMPLAINTS])
def test_what_no_index_may_do(broken: Callable[[Any], None], complaint: str) -> None:
    value = document()
    broken(value)
    with pytest.raises(ImageError, match=complaint) as caught:
        parse(value)
    assert "the model" in str(caught.value)


def test_links_over_links_stay_inside() -> None:
    """Each of these stays inside by its name alone; together they would not."""
    assert leads_inside("deep/er/p", "../../s")
    assert not leads_inside("q", "deep/er/p/../../x")
    value = document()
    value["links"] = [{"path": "deep/er/p", "target": "../../s"}, {"path": "q", "target": "deep/er/p/../../x"}]
    with pytest.raises(ImageError, match="'q' leads out"):
        parse(value)


@given(st.lists(st.tuples(st.text("ab/.", max_size=8), st.text("ab/.", max_size=12)), max_size=6))
def test_no_set_of_links_leads_out(tmp_path_factory: pytest.TempPathFactory, links: list[tuple[str, str]]) -> None:
    value = {**document(), "links": [{"path": path, "target": target} for path, target in links]}
    try:
        index = parse(value)
    except ImageError:
        return
    root = tmp_path_factory.mktemp("links") / "inner" / "tree"
    for path in [*(file.path for file in index.files), *(link.path for link in index.links)]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    for link in index.links:
        (root / link.path).symlink_to(link.target)
    for link in index.links:
        try:
            found = (root / link.path).resolve()
        except RuntimeError:  # a loop
            continue
        assert found.is_relative_to(root.resolve())


def test_what_is_unknown_is_left_out() -> None:
    """A newer slimgpu may add what an older one can do without."""
    assert parse({**document(), "note": [1]}) == parse(document())


def test_another_artifact_is_named_as_such() -> None:
    with pytest.raises(ImageError, match="the model is no weights artifact: its configuration is of type text/plain"):
        parse_index("text/plain", b"{}", "the model")


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"\xff", b"{}x", b"[" * 100_000, b'{"a":' * 100_000])
def test_no_document(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_index(INDEX_TYPE, data, "it")


@pytest.mark.parametrize("data", [b"", b"no frame", zstandard.ZstdCompressor().compress(b"{}" * 99)[:-3]])
def test_no_frame(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_index(ZSTD_INDEX_TYPE, data, "it")


def test_a_frame_that_hides_its_size_is_not_read() -> None:
    data = zstandard.ZstdCompressor(write_content_size=False).compress(b" " * 1_000_000)
    with pytest.raises(ImageError, match="claims -1 bytes"):
        parse_index(ZSTD_INDEX_TYPE, data, "it")


def test_a_bomb_is_not_read() -> None:
    stream = zstandard.ZstdCompressor().compressobj(size=MAX_INDEX + 1)
    piece = bytes(2**20)
    data = b"".join([*(stream.compress(piece) for _ in range(MAX_INDEX // 2**20)), stream.compress(b"\0"),
                     stream.flush()])  # fmt: skip
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=f"claims {MAX_INDEX + 1} bytes"):
            parse_index(ZSTD_INDEX_TYPE, data, "it")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("place", ["blobs", "chunks", "files", "links", "tensors"])
def test_a_million_mistakes_are_one(place: str) -> None:
    """What is wrong with each of them, together, would be gigabytes."""
    text = json.dumps({**document(), place: "here"}).replace('"here"', "[" + ",".join(["0"] * 1_000_000) + "]")
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=f"{place}.0"):
            parse_index(INDEX_TYPE, text.encode(), "it")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | st.just(_D),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, inner in steps for place in _places(inner, (*path, key))]


@examples(400)
@given(data=st.data())
def test_any_change_is_an_images_error_or_none(data: st.DataObject) -> None:
    value = document()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(_places(value)))
        change(*place, to=data.draw(_JSON | st.integers(0, 50)))(value)
    try:
        index = parse(value)
    except ImageError:
        return
    for tensor in index.tensors:
        assert sum(part.length for part in index.parts(tensor)) == tensor.size
    assert parse_index(*index.dump(), "it") == index
    assert len(index.places) == len(index.chunks)
    assert index.total >= sum(file.size for file in index.files)


@given(st.binary(max_size=100), st.sampled_from([INDEX_TYPE, ZSTD_INDEX_TYPE]))
def test_any_bytes_are_an_images_error(data: bytes, media_type: str) -> None:
    with pytest.raises(ImageError):
        parse_index(media_type, data, "it")


_TENSORS = [{**document()["tensors"][0], "name": f"t{number}"} for number in range(2000)]
_FRAME = parse({**document(), "tensors": _TENSORS}).dump()[1]


@given(st.data())
@examples(150)
def test_a_changed_frame_is_an_images_error_or_none(data: st.DataObject) -> None:
    changed = bytearray(_FRAME)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(changed), 40)) | st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    try:
        index = parse_index(ZSTD_INDEX_TYPE, bytes(changed), "it")
    except ImageError as error:
        assert "it" in str(error)  # noqa: PT017 - most fail
    else:
        assert parse_index(*index.dump(), "it") == index


def test_flipped_bytes_of_a_real_index_are_an_images_error_or_none(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    name, packed = pack_into(tmp_path / "layout", tmp_path / "model")
    media_type, data = packed.index.dump()
    with opened(name) as (index, _):
        assert index == packed.index
    for at in range(0, len(data), 37):
        try:
            parse_index(media_type, data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :], "it")
        except ImageError as error:
            assert "it" in str(error)  # noqa: PT017


def test_a_chunk_is_described_by_what_it_is_of() -> None:
    index = parse(document())
    assert index.describe(0) == "chunk 0 (of t in a/b.safetensors)"
    assert replace(index, tensors=()).describe(1) == "chunk 1 (of a/b.safetensors)"
    assert replace(index, tensors=(), files=()).describe(1) == "chunk 1"
