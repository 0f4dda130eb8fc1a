"""Damaged and hostile files: `shrink` always answers, soon, and never breaks what could be loaded before."""

from __future__ import annotations

import io
import random
import signal
import struct
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from elftools.elf.elffile import ELFFile

from slimgpu.elf.arch import Sm
from slimgpu.elf.choice import Policy
from slimgpu.elf.shrink import Shrunk, Wanted, shrink
from tests.support.fuzz import examples
from tests.support.gpu_code import CUDA, Workshop
from tests.support.trial import Trials, trials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHUNKS = 20
MUTATIONS = examples(10_000).max_examples // CHUNKS
SEEDS = ("tiny.so", "tiny_relr.so", "tiny_lld.so", "tiny.fatbin")
MAGIC = b"\x50\xed\x55\xba\x01\x00\x10\x00"
VALUES = (0, 1, 7, 8, 63, 64, 4095, 4096, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WANTED = Wanted(Policy((Sm(90),)))
HANG = 60
"""Seconds of the processor, for what takes a few milliseconds."""
"""Seconds for one small file, on a machine that does much else."""


@dataclass
class Seed:
    """A file with the places where damage tells most."""

    name: str
    data: bytes
    headers: list[int]
    """Offsets of all bytes of headers, tables and containers' and entries' headers."""
    ends: list[int]
    """Where such a part starts or ends."""


def seed(name: str, data: bytes) -> Seed:
    spans = list(containers(data))
    if name.endswith(".so"):
        spans += tables(data)
    headers = sorted({at for start, end in spans for at in range(start, min(end, len(data)))})
    return Seed(name, data, headers, sorted({edge for span in spans for edge in span}))


def containers(data: bytes) -> Iterator[tuple[int, int]]:
    at = data.find(MAGIC)
    while at >= 0:
        yield at, at + 16
        entry, end = at + 16, at + 16 + struct.unpack_from("<Q", data, at + 8)[0]
        while entry < end:
            header, size = struct.unpack_from("<IQ", data, entry + 4)
            yield entry, entry + header
            entry += header + size
        at = data.find(MAGIC, end)


def tables(data: bytes) -> Iterator[tuple[int, int]]:
    elf = ELFFile(io.BytesIO(data))
    yield 0, 64
    yield elf["e_phoff"], elf["e_phoff"] + 56 * elf["e_phnum"]
    yield elf["e_shoff"], elf["e_shoff"] + 64 * elf["e_shnum"]
    for section in (".dynamic", ".rela.dyn", ".relr.dyn", ".rela.plt", ".dynsym", ".nvFatBinSegment"):
        found = elf.get_section_by_name(section)
        if found is not None:
            yield found["sh_offset"], found["sh_offset"] + found["sh_size"]


def one_byte(rng: random.Random, one: Seed, at: int) -> bytes:
    data = bytearray(one.data)
    data[at] = rng.choice([data[at] ^ 1 << rng.randrange(8), rng.randrange(256), 0, 255])
    return bytes(data)


def one_word(rng: random.Random, one: Seed, at: int) -> bytes:
    """A field of 2, 4 or 8 bytes becomes what breaks sums."""
    width = rng.choice((2, 4, 8))
    at -= at % width
    old = int.from_bytes(one.data[at : at + width], "little")
    value = rng.choice([*VALUES, old + rng.choice((1, -1, 8, -8, 4096, -4096)), rng.getrandbits(64), len(one.data)])
    return one.data[:at] + (value % 2 ** (8 * width)).to_bytes(width, "little") + one.data[at + width :]


def swapped(rng: random.Random, one: Seed, at: int) -> bytes:
    """Parts of a table come from elsewhere in it."""
    other, size = rng.choice(one.headers), rng.choice((8, 16, 24, 56, 64))
    return one.data[:at] + one.data[other : other + size] + one.data[at + size :]


def truncated(rng: random.Random, one: Seed, at: int) -> bytes:
    del at
    return one.data[: rng.choice([rng.choice(one.ends), rng.randrange(len(one.data))])]


def several(rng: random.Random, one: Seed, at: int) -> bytes:
    for _ in range(rng.randrange(2, 6)):
        one = Seed(one.name, rng.choice((one_byte, one_word))(rng, one, at), one.headers, one.ends)
        at = rng.choice(one.headers)
    return one.data


def garbage(rng: random.Random, one: Seed, at: int) -> bytes:
    size = rng.randrange(1, 300)
    return one.data[:at] + rng.randbytes(size) + one.data[at + size :]


MUTATORS: list[Callable[[random.Random, Seed, int], bytes]] = [
    *[one_byte] * 6, *[one_word] * 6, *[several] * 3, swapped, swapped, truncated, garbage
]  # fmt: skip


@pytest.fixture(scope="session")
def seeds(shop: Workshop) -> list[Seed]:
    return [seed(name, shop.get(name).read_bytes()) for name in SEEDS]


@pytest.fixture
def loader(shop: Workshop) -> Iterator[Trials]:
    with trials(shop.get("libruntime.so")) as one:
        yield one


@contextmanager
def no_hang() -> Iterator[None]:
    """Ends a block that would not end."""

    def give_up(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_damaged_files_are_answered_and_never_broken(
    seeds: list[Seed], loader: Trials, tmp_path: Path, chunk: int
) -> None:
    rng = random.Random(chunk)  # noqa: S311 - the same files every time
    places = [(one, at) for one in seeds for at in one.headers]
    for number in range(MUTATIONS):
        one, at = places[(number * CHUNKS + chunk) * 7919 % len(places)]
        mutated = rng.choice(MUTATORS)(rng, one, at)
        with no_hang():
            result = shrink(memoryview(mutated), WANTED)
        assert isinstance(result, Shrunk)
        if result.splice is not None:
            check(loader, tmp_path, one.name, mutated, result, number)


def check(loader: Trials, folder: Path, name: str, mutated: bytes, result: Shrunk, number: int) -> None:
    """What read the damaged file reads the shrunk one too."""
    assert result.splice
    content = b"".join(bytes(piece) for piece in result.splice.content(lambda at, size: mutated[at : at + size]))
    assert len(content) == result.after < len(mutated)
    again = shrink(memoryview(content), WANTED)
    assert again.splice is None
    before, after = folder / f"before-{name}", folder / f"after-{name}"
    before.write_bytes(mutated)
    after.write_bytes(content)
    if name.endswith(".so"):
        digest = loader.load(before)
        assert digest in ("-", loader.load(after)), number
        if number % 4 == 0 and not complaints(before):
            assert not complaints(after), number
    if number % 8 == 0 and listed(before):
        assert listed(after), number


def complaints(path: Path) -> bool:
    done = subprocess.run(["readelf", "-aW", path], capture_output=True, text=True, check=False, errors="replace")
    return bool(done.stderr) or done.returncode != 0 or "corrupt" in done.stdout


def listed(path: Path) -> bool:
    """Whether cuobjdump reads a file."""
    done = subprocess.run([CUDA / "bin" / "cuobjdump", "--list-elf", path], capture_output=True, check=False)
    return done.returncode == 0
