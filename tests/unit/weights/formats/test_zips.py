from __future__ import annotations

import io
import struct
import zipfile

import pytest

from slimgpu.errors import ImageError
from slimgpu.weights.formats import read_tensors, zips
from tests.support.weight_files import Bytes, checkpoint, storage, view

DATA = bytes(range(96))
WHOLE = checkpoint({"x": view(storage("0", 24), (24,))}, {"0": DATA, "1": b"12"})
_END = WHOLE.rfind(b"PK\x05\x06")
_START = struct.unpack_from("<I", WHOLE, _END + 16)[0]


def line(name: bytes) -> int:
    """Where the directory has its line of a member."""
    return WHOLE.rfind(name) - 46


def changed(at: int, form: str, value: int, data: bytes = WHOLE) -> bytes:
    out = bytearray(data)
    struct.pack_into(form, out, at, value)
    return bytes(out)


def names(data: bytes) -> list[str] | None:
    found = read_tensors("m.pt", Bytes(data))
    return None if found is None else [tensor.name for tensor in found]


_LOCAL = struct.unpack_from("<I", WHOLE, line(b"m/data/0") + 42)[0]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (WHOLE[:-1], "the archive's end is missing"),
        (WHOLE[:200], "the archive's end is missing"),
        (changed(_END + 10, "<H", 9999), "is damaged"),
        (changed(_END + 12, "<I", 2**31), "is damaged"),
        (changed(_END + 16, "<I", 2**31), "is damaged"),
        (changed(_END + 16, "<I", _START + 1), "is damaged"),
        (changed(_END + 4, "<H", 1), "is damaged"),
        (changed(_END + 10, "<H", 0xFFFF), "is damaged"),
        (changed(_START, "<I", 0), "is damaged"),
        (changed(_START + 28, "<H", 5000), "is damaged"),
        (changed(_START + 30, "<H", 60_000), "ends early"),
        (changed(line(b"m/data/1"), "<B", ord("P"), WHOLE.replace(b"m/data/1", b"m/data/0")), "a name twice"),
        (changed(line(b"m/data/0") + 42, "<I", _LOCAL + 1), "not where the directory says"),
        (changed(line(b"m/data/0") + 42, "<I", 0), "not where the directory says"),
        (changed(line(b"m/data/0") + 42, "<I", len(WHOLE) - 3), "not where the directory says"),
        (changed(line(b"m/data/0") + 42, "<I", 0xFFFFFFFF), "is damaged"),
        (changed(_LOCAL + 26, "<H", 7), "not where the directory says"),
        (changed(_LOCAL + 28, "<H", 60_000), "not where the directory says"),
        (changed(_LOCAL + 30, "<B", 65), "not where the directory says"),
    ],
)
def test_what_breaks_the_archive(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=f"^m.pt is not a valid torch checkpoint: .*{why}"):
        names(data)


def test_members_that_share_bytes() -> None:
    longer = changed(line(b"m/data/0") + 20, "<I", 150)
    with pytest.raises(ImageError, match="members of its archive overlap"):
        names(changed(line(b"m/data/0") + 24, "<I", 150, longer))


def test_a_storage_that_is_encrypted_or_packed_is_left_out() -> None:
    assert names(WHOLE) == ["x", "data/1"]
    assert names(changed(line(b"m/data/1") + 8, "<H", 1)) == ["x"]
    assert names(changed(line(b"m/data/1") + 10, "<H", 8)) == ["x"]
    assert names(changed(line(b"m/data/1") + 20, "<I", 1)) == ["x"]


def test_a_comment_at_the_end() -> None:
    comment = b"PK\x05\x06 not this" * 9
    assert names(changed(_END + 20, "<H", len(comment)) + comment) == ["x", "data/1"]


def test_a_long_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "_MAX_DIRECTORY", 100)
    with pytest.raises(ImageError, match="its archive has 5 members in a directory of"):
        names(WHOLE)


def test_a_small_archive_that_claims_64_bit_fields() -> None:
    with pytest.raises(ImageError, match="is damaged"):
        names(
            b"PK\x03\x04"
            + bytes(22)
            + b"\x0a\0\0\0m/data.pkl"
            + struct.pack("<4s4H2IH", b"PK\5\6", *[0xFFFF] * 4, 0, 0, 0)
        )


def _many(count: int, *, wide: bool) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for name in ("data.pkl", "version", *(f"data/{number}" for number in range(count))):
            with out.open(zipfile.ZipInfo(f"m/{name}"), "w", force_zip64=wide) as member:
                member.write(b"\x80\x02N." if name == "data.pkl" else b"3")
    return file.getvalue()


def test_more_members_than_16_bits_count() -> None:
    found = names(_many(66_000, wide=False))
    assert found is not None
    assert len(found) == 66_000


def test_64_bit_fields() -> None:
    plain = _many(2, wide=True)
    at = plain.rfind(b"m/data/1") - 46
    offset = struct.unpack_from("<I", plain, at + 42)[0]
    extra = struct.pack("<HH3x", 9, 3) + struct.pack("<HHQQQ", 1, 24, 1, 1, offset)
    data = bytearray(plain)
    struct.pack_into("<II", data, at + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<I", data, at + 42, 0xFFFFFFFF)
    struct.pack_into("<H", data, at + 30, len(extra))
    data[at + 54 : at + 54] = extra
    end = data.rfind(b"PK\x05\x06")
    struct.pack_into("<I", data, end + 12, struct.unpack_from("<I", data, end + 12)[0] + len(extra))
    assert names(bytes(data)) == names(plain) == ["data/0", "data/1"]
    cut = data.replace(struct.pack("<HHQQQ", 1, 24, 1, 1, offset), struct.pack("<HHQQQ", 1, 8, 1, 1, offset))
    with pytest.raises(ImageError, match="is damaged"):
        names(bytes(cut))


@pytest.mark.parametrize("form", ["locator", "record", "where"])
def test_a_damaged_64_bit_end(form: str) -> None:
    data = bytearray(_many(66_000, wide=False))
    at = data.rfind(b"PK\x06\x07")
    if form == "locator":
        data[at] = 0
    elif form == "record":
        data[data.rfind(b"PK\x06\x06")] = 0
    else:
        struct.pack_into("<Q", data, at + 8, 2**63)
    with pytest.raises(ImageError, match="is damaged"):
        names(bytes(data))
