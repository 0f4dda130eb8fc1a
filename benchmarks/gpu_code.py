"""The proof that every library of an image keeps exactly the GPU code that it needs, and what it gets smaller by."""

from __future__ import annotations

import json
import mmap
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from host import describe
from proof.check import Original, Proof, chunks, compressed, prove, zeroed
from proof.docs import DOCUMENT, update
from proof.read import SECTIONS, Reading, elf_files, moved_words
from proof.root import Root
from proof.tool import CuObjDump, find_cuobjdump

from slimgpu.elf.arch import Sm, parse_target
from slimgpu.elf.choice import Policy
from slimgpu.elf.shrink import Wanted, shrink, shrink_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slimgpu.elf.shrink import Shrunk

SCHEMA = "slimgpu.benchmark.gpu-code.v1"
RESULTS = Path(__file__).resolve().parent / "results"

_ELF = b"\x7fELF"
_CUDA = 190
_RELOCATABLE = 1
_SHOWN = 5
_GOOD = ("loads", "0 ")
"""What is said of libraries that load, and of programs whose libraries are all found."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of one library."""

    before: int
    after: int
    smallest: int
    """What stays and all that is no GPU code and no symbols, without any padding."""
    code: int
    """Of GPU code that went, with its padding."""
    symbols: int
    """Of symbol tables and debug information that went."""
    zstd_before: int
    zstd_zeroed: int
    """Of the library with zeros for what goes, at its old size."""
    zstd_after: int


@dataclass(frozen=True, slots=True)
class Library:
    """What became of one library with GPU code."""

    path: str
    method: str
    sizes: Sizes
    proof: Proof


@dataclass(frozen=True, slots=True)
class Others:
    """What became of all other ELF files."""

    files: int
    changed: int
    cubins: int
    """GPU code in files of its own, which stays as it is here."""
    before: int
    after: int
    reasons: dict[str, int]
    """Why files stayed that were looked at."""
    problems: list[str]


class Image:
    """The ELF files of an unpacked image, and what was found out about them once."""

    def __init__(self, root: Path, tool: CuObjDump) -> None:
        self.root = root
        self._tool = tool
        self._originals: dict[str, Original] = {}
        self._packed: dict[str, int] = {}
        self.files = sorted(_elf_files(root))
        self.cubins = [name for name in self.files if _machine(root / name) == _CUDA]
        readings = {name: Reading(root / name) for name in set(self.files).difference(self.cubins)}
        self.libraries = sorted(
            (name for name, reading in readings.items() if reading.code()), key=lambda name: -readings[name].size
        )
        self.search = sorted({f"/{name}".rpartition("/")[0] for name in self.libraries})
        self.driver_calls = set[str]().union(*(reading.driver_calls for reading in readings.values()))
        self.others = sorted(set(readings).difference(self.libraries))
        self.loadable = sorted((f"/{name}", reading.is_program) for name, reading in readings.items())

    def original(self, name: str) -> Original:
        """A library as it was."""
        if name not in self._originals:
            self._originals[name] = Original(self.root / name, self._tool)
        return self._originals[name]

    def packed(self, name: str) -> int:
        """Bytes of the original after ``zstd -3``."""
        if name not in self._packed:
            self._packed[name] = compressed(chunks(self.original(name).reading.data))
        return self._packed[name]


