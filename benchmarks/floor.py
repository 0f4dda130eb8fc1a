"""How far slimgpu is from the public tools that do the least of what it does, on the same bytes in the same run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
from arms import Bench, Layout
from host import TOOLS, describe
from rich.console import Console
from rich.table import Table
from timing import Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from arms import Arm

SCHEMA = "slimgpu.benchmark.floor.v1"
_RESULTS = Path(__file__).resolve().parent / "results"
_SPACE = 7
"""Free disk that a run needs, as a multiple of the image's stored bytes."""

_ORDERS = (
    ("analyze cold", "copy", "inflate", "inflate -P", "analyze warm", "build cold", "zstd", "build warm", "help"),
    ("copy", "inflate", "analyze cold", "inflate -P", "analyze warm", "zstd", "build cold", "build warm", "help"),
)
"""The arms of even and of odd rounds: what is compared runs close together, and neither side always first."""

_COMPARISONS = (
    ("analyze cold", ("copy", "inflate")),
    ("analyze cold", ("copy", "inflate -P")),
    ("analyze cold", ("inflate -P",)),
    ("build cold", ("inflate", "zstd")),
    ("build cold", ("inflate -P", "zstd")),
    ("build warm", ("zstd",)),
)
"""What of ours is held against the sum of which steps."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Our wall time over the floor's, round by round."""

    ours: str
    floor: tuple[str, ...]
    seconds: float
    """Medians, as is the next."""
    floor_seconds: float
    least: float
    median: float
    most: float


@click.command()
@click.argument("layout", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", help="Of the result in benchmarks/results; the layout's own when left out.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--work", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where big files go.")
def main(layout: Path, name: str | None, runs: int, work: Path | None) -> None:
    """Compare slimgpu with skopeo, pigz and zstd on the image in LAYOUT."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that big files go
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise click.ClickException(f"{', '.join(missing)} must be installed")
    image = Layout(layout.resolve())
    place = work or _same_disk(image.root)
    _check_space(place, image.stored)
    with tempfile.TemporaryDirectory(prefix="slimgpu-floor-", dir=place) as scratch:
        bench = Bench(image, Path(scratch))
        _say("building once, for the bytes that a build keeps")
        kept = bench.prepare()
        arms = bench.ours() | bench.floor()
        samples = list(_sample(arms, runs))
        machine = describe(Path(scratch))
    ratios = list(_ratios(samples))
    document = {
        "schema": SCHEMA,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "image": {"name": layout.name, "layers": len(image.layers), "stored": image.stored, "kept": kept},
        "page_cache": "warm: each arm's input is read once before it starts, and earlier writes are synced",
        "machine": asdict(machine),
        "samples": [asdict(sample) for sample in samples],
        "ratios": [asdict(ratio) for ratio in ratios],
    }
    result = _RESULTS / f"{name or layout.name}.json"
    _write(result, document)
    _print(samples, ratios, arms)
    _say(f"written to {result}")


def _same_disk(image: Path) -> Path:
    usual = Path(tempfile.gettempdir())
    return usual if usual.stat().st_dev == image.stat().st_dev else image.parent


def _check_space(place: Path, stored: int) -> None:
    free = shutil.disk_usage(place).free
    if free < _SPACE * stored:
        needed = f"{_SPACE * stored / 1e9:.1f}"
        raise click.ClickException(f"{place} has {free / 1e9:.1f} GB free of the {needed} needed; name another --work")


def _sample(arms: Mapping[str, Arm], runs: int) -> Iterator[Sample]:
    for number in range(runs):
        for name in _ORDERS[number % len(_ORDERS)]:
            load = os.getloadavg()[0]
            sample = Sample(number, name, round(load, 2), arms[name].run())
            _say(f"round {number + 1} of {runs}, {name}: {sample.usage.wall:.2f} s at load {load:.1f}")
            yield sample


def _ratios(samples: Sequence[Sample]) -> Iterator[Ratio]:
    walls: dict[str, list[float]] = {}
    for sample in samples:
        walls.setdefault(sample.arm, []).append(sample.usage.wall)
    for ours, steps in _COMPARISONS:
        floors = [sum(parts) for parts in zip(*(walls[step] for step in steps), strict=True)]
        ratios = [mine / floor for mine, floor in zip(walls[ours], floors, strict=True)]
        figures = (median(walls[ours]), median(floors), min(ratios), median(ratios), max(ratios))
        yield Ratio(ours, steps, *(round(figure, 3) for figure in figures))


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def _print(samples: Sequence[Sample], ratios: Sequence[Ratio], arms: Mapping[str, Arm]) -> None:
    console = Console(highlight=False, width=120)
    table = Table("arm", "command", title="medians")
    for column in ("wall s", "user s", "system s", "largest MB", "together MB"):
        table.add_column(column, justify="right")
    for name, arm in arms.items():
        usages = [sample.usage for sample in samples if sample.arm == name]
        seconds = [median(getattr(u, field) for u in usages) for field in ("wall", "user", "system")]
        memory = [max(getattr(u, field) for u in usages) / 1e6 for field in ("largest", "together")]
        table.add_row(name, arm.what, *(f"{s:.2f}" for s in seconds), *(f"{m:.0f}" for m in memory))
    console.print(table)
    table = Table("ours", "floor", title="wall time, ours over the floor's")
    for column in ("ours s", "floor s", "min", "median", "max"):
        table.add_column(column, justify="right")
    for ratio in ratios:
        figures = (ratio.seconds, ratio.floor_seconds, ratio.least, ratio.median, ratio.most)
        table.add_row(ratio.ours, " + ".join(ratio.floor), *(f"{figure:.2f}" for figure in figures))
    console.print(table)


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
