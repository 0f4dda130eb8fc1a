"""Containers of GPU code: those that nvcc makes, and those that nobody should."""

from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.elf import fatbin
from slimgpu.elf.arch import Sm
from slimgpu.elf.choice import Form, Policy
from slimgpu.elf.fatbin import Container
from slimgpu.elf.prune import Census, Data, label, parse_label, prune, read_items
from slimgpu.elf.shrink import Wanted, shrink
from slimgpu.errors import UnusualFileError
from tests.support.fuzz import examples
from tests.support.gpu_code import CUDA, Workshop, run

if TYPE_CHECKING:
    from pathlib import Path

H100 = Policy((Sm(90),))
OBJECTS = ("raw.o", "lz4.o", "zstd.o", "tiny.o", "tiny2.o", "old.o")


def section(shop: Workshop, name: str, folder: Path) -> memoryview:
    """The containers of an object file."""
    group = "__nv_relfatbin" if name.startswith(("rdc", "lto")) else ".nv_fatbin"
    out = folder / "containers"
    run("objcopy", "-O", "binary", f"--only-section={group}", "--set-section-flags", f"{group}=alloc,contents",
        str(shop.get(name)), str(out))  # fmt: skip
    return memoryview(out.read_bytes())


def containers(data: memoryview) -> list[Container]:
    items = list(read_items(data, 0, len(data)))
    assert all(isinstance(item, Container) for item in items)
    return [item for item in items if isinstance(item, Container)]


def entry(form: int, number: int, size: int = 64, *, header: int = 64, flags: int = 0x11) -> bytes:
    fields = (form, 0x0101, header, size, 0, 0, 8, 1, number, 0, 0, flags, 0, 0)
    return struct.pack("<HHIQIIHHIIIQQQ", *fields) + bytes(header - 64) + b"\x01" * size


def container(*entries: bytes) -> bytes:
    return fatbin.START + sum(map(len, entries)).to_bytes(8, "little") + b"".join(entries)


def shrunk_to(data: bytes, policy: Policy = H100) -> bytes:
    result = shrink(memoryview(data), Wanted(policy))
    if result.splice is None:
        return data
    return b"".join(bytes(piece) for piece in result.splice.content(lambda at, size: data[at : at + size]))


@pytest.mark.parametrize("name", [*OBJECTS, "rdc.o", "lto.o"])
def test_cuobjdump_sees_the_same_code(shop: Workshop, tmp_path: Path, name: str) -> None:
    found = [label(one.code) for each in containers(section(shop, name, tmp_path)) for one in each.entries]
    tool = CUDA / "bin" / "cuobjdump"
    elf, ptx = (run(tool, option, shop.get(name)).split() for option in ("--list-elf", "--list-ptx"))
    cubins = [word.split(".")[-2] for word in elf if word.endswith(".cubin")]
    texts = [word.split(".")[-2].replace("sm_", "compute_") for word in ptx if word.endswith(".ptx")]
    plain = [one.removesuffix("f") for one in found]  # it leaves the f out of names
    assert sorted(cubins) == sorted(one.removesuffix("f") for one in found if one.startswith("sm_"))
    assert sorted(texts) == sorted(one for one in plain if one.startswith("compute_"))


