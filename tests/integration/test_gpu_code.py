"""Libraries of a real image keep exactly the GPU code that a GPU can choose, as NVIDIA's own tool sees it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slimgpu.analysis.unpack import unpack
from slimgpu.elf.arch import parse_target
from slimgpu.elf.choice import Policy
from slimgpu.elf.shrink import Wanted, shrink_file
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from tests.support.examples import assembled
from tests.support.trees import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.rootfs.filesystem import FileSystem

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PACKAGES = "opt/venv/lib/python3.11/site-packages"
LIBRARIES = (
    "nvidia/cu13/lib/libcublas.so.13",
    "nvidia/cu13/lib/libcurand.so.10",  # a container that nothing points to
    "nvidia/cudnn/lib/libcudnn_cnn.so.9",  # containers of which nothing can run
    "nvidia/cusparselt/lib/libcusparseLt.so.0",  # containers between other data
    "nvidia/nccl/lib/libnccl.so.2",  # relocatable device code, and symbols
    "torch/lib/libtorch_cuda_linalg.so",
)
NOT_ALONE = (LIBRARIES[0], LIBRARIES[2], LIBRARIES[-1])
"""What cannot be loaded without other libraries, and says which."""
OPEN = "import ctypes, os, sys; ctypes.CDLL(sys.argv[1], mode=os.RTLD_NOW)"


@dataclass(frozen=True)
class Tools:
    """The benchmark's modules, which know nothing of slimgpu's reader and rule."""

    check: Any
    tool: Any


@pytest.fixture(scope="module")
def tools() -> Iterator[Tools]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield Tools(importlib.import_module("proof.check"), importlib.import_module("proof.tool"))


@pytest.fixture(scope="module")
def files() -> Iterator[FileSystem]:
    with opened(assembled("torch")) as image, unpack(image, Context(Cache())) as found:
        yield found


def copy_of(name: str, files: FileSystem, folder: Path) -> Path:
    folder.mkdir()
    path = folder / Path(name).name
    with path.open("wb") as out:
        out.writelines(files.content(files.nodes[f"{PACKAGES}/{name}"].inode))
    return path


def dlopen(path: Path) -> tuple[int, str]:
    """What the loader says in a fresh process."""
    done = subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.replace(str(path.parent), "")


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_stays_is_what_the_rule_says(name: str, tools: Tools, files: FileSystem, tmp_path: Path) -> None:
    before = copy_of(name, files, tmp_path / "before")
    cuobjdump = tools.tool.CuObjDump(tools.tool.find_cuobjdump(), tmp_path)
    original = tools.check.Original(before, cuobjdump)
    assert (dlopen(before)[0] == 0) == (name not in NOT_ALONE)

    for gpu in ("h100", "l40s"):
        target = parse_target(gpu)
        after = tmp_path / gpu / before.name
        shrunk = shrink_file(before, after, Wanted(Policy((target,)), symbols=True))

        proof = tools.check.prove(original, after, [target.number], cuobjdump, extract=True)

        assert proof.problems == []
        assert 0 < proof.kept < proof.entries
        assert proof.stored == proof.extracted == proof.kept
        assert proof.listed == proof.kept + sum(proof.placeholders.values())
        assert after.stat().st_size == shrunk.after < before.stat().st_size
        assert after.stat().st_size < original.kept([target.number]).size * 1.005
        assert dlopen(after) == dlopen(before)


def test_the_proof_notices_what_is_wrong(tools: Tools, files: FileSystem, tmp_path: Path) -> None:
    before = copy_of(LIBRARIES[2], files, tmp_path / "before")
    cuobjdump = tools.tool.CuObjDump(tools.tool.find_cuobjdump(), tmp_path)
    original = tools.check.Original(before, cuobjdump)
    after = tmp_path / before.name
    shrink_file(before, after, Wanted(Policy((parse_target("h100"),)), symbols=True))
    reading = tools.check.Reading(after)
    text = next(section.start for section in reading.sections if section.name == ".text")
    kept = next(entry for entry in tools.check.flat(reading.containers()) if entry.size > 4096)

    def problems(number: int = 90) -> list[str]:
        found: list[str] = tools.check.prove(original, after, [number], cuobjdump, extract=True).problems
        return found

    assert problems() == []
    assert problems(75)
    assert problems(100)
    for place in (text, kept.start + 0x28, kept.start + 0x1C, kept.end - 100):
        data = bytearray(after.read_bytes())
        data[place] ^= 1
        after.write_bytes(data)
        assert problems()
        data[place] ^= 1
        after.write_bytes(data)
