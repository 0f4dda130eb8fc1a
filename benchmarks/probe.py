"""What the probe of ``slimgpu bench`` adds to a program: the same program with and without it, in turns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

import click
from host import describe

from slimgpu.bench.probe.read import FOLDER, probe_environment

SCHEMA = "slimgpu.benchmark.probe.v1"


@dataclass(frozen=True, slots=True)
class Taken:
    """Milliseconds of one program from its start to its end."""

    wall: float
    processor: float
    """Moves less on a busy machine."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The same program twice, one after the other."""

    python: str
    program: str
    round: int
    without: Taken
    probed: Taken


@click.command()
@click.option("--runs", default=30, show_default=True, type=click.IntRange(2))
@click.option("--python", "pythons", multiple=True, default=[sys.executable], help="An interpreter; may be repeated.")
@click.option("--import", "modules", multiple=True, default=["asyncio", "numpy"], show_default=True)
def main(runs: int, pythons: tuple[str, ...], modules: tuple[str, ...]) -> None:
    """Start programs that do nothing, and ones that import one module, and print a JSON document of how long it took.

    No byte code of the probe is kept, as in a container where it is mounted read-only.
    """
    programs = ["pass", *(f"import {module}" for module in modules)]
    with tempfile.TemporaryDirectory(prefix="slimgpu-probe-") as scratch:
        folder, file = Path(scratch, "inject"), Path(scratch, "told")
        shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        plain["PYTHONDONTWRITEBYTECODE"] = "1"
        probed = plain | probe_environment(str(folder), str(file), {})
        load = round(os.getloadavg()[0], 2)
        choices = [(python, program) for python in pythons for program in programs]
        pairs = {choice: [_pair(*choice, number, plain, probed) for number in range(-1, runs)] for choice in choices}
        document = {
            "schema": SCHEMA,
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": asdict(describe(Path(scratch))),
            "load": load,
            "unit": "ms",
            "figures": [_figure(taken[1:]) for taken in pairs.values()],
            "samples": [asdict(pair) for taken in pairs.values() for pair in taken[1:]],
        }
    json.dump(document, sys.stdout, indent=1)
    print()


def _pair(python: str, program: str, number: int, plain: dict[str, str], probed: dict[str, str]) -> Pair:
    """One of each, neither always first; round -1 fills the page cache."""
    taken = {}
    for probe in (False, True) if number % 2 else (True, False):
        taken[probe] = _taken([python, "-c", program], probed if probe else plain)
    return Pair(python, program, number, without=taken[False], probed=taken[True])


def _taken(command: list[str], environment: dict[str, str]) -> Taken:
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} failed; does that interpreter have the module?")
    return Taken(round(wall * 1000, 3), round((usage.ru_utime + usage.ru_stime) * 1000, 3))


def _figure(pairs: list[Pair]) -> dict[str, object]:
    """Medians of both, and of what the probe added within a round, with the quarters around it."""
    figure: dict[str, object] = {"python": pairs[0].python, "program": pairs[0].program, "count": len(pairs)}
    for kind in ("wall", "processor"):
        without, probed = ([getattr(getattr(pair, arm), kind) for pair in pairs] for arm in ("without", "probed"))
        low, added, high = quantiles((one - other for one, other in zip(probed, without, strict=True)), n=4)
        figure[kind] = {
            "without": round(median(without), 3),
            "probed": round(median(probed), 3),
            "added": round(added, 3),
            "added_quarters": [round(low, 3), round(high, 3)],
        }
    return figure


if __name__ == "__main__":
    main()