@pytest.mark.parametrize("name", OBJECTS)
def test_payloads_are_what_cuobjdump_takes_out(shop: Workshop, tmp_path: Path, name: str) -> None:
    data = section(shop, name, tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()
    run(CUDA / "bin" / "cuobjdump", "-xelf", "all", shop.get(name), cwd=folder)
    cubins = [one for each in containers(data) for one in each.entries if one.code.form == Form.CUBIN]
    assert {fatbin.payload(data, one, 2**24) for one in cubins} == {path.read_bytes() for path in folder.iterdir()}
    assert all(fatbin.payload(data, one, 2**24)[:4] == b"\x7fELF" for one in cubins)


@pytest.mark.parametrize("name", ["raw.o", "lz4.o", "zstd.o", "old.o"])
def test_kernels_are_named_from_ptx(shop: Workshop, tmp_path: Path, name: str) -> None:
    data = section(shop, name, tmp_path)
    (ptx,) = {
        tuple(sorted(fatbin.kernels(data, one)))
        for each in containers(data)
        for one in each.entries
        if one.code.form == Form.PTX
    }
    assert len(ptx) == 2
    assert all("kernel" in kernel for kernel in ptx)


def test_native_names_the_kernels_that_would_be_compiled(shop: Workshop) -> None:
    result = shrink(memoryview(shop.get("old.o").read_bytes()), Wanted(Policy((Sm(90),), native=True)))
    assert result.untouched, "an object file"
    library = shrink(memoryview(shop.get("not_usable.so").read_bytes()), Wanted(Policy((Sm(90),), native=True)))
    assert len(library.missing) == 2
    assert all("kernel" in kernel and "part5" in kernel for kernel in library.missing)
    assert not shrink(memoryview(shop.get("plain.so").read_bytes()), Wanted(H100)).missing


def test_ptx_for_gpus_to_come_stays_on_request(shop: Workshop) -> None:
    data = memoryview(shop.get("plain.so").read_bytes())
    codes = dict(shrink(data, Wanted(Policy((Sm(90),), keep_ptx=True))).code_after)
    assert set(codes) == {"sm_90", "sm_90a", "compute_90", "compute_75"}
    assert set(dict(shrink(data, Wanted(H100)).code_after)) == {"sm_90", "sm_90a"}


@pytest.mark.parametrize("name", ["raw.fatbin", "tiny.fatbin"])
def test_a_file_of_containers(shop: Workshop, tmp_path: Path, name: str) -> None:
    data = shop.get(name).read_bytes()
    after = shrunk_to(data)
    assert len(after) < len(data) / 3
    (before,), (left,) = containers(memoryview(data)), containers(memoryview(after))
    kept = [data[one.offset : one.offset + one.size] for one in before.entries if one.code.sm.number == 90]
    wanted = [one for one in kept if one[0] == 2]
    assert [after[one.offset : one.offset + one.size] for one in left.entries] == wanted
    out = tmp_path / "after.fatbin"
    out.write_bytes(after)
    assert "sm_90" in run(CUDA / "bin" / "cuobjdump", "--list-elf", out)
    assert shrunk_to(after) == after


def test_placeholders_are_read_by_cuobjdump(shop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "left.fatbin"
    out.write_bytes(shrunk_to(shop.get("tiny.fatbin").read_bytes(), Policy((Sm(121),))))
    (left,) = containers(memoryview(out.read_bytes()))
    assert [(one.size, label(one.code)) for one in left.entries] == [(fatbin.PLACEHOLDER, "sm_75")]
    assert "sm_75" in run(CUDA / "bin" / "cuobjdump", "--list-elf", out)
    (tmp_path / "cubins").mkdir()
    run(CUDA / "bin" / "cuobjdump", "-xelf", "all", out, cwd=tmp_path / "cubins")
    (cubin,) = (tmp_path / "cubins").iterdir()
    assert not subprocess.run(["readelf", "-aW", cubin], capture_output=True, check=True).stderr


def test_a_smaller_entry_stays_instead_of_a_placeholder() -> None:
    data = container(entry(2, 100, 1000), entry(2, 120, 40))
    assert shrunk_to(data) == container(entry(2, 120, 40))
    assert shrunk_to(container(entry(1, 100, 5000), entry(1, 120, 4000))) == container(entry(1, 120, 4000))


def test_headers_of_all_lengths_and_forms() -> None:
    parts = [entry(2, 75, header=length) for length in (64, 72, 312)]
    parts += [entry(2, 90, header=200), entry(0x100, 0), entry(77, 3), entry(2, 90, 8, flags=0x100011)]
    assert shrunk_to(container(*parts)) == container(*parts[3:])


def test_containers_back_to_back_are_aligned() -> None:
    two = container(entry(2, 75, 24), entry(2, 90, 20)) + bytes(4) + container(entry(2, 75), entry(2, 90))
    assert shrunk_to(two) == container(entry(2, 90, 20)) + bytes(4) + container(entry(2, 90))


def test_an_empty_container_stays() -> None:
    data = container() + container(entry(2, 75), entry(2, 90))
    assert shrunk_to(data) == container() + container(entry(2, 90))


def test_other_data_is_told_apart() -> None:
    one = container(entry(2, 90))
    data = memoryview(b"other..." + one + bytes(8) + b"x" * 8 + b"y" + bytes(7) + one)
    items = list(read_items(data, 0, len(data)))
    assert [(type(item), item.offset) for item in items] == [
        (Data, 0), (Container, 8), (Data, 8 + len(one)), (Container, len(data) - len(one))
    ]  # fmt: skip
    assert "more than containers" in shrink(memoryview(one + b"x" * 8), Wanted(H100)).untouched


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (fatbin.START, "cut off"),
        (container(entry(2, 90))[:-1], "larger than what holds it"),
        (fatbin.START + (2**64 - 1).to_bytes(8, "little"), "larger than what holds it"),
        (fatbin.START + (63).to_bytes(8, "little") + bytes(63), "do not fill it"),
        (container(entry(2, 90)[:-8]), "do not fill it"),
        (container(entry(2, 90, 2**20)[:200]), "do not fill it"),
        (container(*[entry(2, 90, 0)] * 5000), "do not fill it"),
        (container(entry(2, 90)[:16] + b"\xff" * 4 + entry(2, 90)[20:]), "do not fill it"),
        (container(entry(2, 90)[:0x14] + b"\xff" * 4 + entry(2, 90)[0x18:]), "not in it"),
        (container(entry(2, 90)[:0x20] + b"\xff" * 8 + entry(2, 90)[0x28:]), "not in it"),
        (container(entry(2, 90)[:4] + bytes(4) + entry(2, 90)[8:]), "do not fill it"),
    ],
)
def test_odd_containers_stay_and_say_why(data: bytes, why: str) -> None:
    result = shrink(memoryview(data), Wanted(H100))
    assert why in result.untouched
    assert (result.splice, result.before, result.after) == (None, len(data), len(data))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("flags", [0x2011, 0x8011])
