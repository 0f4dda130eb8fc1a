from __future__ import annotations

import hashlib
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import ImageError, UsageError
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from slimgpu.weights import blobs
from slimgpu.weights.blobs import blob_writer
from slimgpu.weights.codec import decode
from slimgpu.weights.cut import PIECE
from slimgpu.weights.digests import sha256, tensor_digest
from slimgpu.weights.index import parse_index
from slimgpu.weights.pack import Base, Packed, pack
from slimgpu.weights.sources import collect
from tests.support.weights import (
    Values,
    blobs_of,
    noise,
    safetensors,
    small_model,
    trained,
    write_hugging_face_cache,
    write_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from slimgpu.oci.image import Blob


def packed_in(folder: Path, *paths: Path, jobs: int = 2, bases: Sequence[Base] = ()) -> Packed:
    sources, links = collect(paths)
    return pack(sources, links, folder, Context(Cache(), jobs), bases=bases)


def unpacked(packed: Packed, *folders: Path) -> dict[str, bytes]:
    """The files, from blobs and index alone, with every digest looked at."""
    index = parse_index(*packed.index.dump(), "it")
    stored = {digest: data for folder in folders for digest, data in blobs_of(folder).items()}
    chunks = []
    for chunk in index.chunks:
        data = memoryview(stored[index.blobs[chunk.blob].digest])[chunk.offset :][: chunk.stored]
        assert sha256(data) == chunk.digest
        out = bytearray(chunk.size)
        decode(data, chunk.transform, chunk.packed, memoryview(out))
        assert sha256(out) == chunk.raw
        chunks.append(bytes(out))
    found = {}
    for file in index.files:
        found[file.path] = b"".join(chunks[number] for number in file.chunks)
        assert sha256(found[file.path]) == file.digest
    return found


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_is_packed_comes_out(tmp_path: Path) -> None:
    tensors = write_model(tmp_path / "model")
    packed = packed_in(tmp_path / "out", tmp_path / "model")
    files = unpacked(packed, tmp_path / "out")
    assert files == files_of(tmp_path / "model")
    assert [file.path for file in packed.index.files if file.executable] == ["code/run.sh"]
    assert {tensor.name for tensor in packed.index.tensors} == tensors.keys()
    for tensor in packed.index.tensors:
        values = tensors[tensor.name]
        assert (tensor.dtype, tensor.shape) == (values.dtype, values.shape)
        assert files[packed.index.files[tensor.file].path][tensor.offset : tensor.offset + tensor.size] == values.data
        pieces = [sha256(values.data[at : at + PIECE]) for at in range(0, len(values.data), PIECE)]
        assert tensor.digest == tensor_digest(pieces)
    assert packed.stored == sum(map(len, blobs_of(tmp_path / "out").values()))
    assert packed.stored < 0.85 * sum(map(len, files.values()))


def test_the_same_files_give_the_same_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "BLOB", 100_000)
    tensors = small_model()
    large = trained("BF16", PIECE, seed=5)
    write_model(tmp_path / "model", {**tensors, "model.layers.2.large": large})
    first = packed_in(tmp_path / "1", tmp_path / "model", jobs=1)
    assert len(first.index.blobs) > 3
    for jobs in (2, 4, 9):
        again = packed_in(tmp_path / str(jobs), tmp_path / "model", jobs=jobs)
        assert again.artifact.raw_manifest == first.artifact.raw_manifest
        assert again.artifact.raw_config == first.artifact.raw_config
        assert blobs_of(tmp_path / str(jobs)) == blobs_of(tmp_path / "1")
    both = [tmp_path / "model", tmp_path / "other"]
    (tmp_path / "other").write_bytes(noise(1000))
    forth, back = packed_in(tmp_path / "forth", *both), packed_in(tmp_path / "back", *reversed(both))
    assert forth.artifact.raw_manifest == back.artifact.raw_manifest


