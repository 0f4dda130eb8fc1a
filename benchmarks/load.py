"""How fast a model's tensors are loaded: slimgpu beside its peers, from the page cache, the disk and shaped links."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from host import describe
from loading.arms import NO_NETWORK_ARM, Arm, Bench, Scenario, in_memory, local, over
from loading.servers import REPOSITORY, Ports, ports, servers
from model import shape_of, write_model
from peers import NOT_INSTALLABLE, Tensorizer

from slimgpu.bench.link.link import link
from slimgpu.bench.link.values import MACHINE, Shape
from slimgpu.bench.pages import evict, resident, warm
from slimgpu.bench.registry import debian_registry
from slimgpu.oci.reference import parse_reference
from slimgpu.progress import SILENT
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from slimgpu.store.transport import open_artifact_sink
from slimgpu.units import format_size, parse_size
from slimgpu.weights.pack import pack
from slimgpu.weights.sources import collect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slimgpu.bench.link.values import Link

SCHEMA = "slimgpu.benchmark.load.v1"

_HERE = Path(__file__).resolve().parent
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where regions lie on Linux
_PAGE_REPORTING = Path("/sys/module/page_reporting")
"""There where a virtual machine may give free pages back to its host."""
_GIGA = 1e9
_MEGA = 1e6
_QUICK = {"size": "30MB", "runs": 2, "links": "1"}
_WARM = 0.99
_COLD = 0.01
_LIMIT = 600.0
"""Seconds for one sample."""
_TRANSPORT_TOOLS = ("curl", "docker-registry")
_LOCAL = ("memory", "page cache", "disk")
_VERSIONS = (
    "torch",
    "numpy",
    "safetensors",
    "runai-model-streamer",
    "fastsafetensors",
    "tensorizer",
    "instanttensor",
    "zstandard",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One arm in one round of one scenario."""

    scenario: str
    arm: str
    round: int
    load: float
    """The machine's load average when it began."""
    resident: float | None
    """The share of its files in the page cache when it began."""
    result: dict[str, Any]
    """See `loading.worker`."""


@dataclass(frozen=True, slots=True)
class Row:
    """An arm's figures in one scenario."""

    arm: str
    what: str
    p50: float
    p95: float
    most: float
    rate: float
    """Bytes of tensors a second at the median."""
    total: float
    """Median seconds from starting the process to having all tensors."""
    processor: float
    peak: float
    """Bytes of resident memory at the most, shared pages included."""
    shared: float
    """Bytes that shared memory grew by."""
    wire: float
    floor: float | None
    """The median over the time that the bytes on the wire need at the link's rate."""