@pytest.mark.parametrize("unpacked", [2**20, 2**28, 2**40, 2**63])
def test_code_that_lies_about_its_size(flags: int, unpacked: int) -> None:
    bomb = bytearray(entry(1, 75, flags=flags))
    bomb[0x38:0x40] = unpacked.to_bytes(8, "little")
    data = container(bytes(bomb))
    result = shrink(memoryview(data), Wanted(Policy((Sm(90),), native=True)))
    assert result.untouched


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [100_000, 600_000])
def test_very_many_containers_end_soon(count: int) -> None:
    data = memoryview(container() * count)
    result = shrink(data, Wanted(H100))
    assert result.splice is None
    assert bool(result.untouched) == (count > 300_000)


@examples(200)
@given(st.binary(max_size=400))
def test_any_bytes_are_answered(data: bytes) -> None:
    for whole in (data, fatbin.START + data, container(data), b"\x7fELF\x02\x01\x01" + data):
        result = shrink(memoryview(whole), Wanted(Policy((Sm(90),), native=True)))
        assert result.after <= result.before == len(whole)


@given(st.lists(st.tuples(st.sampled_from([1, 2, 8, 256, 9]), st.sampled_from([75, 80, 90, 100]), st.integers(0, 40))))
def test_what_stays_is_a_container_of_the_same_entries(specs: list[tuple[int, int, int]]) -> None:
    parts = [entry(form, number, 8 * size) for form, number, size in specs]
    data = memoryview(container(*parts))
    one = fatbin.read_container(data, 0, len(data))
    pruned = prune(data, one, H100, Census())
    out = b"".join(part if isinstance(part, bytes) else bytes(data[part[0] : sum(part)]) for part in pruned.parts)
    assert len(out) == pruned.size <= one.size
    left = fatbin.read_container(memoryview(out), 0, len(out))
    assert all(out[e.offset : e.offset + e.size] in parts for e in left.entries if e.size != fatbin.PLACEHOLDER)
    assert bool(left.entries) == bool(parts)


@given(st.binary(max_size=200), st.integers(0, 100))
def test_reading_raises_nothing_else(data: bytes, end: int) -> None:
    try:
        items = list(read_items(memoryview(fatbin.START + data), 0, min(end, len(data))))
    except UnusualFileError:
        return
    assert all(item.size > 0 for item in items)


@pytest.mark.parametrize("name", ["sm_90", "sm_90a", "sm_100f", "compute_75", "lto_90"])
def test_labels_go_back(name: str) -> None:
    code = parse_label(name)
    assert code is not None
    assert label(code) == name
    assert parse_label("other") is None
