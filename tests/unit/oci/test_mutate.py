from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from slimgpu.errors import DigestError, ImageError
from slimgpu.oci import media
from slimgpu.oci.config import ImageConfig
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.image import CHUNK
from slimgpu.oci.manifest import Descriptor, parse_manifest
from slimgpu.oci.mutate import BlobLayer, compose, open_file, parse_image

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.oci.image import Layer


def layer_of(path: Path, data: bytes, held: bytes | None = None) -> BlobLayer:
    path.write_bytes(data if held is None else held)
    return BlobLayer(Descriptor(media.OCI_LAYER, digest_bytes(data), len(data)), open_file(path), digest_bytes(data))


def read(layer: Layer) -> bytes:
    with layer.open() as chunks:
        return b"".join(chunks)


def config_of(count: int, **more: Any) -> ImageConfig:
    return ImageConfig({"rootfs": {"diff_ids": [digest_bytes(b"%d" % n) for n in range(count)]}, **more})


@pytest.mark.parametrize(
    ("offset", "size"), [(0, None), (0, 0), (5, 7), (5, None), (CHUNK - 1, 2), (0, 10**9), (10**9, 5)]
)
def test_a_part_of_a_file(tmp_path: Path, offset: int, size: int | None) -> None:
    data = bytes(range(251)) * 10_000
    (tmp_path / "f").write_bytes(data)
    with open_file(tmp_path / "f", offset, size)() as chunks:
        pieces = list(chunks)
    assert b"".join(pieces) == data[offset : None if size is None else offset + size]
    assert all(0 < len(piece) <= CHUNK for piece in pieces)


def test_a_layer_can_be_opened_again_and_again(tmp_path: Path) -> None:
    layer = layer_of(tmp_path / "f", b"x" * 3_000_000)
    assert read(layer) == read(layer) == b"x" * 3_000_000


@pytest.mark.parametrize("held", [b"", b"12345", b"1234567", b"12345X"])
def test_a_layers_bytes_are_checked(tmp_path: Path, held: bytes) -> None:
    layer = layer_of(tmp_path / "f", b"123456", held)
    with pytest.raises(DigestError, match=f"layer {layer.descriptor.digest} "):
        read(layer)


def test_composing_and_reading_back(tmp_path: Path) -> None:
    layers = [layer_of(tmp_path / f"{n}", b"%d" % n) for n in range(2)]
    image = compose("it", config_of(2, author="me"), layers, {"a": "b"})
    assert image.manifest.config.digest == digest_bytes(image.raw_config)
    assert image.manifest.config.size == len(image.raw_config)
    assert parse_manifest(image.raw_manifest, "it") == image.manifest
    again = parse_image(
        "it",
        image.raw_manifest,
        image.raw_config,
        lambda d: open_file(tmp_path / f"{[x.descriptor for x in layers].index(d)}"),
    )
    assert [read(layer) for layer in again.layers] == [b"0", b"1"]
    assert [layer.diff_id for layer in again.layers] == list(again.config.diff_ids)
    assert again.config.document["author"] == "me"
    assert compose("it", again.config, again.layers, {"a": "b"}).raw_manifest == image.raw_manifest


def test_layers_and_diff_ids_have_to_be_as_many(tmp_path: Path) -> None:
    image = compose("it", config_of(1), [layer_of(tmp_path / "f", b"0")])
    other = json.dumps(dict(config_of(2).document)).encode()
    with pytest.raises(ImageError, match="it has 1 layers in its manifest but 2 in its configuration"):
        parse_image("it", image.raw_manifest, other, lambda _: open_file(tmp_path / "f"))