class Run:
    """One choice of GPUs for one image."""

    def __init__(self, image: Image, gpus: str, tree: Path, tool: CuObjDump, *, quick: bool) -> None:
        self._image = image
        self._tree = tree
        self._tool = tool
        self._quick = quick
        self._targets: tuple[Sm, ...] = tuple(parse_target(gpu) for gpu in gpus.split(","))
        self._wanted = Wanted(Policy(self._targets), symbols=True)

    def libraries(self, jobs: int) -> Iterator[Library]:
        """Prune and prove each library with GPU code, the largest first."""
        with ThreadPoolExecutor(jobs) as pool:
            for library in pool.map(self._library, self._image.libraries):
                _say(_line(library))
                yield library

    def others(self) -> Others:
        """Take the symbols off all other files, and see that nothing that is mapped differs."""
        before, after, changed = 0, 0, 0
        reasons: Counter[str] = Counter()
        problems = []
        for name in self._image.others:
            source = self._image.root / name
            result = shrink(_mapped(source), self._wanted)
            before += result.before
            after += result.after
            if result.untouched:
                reasons[result.untouched] += 1
            if result.splice is None:
                continue
            changed += 1
            shrink_file(source, self._place(name), self._wanted)
            moved, wrong = moved_words(Reading(source), Reading(self._tree / name))
            problems += [f"{name}: {text}" for text in [*wrong, *(["a pointer moved"] if moved else [])]]
        cubins = self._image.cubins
        problems += [
            f"{name} is changed" for name in cubins if shrink(_mapped(self._image.root / name), self._wanted).splice
        ]
        return Others(len(self._image.others), changed, len(cubins), before, after, dict(reasons), problems)

    def _library(self, name: str) -> Library:
        source, destination = self._image.root / name, self._place(name)
        shrunk = shrink_file(source, destination, self._wanted)
        original = self._image.original(name)
        numbers = [target.number for target in self._targets]
        proof = prove(original, destination, numbers, self._tool, extract=not self._quick)
        sizes = self._sizes(name, shrunk, destination, numbers)
        if sizes.after != shrunk.after:
            proof.problems.append(f"{shrunk.after} bytes were announced, {sizes.after} written")
        return Library(name, shrunk.method or shrunk.untouched or "nothing to do", sizes, proof)

    def _sizes(self, name: str, shrunk: Shrunk, destination: Path, targets: list[int]) -> Sizes:
        original = self._image.original(name)
        zstd = (0, 0, 0)
        if not self._quick:
            after = compressed(chunks(Reading(destination).data))
            zstd = (self._image.packed(name), compressed(chunks(zeroed(original, targets))), after)
        size = destination.stat().st_size
        return Sizes(shrunk.before, size, original.kept(targets).size, shrunk.code, shrunk.symbols, *zstd)

    def _place(self, name: str) -> Path:
        path = self._tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@click.command()