def test_chunks_lie_in_load_order(tmp_path: Path) -> None:
    write_model(tmp_path / "model", shards=3)
    index = packed_in(tmp_path / "out", tmp_path / "model").index
    order = [min(part.chunk for part in index.parts(tensor)) for tensor in index.tensors if tensor.size]
    assert order == sorted(order)
    places = [(chunk.blob, chunk.offset) for chunk in index.chunks]
    assert places == sorted(places)
    assert index.tensors[0].name == "model.embed_tokens.weight"
    assert index.tensors[-1].name == "lm_head.weight"


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_the_digest_of_values_does_not_depend_on_files(tmp_path: Path, shards: int) -> None:
    """Nor on other files, or on what is tied."""
    tensors = {**small_model(), "large": trained("BF16", PIECE // 2 + 3, 1)}
    write_model(tmp_path / "one", tensors, shards=1)
    write_model(tmp_path / "many", dict(reversed(tensors.items())), shards=shards)
    (tmp_path / "many" / "more").write_bytes(noise(5000))
    one, many = packed_in(tmp_path / "1", tmp_path / "one"), packed_in(tmp_path / "2", tmp_path / "many")
    assert one.index.values == many.index.values
    other = {**tensors, "large": trained("BF16", PIECE // 2 + 3, 1, seed=9)}
    write_model(tmp_path / "one", other, shards=1)
    assert packed_in(tmp_path / "3", tmp_path / "one").index.values != one.index.values


def test_identical_content_is_stored_once(tmp_path: Path) -> None:
    same = trained("BF16", PIECE // 2, seed=3)  # a chunk of its own
    write_model(tmp_path / "a", {"embed": same, "lm_head": same, "zeros": Values("F32", (3 * PIECE // 4,),
                bytes(3 * PIECE))}, shards=1)  # fmt: skip
    write_model(tmp_path / "a" / "copy", {"embed": same, "lm_head": same}, shards=2)
    packed = packed_in(tmp_path / "out", tmp_path / "a")
    assert unpacked(packed, tmp_path / "out") == files_of(tmp_path / "a")
    assert len({chunk.raw for chunk in packed.index.chunks}) == len(packed.index.chunks)
    assert packed.stored < 0.7 * len(same.data) + 10_000


def test_only_what_a_base_lacks_is_stored(tmp_path: Path) -> None:
    body = {f"layers.{number}.w": trained("BF16", PIECE // 2, seed=number) for number in range(3)}
    write_model(tmp_path / "first", {**body, "lm_head": trained("BF16", 1000, seed=7)}, shards=1)
    write_model(tmp_path / "second", {**body, "lm_head": trained("BF16", 1000, seed=8)}, shards=1)
    first = packed_in(tmp_path / "1", tmp_path / "first")
    base = Base(first.index, first.artifact.layers)
    second = packed_in(tmp_path / "2", tmp_path / "second", bases=[base])
    assert second.stored < 20_000
    assert unpacked(second, tmp_path / "2", tmp_path / "1") == files_of(tmp_path / "second")
    digests = [blob.descriptor.digest for blob in second.artifact.layers]
    assert digests == [blob.digest for blob in second.index.blobs]
    assert first.index.blobs[0].digest in digests
    third = packed_in(tmp_path / "3", tmp_path / "first", bases=[base])
    assert (third.stored, list(tmp_path.glob("3/*/*"))) == (0, [])
    assert unpacked(third, tmp_path / "1") == files_of(tmp_path / "first")


def test_a_base_whose_blob_is_gone_is_no_base(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    first = packed_in(tmp_path / "1", tmp_path / "model")
    again = packed_in(tmp_path / "2", tmp_path / "model", bases=[Base(first.index, ())])
    assert again.artifact.raw_config == first.artifact.raw_config
    assert unpacked(again, tmp_path / "2") == files_of(tmp_path / "model")


def test_links_are_packed(tmp_path: Path) -> None:
    write_hugging_face_cache(tmp_path)
    packed = packed_in(tmp_path / "out", tmp_path / "models--ada--small")
    assert len(parse_index(*packed.index.dump(), "it").links) == 6
    assert len(packed.index.tensors) == len(small_model())


@pytest.mark.parametrize("data", [b"", b"x", bytes(PIECE), b"text " * 1000, noise(PIECE + 1)])
def test_files_that_are_no_weights(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    packed = packed_in(tmp_path / "out", tmp_path / "file")
    index = parse_index(*packed.index.dump(), "it")
    assert index.files[0].size == len(data)
    assert index.files[0].digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    if data:
        assert unpacked(packed, tmp_path / "out") == {"file": data}
        assert sum(chunk.stored for chunk in index.chunks) == packed.stored <= len(data)
    else:
        assert (index.chunks, index.blobs, packed.stored) == ((), (), 0)


@pytest.mark.parametrize("tensors", [{}, {"a": Values("F32", (0,), b"")}, {"s": Values("F64", (), b"12345678")}])
def test_models_of_almost_nothing(tmp_path: Path, tensors: dict[str, Values]) -> None:
    (tmp_path / "m.safetensors").write_bytes(safetensors(tensors))
    packed = packed_in(tmp_path / "out", tmp_path / "m.safetensors")
    assert {tensor.name: tensor.shape for tensor in packed.index.tensors} == {n: v.shape for n, v in tensors.items()}
    assert unpacked(packed, tmp_path / "out") == {"m.safetensors": (tmp_path / "m.safetensors").read_bytes()}


def test_a_broken_file_of_weights_is_named(tmp_path: Path) -> None:
    data = safetensors(small_model())
    (tmp_path / "m.safetensors").write_bytes(data[:-1])
    with pytest.raises(ImageError, match=r"m\.safetensors"):
        packed_in(tmp_path / "out", tmp_path / "m.safetensors")


def test_a_file_that_shrinks_meanwhile_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(safetensors({"a": trained("BF16", 4 * PIECE)}))
    sources, links = collect([tmp_path / "m.safetensors"])
    context = Context(Cache(), 1)

    class Shrinking:
        def advance(self, amount: int) -> None:
            del amount
            os.truncate(tmp_path / "m.safetensors", 1000)

    class Progress:
        def task(self, name: str, total: int | None, unit: str = "B") -> Task:
            del name, total, unit
            return Task()

    class Task(Shrinking):
        def __enter__(self) -> Shrinking:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    with pytest.raises(UsageError, match="became shorter while it was read"):
        pack(sources, links, tmp_path / "out", replace(context, progress=Progress()))
    assert not list(tmp_path.glob("out/*/.*"))


@pytest.fixture
def _few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("_few_files")
def test_more_files_than_a_process_may_have_open(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for number in range(150):
        (tmp_path / "cache" / f"kernel{number}").write_text(f"{number} " * number)
    packed = packed_in(tmp_path / "out", tmp_path / "cache")
    assert unpacked(packed, tmp_path / "out") == files_of(tmp_path / "cache")


def test_blobs_are_handed_on_as_they_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "BLOB", 50_000)
    write_model(tmp_path / "model")
    sources, links = collect([tmp_path / "model"])
    seen: dict[str, bytes] = {}

    def finish(blob: Blob) -> None:
        with blob.open() as chunks:
            seen[blob.descriptor.digest] = b"".join(chunks)

    packed = pack(sources, links, tmp_path / "out", Context(Cache(), 2), finish=finish)
    assert seen == blobs_of(tmp_path / "out")
    assert [blob.descriptor.digest for blob in packed.artifact.layers] == [blob.digest for blob in packed.index.blobs]
    assert len(seen) > 3


def test_a_blob_that_cannot_be_handed_on_fails_the_packing(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    sources, links = collect([tmp_path / "model"])

    def finish(blob: Blob) -> None:
        raise UsageError(f"no room for {blob.descriptor.size}")

    with pytest.raises(UsageError, match="no room for"):
        pack(sources, links, tmp_path / "out", Context(Cache(), 2), finish=finish)


def test_an_abandoned_blob_is_removed(tmp_path: Path) -> None:
    finished: list[Blob] = []

    def fail() -> None:
        with blob_writer(tmp_path, finished.append) as writer:
            assert [writer.append(b"abc"), writer.append(b"de")] == [(0, 0), (0, 3)]
            raise UsageError("no more")

    with pytest.raises(UsageError):
        fail()
    assert (finished, list((tmp_path / "sha256").iterdir())) == ([], [])


def test_tensors_of_one_offset_are_each_there(tmp_path: Path) -> None:
    """An empty tensor begins where the next one does."""
    tensors = {"a": Values("F32", (0,), b""), "b": trained("F32", 10), "c": Values("F32", (2, 0), b"")}
    (tmp_path / "m.safetensors").write_bytes(safetensors(tensors))
    index = packed_in(tmp_path / "out", tmp_path / "m.safetensors").index
    empty = tensor_digest([])
    assert {tensor.name: tensor.digest for tensor in index.tensors} == {
        "a": empty,
        "b": tensor_digest([sha256(tensors["b"].data)]),
        "c": empty,
    }


def test_threads_pack_side_by_side(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda name: packed_in(tmp_path / name, tmp_path / "model"), "abc"))
    assert len({one.artifact.raw_manifest for one in made}) == 1