@click.command()
@click.argument("model", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--size", help="Without MODEL, make one of about this size.  [default: 2GB]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--runs", type=click.IntRange(1), help="Rounds.  [default: 10]")
@click.option("--links", help="Gbit/s of the links, separated by commas; none for no links.  [default: 1,10,25]")
@click.option("--latency", default=0.0, show_default=True, help="One-way seconds of the links.")
@click.option("--scenarios", default=",".join(_LOCAL), show_default=True, help="What to run beside links; or none.")
@click.option("--arms", default="*", show_default=True, help="Patterns of arms as in the shell, separated by ; signs.")
@click.option("--quick", is_flag=True, help="Two rounds with a small model over one link, to see that all works.")
@click.option("--work", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The disk for big files.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The JSON file.")
def main(model: Path | None, device: str, out: Path | None, work: Path | None, **options: Any) -> None:
    """Load the safetensors files in MODEL in every way there is.

    Free space: three times the model's size on the disk, twice in shared memory.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that big files go
    defaults = _QUICK if options["quick"] else {"size": "2GB", "runs": 10, "links": "1,10,25"}
    chosen = {**options, **{key: value for key, value in defaults.items() if options[key] is None}}
    _check(device, chosen)
    with tempfile.TemporaryDirectory(prefix="slimgpu-load-", dir=work) as scratch, _memory() as memory:
        document = _Run(Path(scratch), memory, device, chosen).run(model)
    name = f"load-{device.partition(':')[0]}-{datetime.now(UTC):%Y-%m-%d}.json"
    path = out or _HERE / "results" / name
    path.write_text(json.dumps(document, indent=1) + "\n")
    click.echo(f"written to {path}", err=True)


def _check(device: str, options: dict[str, Any]) -> None:
    """One sentence for what would fail later."""
    unknown = set(_names(options["scenarios"])) - set(_LOCAL)
    if unknown:
        raise click.UsageError(f"there is no scenario {', '.join(sorted(unknown))}; there are {', '.join(_LOCAL)}")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise click.UsageError(f"{device} is no device; use cpu, cuda or cuda:N")
    if device != "cpu":
        _require([("torch", "torch")])
        import torch  # noqa: PLC0415

        if not torch.cuda.is_available():
            raise click.ClickException(f"--device {device} needs a GPU that torch can use, and there is none here")
    missing = [tool for tool in _TRANSPORT_TOOLS if shutil.which(tool) is None] if _names(options["links"]) else []
    if missing:
        raise click.ClickException(f"{', '.join(missing)} must be installed for --links (or use --links none)")


def _require(packages: Iterable[tuple[str, str]]) -> None:
    missing = sorted({package for module, package in packages if importlib.util.find_spec(module) is None})
    if missing:
        raise click.ClickException(
            f"packages are missing: pip install {' '.join(missing)} (or choose --arms that need none of them)"
        )


def _names(text: str) -> list[str]:
    return [] if text == "none" else [name.strip() for name in text.split(",") if name.strip()]


@contextmanager
def _memory() -> Iterator[Path]:
    """A folder in shared memory for regions and downloads."""
    with tempfile.TemporaryDirectory(prefix="slimgpu-load-", dir=_SHARED_MEMORY) as folder:
        yield Path(folder)


class _Run:
    """One run of the benchmark."""

    def __init__(self, scratch: Path, memory: Path, device: str, options: dict[str, Any]) -> None:
        self._scratch = scratch
        self._memory = memory
        self._device = device
        self._options = options
        self._samples: list[Sample] = []
        self._digests: dict[str, str] = {}
        """Of what each arm loaded first, by arm."""

    def run(self, model: Path | None) -> dict[str, Any]:
        """Prepare, measure, print; gives the document."""
        bench = self._prepare(model)
        tables = {}
        for scenario in self._local(bench):
            tables[scenario.name] = self._measure(scenario)
        for rate in map(float, _names(self._options["links"])):
            tables |= self._linked(bench, rate)
        return {
            "schema": SCHEMA,
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": self._device,
            "model": {"bytes": bench.size, "files": [path.name for path in bench.safetensors]},
            "artifact_bytes": sum(path.stat().st_size for path in bench.blobs),
            "options": self._options,
            "page_reporting": _PAGE_REPORTING.exists(),
            "machine": asdict(describe(self._scratch)),
            "versions": dict(_versions()),
            "missing": NOT_INSTALLABLE | {f"{name}, links": why for name, why in NO_NETWORK_ARM.items()},
            "digest": next(iter(self._digests.values()), None),
            "tables": {name: [asdict(row) for row in rows] for name, rows in tables.items()},
            "samples": [asdict(sample) for sample in self._samples],
        }

    # Preparation

    def _prepare(self, model: Path | None) -> Bench:
        """Every form of the model that an arm reads."""
        root = self._scratch / "files"
        root.mkdir()
        if model is None:
            write_model(root / "model", self._shape())
        else:
            (root / "model").symlink_to(model.resolve())
        size = sum(path.stat().st_size for path in (root / "model").glob("*.safetensors"))
        if not size:
            raise click.UsageError(f"{model} holds no *.safetensors files; name the directory of a model")
        bench = Bench(
            root / "model",
            root / "layout",
            root / "model.tensors",
            self._scratch / "registry",
            self._memory,
            self._device,
            size,
        )
        self._require(bench)
        stored = _pack(bench.model, f"oci:{bench.layout}:latest", self._scratch / "packing")
        _say(f"model of {format_size(size)}, packed to {format_size(stored)} ({stored / size:.4f})")
        if self._uses(bench, "tensorizer*"):
            Tensorizer().prepare(bench.model, root)
        else:
            bench.tensors.touch()
        if _names(self._options["links"]):
            at = ports().registry
            with debian_registry(MACHINE, at, bench.storage):
                _pack(bench.model, f"docker://127.0.0.1:{at}/{REPOSITORY}:latest", self._scratch / "packing")
        return bench

    def _shape(self) -> Any:
        try:
            return shape_of(parse_size(self._options["size"]))
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    def _require(self, bench: Bench) -> None:
        arms = [arm for scenario in self._local(bench) for arm in scenario.arms]
        if _names(self._options["links"]):
            arms += self._chosen(over(_NOWHERE, Ports(0, 0, 0), bench))
        if not arms:
            raise click.UsageError(f"no arm is named like {self._options['arms']}; --arms '*' shows all names")
        _require(package for arm in arms for package in arm.packages)

    def _uses(self, bench: Bench, pattern: str) -> bool:
        arms = [*local(bench), *over(_NOWHERE, Ports(0, 0, 0), bench)]
        return any(fnmatchcase(arm.name, pattern) for arm in self._chosen(arms))

    def _chosen(self, arms: Iterable[Arm]) -> tuple[Arm, ...]:
        patterns = [pattern.strip() for pattern in self._options["arms"].split(";")]
        return tuple(arm for arm in arms if any(fnmatchcase(arm.name, pattern) for pattern in patterns))

    def _local(self, bench: Bench) -> list[Scenario]:
        names = _names(self._options["scenarios"])
        found = []
        if "memory" in names:
            found.append(Scenario("prefetched", self._chosen(in_memory(bench))))
        if "page cache" in names:
            found.append(Scenario("page cache", self._chosen(local(bench))))
        if "disk" in names:
            found.append(Scenario("disk, cold", self._chosen(local(bench)), cold=True))
        return [scenario for scenario in found if scenario.arms]

    # Measuring

    def _linked(self, bench: Bench, rate: float) -> dict[str, list[Row]]:
        at = ports()
        shape = Shape(rate * _GIGA, (at.registry, at.shelf, at.files), self._options["latency"])
        with link(shape) as on, servers(on, at, bench.storage, bench.layout, bench.model.parent):
            arms = self._chosen(over(on, at, bench))
            scenario = Scenario(f"link of {rate:g} Gbit/s ({on.how})", arms, gigabits=rate)
            return {scenario.name: self._measure(scenario, on)}

    def _measure(self, scenario: Scenario, on: Link | None = None) -> list[Row]:
        """All rounds of a scenario; arms take turns, and every other round goes backwards."""
        for number in range(self._options["runs"]):
            for arm in scenario.arms if number % 2 == 0 else scenario.arms[::-1]:
                self._samples.append(self._sample(scenario, arm, number, on))
        found = [sample for sample in self._samples if sample.scenario == scenario.name]
        rows = [_row(arm, [one.result for one in found if one.arm == arm.name], scenario) for arm in scenario.arms]
        _print(scenario, rows, self._options["runs"])
        return rows

    def _sample(self, scenario: Scenario, arm: Arm, number: int, on: Link | None) -> Sample:
        regions = self._memory / ("kept" if arm.prefetched else "regions")
        cache = self._scratch / "cache"
        for folder in (cache, self._memory / "regions", self._memory / "download"):
            shutil.rmtree(folder, ignore_errors=True)
        environment = {
            "SLIMGPU_MEMORY_DIR": str(regions),
            "SLIMGPU_MEMORY_SIZE": "1T",
            "SLIMGPU_CACHE_DIR": str(cache),
            "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parent)]),
            **arm.environment,
        }
        if arm.prefetched:
            self._work(arm, "prefetch", environment, on)
        share = _cache_state(arm.reads, cold=scenario.cold)
        load = round(os.getloadavg()[0], 2)
        if on:
            on.reset()
        result = self._work(arm, arm.kind, environment, on)
        result["wire"] = on.counted().registry if on else 0
        self._compare(arm, result)
        _say(f"{scenario.name}, round {number + 1}, {arm.name}: {result['seconds']:.2f} s at load {load}")
        return Sample(scenario.name, arm.name, number, load, share, result)

    def _work(self, arm: Arm, kind: str, environment: dict[str, str], on: Link | None) -> dict[str, Any]:
        """Let a fresh process do it."""
        path = self._scratch / "result.json"
        path.unlink(missing_ok=True)
        has_torch = importlib.util.find_spec("torch") is not None
        task = {
            **arm.task,
            "kind": kind,
            "device": self._device,
            "torch": has_torch,
            "memory": str(self._memory),
            "result": str(path),
            "started": time.monotonic(),
        }
        command = [sys.executable, str(_HERE / "loading" / "worker.py"), json.dumps(task)]
        with tempfile.TemporaryFile() as errors:
            try:
                done = subprocess.run(
                    on.command(command, 0) if on else command,
                    stdout=errors,
                    stderr=errors,
                    env=os.environ | environment,
                    timeout=_LIMIT,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise click.ClickException(f"{arm.name} took more than {_LIMIT:.0f} s") from error
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
        if done.returncode or not path.exists():
            raise click.ClickException(f"{arm.name} failed: {said[-1] if said else 'it said nothing'}")
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def _compare(self, arm: Arm, result: dict[str, Any]) -> None:
        """Every arm has to have loaded the same."""
        if not result["digest"]:
            return
        self._digests.setdefault(arm.name, result["digest"])
        if len({*self._digests.values(), result["digest"]}) > 1:
            first = next(iter(self._digests))
            raise click.ClickException(f"{arm.name} loaded other tensors than {first}")


class _Nowhere:
    """Stands in for a link while only the names of arms are asked."""

    @staticmethod
    def address(port: int) -> tuple[str, int]:
        return "", port


_NOWHERE: Any = _Nowhere()


def _pack(model: Path, reference: str, cache: Path) -> int:
    """Pack as ``slimgpu weights pack`` does; gives the stored bytes."""
    context = Context(Cache(cache))
    with open_artifact_sink(parse_reference(reference), context.cache) as sink:
        sources, links = collect([model])
        packed = pack(sources, links, sink.workspace / "blobs", context)
        with SILENT.task("storing", None) as task:
            sink.write(packed.artifact, task)
    return packed.stored


def _cache_state(paths: Sequence[Path], *, cold: bool) -> float | None:
    """Bring files into the page cache or out of it; gives the share that is there then."""
    if not paths:
        return None
    (evict if cold else warm)(paths)
    share = round(resident(paths), 4)
    if share > _COLD if cold else share < _WARM:
        _say(f"only approximately so: {share:.1%} of {paths[0].parent} is in the page cache")
    return share


def _versions() -> Iterator[tuple[str, str]]:
    for package in _VERSIONS:
        with suppress(PackageNotFoundError):
            yield package, version(package)
    for tool in _TRANSPORT_TOOLS:
        if shutil.which(tool):
            said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
            yield tool, (said.stdout or said.stderr).splitlines()[0]


# Figures


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of all lies, between two samples in proportion."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def _row(arm: Arm, results: Sequence[dict[str, Any]], scenario: Scenario) -> Row:
    def middle(key: str) -> float:
        return percentile([result[key] for result in results], 0.5)

    seconds = [result["seconds"] for result in results]
    moved = middle("bytes") or arm.task.get("bytes") or sum(arm.task.get("download", {}).get("files", {}).values())
    on_link = scenario.gigabits * _GIGA / 8
    return Row(
        arm.name,
        arm.what,
        percentile(seconds, 0.5),
        percentile(seconds, 0.95),
        max(seconds),
        moved / percentile(seconds, 0.5),
        middle("total_seconds"),
        middle("processor_seconds"),
        middle("peak"),
        middle("shared_memory"),
        middle("wire") if on_link else 0,
        percentile([one["seconds"] * on_link / one["wire"] for one in results], 0.5) if on_link else None,
    )


def _print(scenario: Scenario, rows: Sequence[Row], runs: int) -> None:
    """A table in Markdown, fastest first."""
    titles = ["arm", "what", "p50 s", "p95 s", "max s", "GB/s", "with start s", "CPU s", "peak MB", "shared MB"]
    titles += ["wire MB", "x floor"] if scenario.gigabits else []
    click.echo(f"\n### {scenario.name}, {runs} runs\n\n| {' | '.join(titles)} |\n{'| --- ' * len(titles)}|")
    for row in sorted(rows, key=lambda row: row.p50):
        cells = [row.arm, row.what, *(f"{value:.3f}" for value in (row.p50, row.p95, row.most))]
        cells += [f"{row.rate / _GIGA:.2f}", f"{row.total:.2f}", f"{row.processor:.2f}"]
        cells += [f"{value / _MEGA:.0f}" for value in (row.peak, row.shared)]
        if row.floor is not None:
            cells += [f"{row.wire / _MEGA:.0f}", f"{row.floor:.2f}"]
        click.echo(f"| {' | '.join(cells)} |")


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
