"""How fast libraries with GPU code are made smaller, beside `cp` and `zstd` of the same files in the same run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
from host import describe
from proof.read import Reading, elf_files
from rich.console import Console
from rich.table import Table
from timing import Sample, measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SCHEMA = "slimgpu.benchmark.shrink.v1"

_HERE = Path(__file__).resolve().parent
_RESULT = _HERE / "results" / "shrink.json"
_READ = 1 << 20
_MEGA = 1_000_000


@dataclass(frozen=True, slots=True)
class Arm:
    """One command over all files."""

    name: str
    what: str
    command: tuple[str, ...]
    cores: int
    """Those that it may use."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The peak of one process that shrinks one file."""

    file: str
    size: int
    own: int
    """Without the pages of mapped files, which the kernel takes back when it wants."""
    all: int


@click.command()
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--work", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where files are written.")
def main(root: Path, runs: int, work: Path | None) -> None:
    """Shrink all libraries with GPU code below ROOT for H100."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that big files go
    files = sorted(_libraries(root), key=lambda path: -path.stat().st_size)
    size = sum(path.stat().st_size for path in files)
    with tempfile.TemporaryDirectory(prefix="slimgpu-shrink-", dir=work) as scratch:
        out = Path(scratch, "out")
        arms = list(_arms([str(path) for path in files], out))
        samples = [_sample(arm, number, files, out) for number in range(runs) for arm in _order(arms, number)]
        memory = [_memory(path, out) for path in files]
        machine = describe(Path(scratch))
    document = {
        "schema": SCHEMA,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "image": root.name,
        "files": len(files),
        "bytes": size,
        "page_cache": "warm: all files are read once before each arm, earlier writes are synced",
        "machine": asdict(machine),
        "samples": [asdict(sample) for sample in samples],
        "memory": [asdict(one) for one in memory],
    }
    _RESULT.write_text(json.dumps(document, indent=1) + "\n")
    _print(arms, samples, memory, size)
    click.echo(f"written to {_RESULT}", err=True)


def _libraries(root: Path) -> Iterator[Path]:
    return (path for path, head in elf_files(root) if head[18] in (62, 183) and Reading(path).code())


def _arms(files: Sequence[str], out: Path) -> Iterator[Arm]:
    cores = len(os.sched_getaffinity(0))
    folder, names = shlex.quote(str(out)), shlex.join(files)
    worker = (sys.executable, str(_HERE / "proof/worker.py"))
    each = f"for file in {names}; do "
    packed = f'-o {folder}/"$(echo "$file" | tr / _)"'
    yield Arm("shrink", "one process, new content thrown away", (*worker, "-", "1", *files), 1)
    yield Arm("zstd -T1", "the same of zstd -3 -T1", _shell(f'{each} zstd -q -3 -T1 -c "$file" > /dev/null; done'), 1)
    yield Arm("shrink -j", "a process a core, thrown away", (*worker, "-", str(cores), *files), cores)
    yield Arm(
        "zstd -T0", "zstd -3 -T0, thrown away", _shell(f'{each} zstd -q -3 -T0 -c "$file" > /dev/null; done'), cores
    )
    yield Arm("shrink, written", "one process, files fsynced", (*worker, str(out), "1", *files), 1)
    yield Arm(
        "cp, written",
        "cp of each file, then sync of it",
        _shell(f"cp {names} --backup=numbered -t {folder}; sync {folder}/*"),
        1,
    )
    yield Arm("shrink -j, written", "a process a core, files fsynced", (*worker, str(out), str(cores), *files), cores)
    yield Arm(
        "zstd -T0, written",
        "zstd -3 -T0, then sync",
        _shell(f'{each} zstd -q -3 -T0 "$file" {packed}; done; sync {folder}/*'),
        cores,
    )


def _shell(script: str) -> tuple[str, ...]:
    return ("sh", "-ec", script)


def _order(arms: list[Arm], number: int) -> list[Arm]:
    """Neither side always first."""
    return arms if number % 2 == 0 else arms[::-1]


def _sample(arm: Arm, number: int, files: Sequence[Path], out: Path) -> Sample:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    for path in files:
        with path.open("rb", buffering=0) as stream:
            while stream.read(_READ):
                pass
    load = round(os.getloadavg()[0], 2)
    sample = Sample(number, arm.name, load, measure(arm.command, {"PYTHONPATH": os.pathsep.join(sys.path[1:])}))
    click.echo(f"round {number + 1}, {arm.name}: {sample.usage.wall:.2f} s at load {load}", err=True)
    shutil.rmtree(out)
    return sample


def _memory(path: Path, out: Path) -> Memory:
    """Measured in a process of its own."""
    command = (sys.executable, str(_HERE / "proof/worker.py"), str(out), "1", str(path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[1:])}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    peak: dict[str, Any] = json.loads(said.stdout)
    shutil.rmtree(out)
    return Memory(path.name, path.stat().st_size, **peak)


def _print(arms: Sequence[Arm], samples: Sequence[Sample], memory: Sequence[Memory], size: int) -> None:
    console = Console(highlight=False, width=120)
    table = Table("arm", "what", title=f"{size / _MEGA:.0f} MB, medians")
    for column in ("wall s", "processor s", "MB/s", "MB/s a core"):
        table.add_column(column, justify="right")
    for arm in arms:
        usages = [sample.usage for sample in samples if sample.arm == arm.name]
        wall, busy = median(u.wall for u in usages), median(u.user + u.system for u in usages)
        speed = size / _MEGA / wall
        table.add_row(arm.name, arm.what, f"{wall:.2f}", f"{busy:.2f}", f"{speed:.0f}", f"{speed / arm.cores:.0f}")
    console.print(table)
    table = Table("file", title="peak memory of a process, MB")
    for column in ("file's size", "its own", "with mapped pages"):
        table.add_column(column, justify="right")
    for one in sorted(memory, key=lambda one: -one.own)[:5]:
        table.add_row(one.file, *(f"{figure / _MEGA:.0f}" for figure in (one.size, one.own, one.all)))
    console.print(table)


if __name__ == "__main__":
    main()