@click.argument("image", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--gpu", "gpus", multiple=True, required=True, help="As `slimgpu build` takes it; commas join several.")
@click.option("--name", help="Of the results; the directory's own when left out.")
@click.option(
    "--quick", is_flag=True, help="Only lists and stored bytes: extract, compress and load nothing, write no result."
)
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1), help="Libraries at a time.")
@click.option("--work", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where big files go.")
@click.option(
    "--out", default=DOCUMENT, type=click.Path(dir_okay=False, path_type=Path), help="The document with tables."
)
def main(
    image: Path, gpus: tuple[str, ...], name: str | None, jobs: int, work: Path | None, out: Path, *, quick: bool
) -> None:
    """Prune all libraries of IMAGE, an OCI layout or an unpacked root, and prove what was done to them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that big files go
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="slimgpu-gpu-code-", dir=work) as scratch:
        place = Path(scratch)
        root = _unpacked(image, place / "root") if (image / "index.json").exists() else image
        (place / "extracted").mkdir()
        tool = CuObjDump(find_cuobjdump(), place / "extracted")
        found = Image(root.resolve(), tool)
        _say(
            f"{len(found.libraries)} libraries with code in {', '.join(SECTIONS)}, {len(found.others)} other ELF files"
        )
        before: dict[str, Any] = {}
        for gpu in gpus:
            tree = place / gpu / "tree"
            run = Run(found, gpu, tree, tool, quick=quick)
            libraries = list(run.libraries(jobs))
            document = {
                "gpus": gpu,
                "cuobjdump": tool.version(),
                "libraries": [asdict(library) for library in libraries],
            }
            problems = [f"{one.path}: {text}" for one in libraries for text in one.proof.problems]
            if not quick:
                others = run.others()
                ran = _ran(found, tree, place / gpu / "mounted", before, jobs)
                document |= {"others": asdict(others), "ran": ran}
                problems += [*others.problems, *ran["problems"]]
                result = RESULTS / f"gpu-code-{name or image.name}-{gpu.replace(',', '-')}.json"
                _write(result, document, image, place)
            wrong += len(problems)
            _report(gpu, libraries, problems)
            shutil.rmtree(place / gpu)
    if not quick:
        update(out)
    sys.exit(1 if wrong else 0)


def _ran(image: Image, tree: Path, mounted: Path, before: dict[str, Any], jobs: int) -> dict[str, Any]:
    """Load every file and compute, with the originals (once) and with what is below ``tree``."""
    if not before:
        _say("loading and computing with the originals")
        original = Root(image.root, tree.with_name("nothing"), mounted / "before", image.search, image.driver_calls)
        before |= {"loaded": original.load(image.loadable, jobs), "computed": original.compute()}
    _say("loading and computing with the pruned files")
    pruned = Root(image.root, tree, mounted / "after", image.search, image.driver_calls)
    loaded, computed = pruned.load(image.loadable, jobs), pruned.compute()
    problems = [
        f"{path}: {said[:200]!r} before, {loaded[path][:200]!r} after"
        for path, said in before["loaded"].items()
        if loaded[path] != said
    ]
    if computed != before["computed"]:
        problems.append(f"computed {computed}, before {before['computed']}")
    programs = {path for path, is_program in image.loadable if is_program}
    changed = [path for path in loaded if (tree / path[1:]).exists()]
    return {
        "libraries": len(loaded) - len(programs),
        "programs": len(programs),
        "changed": len(changed),
        "changed_and_loads": sum(loaded[path].startswith(_GOOD) for path in changed),
        "changed_and_fails_as_before": {
            path: loaded[path][:160]
            for path in changed
            if loaded[path] == before["loaded"][path] and not loaded[path].startswith(_GOOD)
        },
        "computed": computed,
        "problems": problems,
    }


def _elf_files(root: Path) -> Iterator[str]:
    """The names of all ELF files of that image that are more than a part of one."""
    for path, head in elf_files(root):
        if int.from_bytes(head[16:18], "little") != _RELOCATABLE:
            yield str(path.relative_to(root))


def _machine(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(20)[18:20], "little")


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def _unpacked(layout: Path, root: Path) -> Path:
    """The image of a layout as a directory."""
    document = json.loads((layout / "index.json").read_bytes())
    tag = document["manifests"][0].get("annotations", {}).get("org.opencontainers.image.ref.name", "latest")
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{layout}:{tag}", root], check=True)
    return root


def _write(path: Path, document: dict[str, Any], image: Path, work: Path) -> None:
    head = {"schema": SCHEMA, "taken": datetime.now(UTC).isoformat(timespec="seconds"), "image": image.name}
    path.write_text(json.dumps({**head, "machine": asdict(describe(work)), **document}, indent=1) + "\n")
    _say(f"written to {path}")


def _report(gpu: str, libraries: Iterable[Library], problems: list[str]) -> None:
    sizes = [library.sizes for library in libraries]
    before, after, smallest = (sum(getattr(s, name) for s in sizes) for name in ("before", "after", "smallest"))
    _say(f"{gpu}: {before:,} bytes, {after:,} after, {smallest:,} at least; {len(problems)} problems")
    for text in problems[: _SHOWN * 10]:
        _say(f"  {text}")


def _line(library: Library) -> str:
    sizes, proof = library.sizes, library.proof
    kept = f"{proof.kept} of {proof.entries} entries, {proof.listed} listed, {proof.extracted} extracted"
    return f"{library.path.rpartition('/')[2]}: {sizes.before:,} -> {sizes.after:,}, {kept}, {proof.problems[:_SHOWN]}"


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
