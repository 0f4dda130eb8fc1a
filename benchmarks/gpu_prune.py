"""Whether CUDA libraries pruned for one GPU give the same results bit for bit, and what that saves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
from host import describe
from pruned.arms import Arm, ChildError, end_all, run_child
from pruned.compare import Kind, judge
from pruned.copies import elf_files, make_copy, pruning
from rich.console import Console
from rich.table import Table

from slimgpu.errors import SlimgpuError
from slimgpu.parallel import default_jobs
from slimgpu.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pruned.compare import Outcome
    from pruned.copies import Library

SCHEMA = "slimgpu.benchmark.gpu-prune.v1"
WORKLOADS = (
    *("matmul", "low-precision", "epilogue", "structured", "convolution", "recurrent", "normalization", "layers"),
    *("attention", "fft", "sparse", "linear-algebra", "random", "elementwise", "reductions", "indexing", "curand"),
    *("vision", "collectives", "compiled", "graphs", "profile", "llama", "vllm"),
)
"""The names in ``pruned/workloads.py``, which only a process with torch can read."""

_WORKLOAD_SECONDS = 240
_MEASURE_SECONDS = 120
_JOBS = 6
"""Workloads that run at a time, at most: they share one GPU."""
_SPARE = 2_000_000_000
"""Bytes that stay free on the disk of the copy."""
_SHOWN = 25


class NothingToRunOnError(click.ClickException):
    """A GPU or a package that is not there."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured process."""

    round: int
    arm: str
    loading: str
    """``CUDA_MODULE_LOADING``."""
    cache: str
    """``cold``: the page cache was emptied of the arm's libraries; ``warm``: such a process ran before."""
    load: float
    """The machine's load average when it began."""
    seconds: dict[str, float]
    memory: dict[str, int]
    """Resident bytes after each step, and in the end by what they are; ``peak``."""
    gpu_used: dict[str, int]
    """Bytes in use on the whole GPU after each step."""
    read: int
    """Bytes that came from the disk."""
    mapped: int
    """Bytes of files of the arm's own that are mapped in the end, as is their number."""
    files: int
    digests: list[str]
    error: str = ""
    """Why there are no figures."""


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where the JSON goes.")
@click.option("--work", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where the copy goes.")
@click.option("--gpu", help="What to prune for; the present GPU when left out.")
@click.option("--only", multiple=True, type=click.Choice(WORKLOADS), help="Workloads to run; all when left out.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(0), help="Of measuring.")
@click.option("--cpu", is_flag=True, help="Run what a machine without a GPU can; needs --gpu.")
@click.option("--keep", is_flag=True, help="Leave the copy.")
def main(
    *,
    out: Path | None,
    work: Path | None,
    gpu: str | None,
    only: tuple[str, ...],
    rounds: int,
    cpu: bool,
    keep: bool,
) -> None:
    """Compare this interpreter's torch with a copy of it that is pruned for one GPU."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the copy goes
    if cpu and gpu is None:
        raise click.UsageError("--cpu prunes for a GPU that is not here: name it with --gpu, like --gpu sm_90")
    scratch = Path(tempfile.mkdtemp(prefix="slimgpu-gpu-prune-", dir=work)).resolve()
    try:
        bench = Bench(scratch, cpu=cpu, gpu=gpu)
        document = bench.run(only or WORKLOADS, rounds)
    except SlimgpuError as error:
        _say(f"Error: {error}")
        sys.exit(error.exit_code)
    finally:
        if keep:
            _say(f"the copy is in {scratch}")
        else:
            shutil.rmtree(scratch)
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n")
        _say(f"written to {out}")
    Report(document).print()
    sys.exit(0 if document["good"] else 1)


class Bench:
    """One comparison, working below one directory."""

    def __init__(self, work: Path, *, cpu: bool, gpu: str | None) -> None:
        self._work = work
        self._device = "cpu" if cpu else "cuda"
        self._environment = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
        self._host = self._probe()
        self._gpu = gpu or "sm_{}{}".format(*self._host["capability"])

    def run(self, names: Sequence[str], rounds: int) -> dict[str, Any]:
        """Prune, compare, measure; gives the result's document."""
        shrink = pruning(self._gpu)
        roots = {Path(root): self._work / f"packages-{number}" for number, root in enumerate(_outermost(self._host))}
        self._check_space(roots)
        started = time.perf_counter()
        libraries = list(self._pruned(roots, make_copy(roots, shrink, default_jobs())))
        seconds = time.perf_counter() - started
        arms = self._arms(roots)
        outcomes = self._compare(arms, names)
        verdicts = [verdict for name in names for verdict in judge(name, *(outcomes[name, arm] for arm in arms))]
        samples = list(self._measure(arms, libraries, rounds))
        loaded = {path for (_, arm), outcome in outcomes.items() if arm == "pruned" for path in outcome["mapped"]}
        same = len({tuple(sample.digests) for sample in samples}) <= 1 and not any(sample.error for sample in samples)
        kinds = {verdict.kind for verdict in verdicts}
        return {
            "schema": SCHEMA,
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": asdict(describe(self._work)),
            "torch": {key: self._host[key] for key in ("versions", "cuda", "cudnn")},
            "gpu": {"name": self._host["gpu"], "memory": self._host["memory"], "driver": _driver()},
            "device": self._device,
            "pruned_for": self._gpu,
            "pruning_seconds": round(seconds, 1),
            "good": Kind.IDENTICAL in kinds and all(kind.good for kind in kinds) and same,
            "measured_results_same": same,
            "libraries": [_described(library, roots, loaded) for library in libraries],
            "elsewhere": sorted(path for path in loaded if _is_stray(path, self._work)),
            "verdicts": [asdict(verdict) for verdict in verdicts],
            "outcomes": _told(outcomes),
            "samples": [asdict(sample) for sample in samples],
        }

    def _probe(self) -> dict[str, Any]:
        _say("asking the interpreter for its packages")
        with tempfile.TemporaryDirectory(dir=self._work) as scratch:
            try:
                host = run_child((), ("probe",), self._environment, _MEASURE_SECONDS, Path(scratch))
            except ChildError as error:
                raise click.ClickException(f"{sys.executable} could not be asked for its torch: {error}") from error
        if not host["torch"]:
            raise NothingToRunOnError(f"{sys.executable} has no torch; run this with an interpreter that has one")
        if self._device == "cuda" and not host["gpu"]:
            raise NothingToRunOnError("torch sees no GPU here; run this on a GPU host, or name --cpu and --gpu")
        return host

    def _check_space(self, roots: Iterable[Path]) -> None:
        needed = sum(path.stat().st_size for root in roots for path in elf_files(root)) + _SPARE
        free = shutil.disk_usage(self._work).free
        if free < needed:
            sizes = f"{format_size(free)} free of the {format_size(needed)} needed"
            raise click.ClickException(f"{self._work.parent} has {sizes}; name another --work")

    @staticmethod
    def _pruned(roots: Mapping[Path, Path], libraries: Iterable[Library]) -> Iterator[Library]:
        for root in roots:
            _say(f"pruning {root}")
        for library in libraries:
            if library.seconds > 1:
                sizes = f"{format_size(library.before)} to {format_size(library.after)}"
                _say(f"{Path(library.path).name}: {sizes} in {library.seconds:.1f} s")
            yield library

    def _arms(self, roots: Mapping[Path, Path]) -> dict[str, Arm]:
        """The original twice, so that what differs from itself is known, and the pruned."""
        originals, copies = tuple(roots), tuple(roots.values())
        path = tuple(self._host["path"])
        moved = tuple(str(_moved(Path(entry), roots)) for entry in path)
        places = {"original": (path, originals, copies), "again": (path, originals, copies)}
        places["pruned"] = (moved, copies, originals)
        return {name: Arm(name, *place, self._work, self._environment) for name, place in places.items()}

    def _compare(self, arms: Mapping[str, Arm], names: Iterable[str]) -> dict[tuple[str, str], Outcome]:
        outcomes: dict[tuple[str, str], Outcome] = {}
        with ThreadPoolExecutor(max(1, min(_JOBS, default_jobs() // 2))) as pool:
            tasks = {
                pool.submit(_outcome, arms[arm], name, self._device): (name, arm) for name in names for arm in arms
            }
            try:
                for task in as_completed(tasks):
                    name, arm = tasks[task]
                    outcomes[name, arm] = task.result()
                    said = f"{len(task.result()['cases'])} cases {task.result()['unavailable']}".strip()
                    _say(f"{len(outcomes)} of {len(tasks)}, {name}, {arm}: {said}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                end_all()
                raise
        return outcomes

    def _measure(self, arms: Mapping[str, Arm], libraries: Sequence[Library], rounds: int) -> Iterator[Sample]:
        loadings = ("LAZY", "EAGER") if self._device == "cuda" else ("LAZY",)
        modes = [("LAZY", "cold"), *((loading, "warm") for loading in loadings)]
        files = {"original": [Path(one.original) for one in libraries], "pruned": [Path(one.path) for one in libraries]}
        for number in range(rounds):
            order = ("original", "pruned") if number % 2 == 0 else ("pruned", "original")
            for (loading, cache), name in product(modes, order):
                if cache == "cold":
                    _forget(files[name])
                sample = _sample(arms[name], number, loading, cache, self._device)
                took = sample.error or f"{sum(sample.seconds.values()):.2f} s at load {sample.load:.1f}"
                _say(f"round {number + 1} of {rounds}, {loading}, {cache}, {name}: {took}")
                yield sample


def _outermost(host: Mapping[str, Any]) -> list[str]:
    roots = [Path(root) for root in host["roots"]]
    return [str(root) for root in roots if not any(root != other and root.is_relative_to(other) for other in roots)]


def _moved(entry: Path, roots: Mapping[Path, Path]) -> Path:
    """Where an entry of ``sys.path`` lies in the copy."""
    for root, copy in roots.items():
        if entry.is_relative_to(root):
            return copy / entry.relative_to(root)
    return entry


def _outcome(arm: Arm, name: str, device: str) -> Outcome:
    try:
        return arm.run(("workload", name, device), _WORKLOAD_SECONDS)
    except ChildError as error:
        return {"cases": {}, "unavailable": str(error), "mapped": [], "seconds": 0.0}


def _forget(files: Iterable[Path]) -> None:
    """Empty the page cache of the files, so that both arms' come there in the same way: as they are used.

    Without it the copy, just written in large pieces, would have larger parts of it mapped than the original has.
    """
    os.sync()
    for path in files:
        with path.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sample(arm: Arm, number: int, loading: str, cache: str, device: str) -> Sample:
    load = os.getloadavg()[0]
    try:
        said = arm.run(("measure", device), _MEASURE_SECONDS, {"CUDA_MODULE_LOADING": loading})
    except ChildError as error:
        return Sample(number, arm.name, loading, cache, round(load, 2), {}, {}, {}, 0, 0, 0, [], str(error))
    own = [size for path, size in said["mapped"].items() if any(Path(path).is_relative_to(root) for root in arm.own)]
    return Sample(
        round=number,
        arm=arm.name,
        loading=loading,
        cache=cache,
        load=round(load, 2),
        mapped=sum(own),
        files=len(own),
        **{key: said[key] for key in ("seconds", "memory", "gpu_used", "read", "digests")},
    )


def _described(library: Library, roots: Mapping[Path, Path], loaded: set[str]) -> dict[str, Any]:
    """A library as the document tells it: by its place below its directory.

    Loaded means mapped by a workload's own process: programs that it started, like ptxas, are not seen.
    """
    place = next(Path(library.path).relative_to(copy) for copy in roots.values() if library.path.startswith(f"{copy}/"))
    return asdict(library) | {"path": str(place), "loaded": library.path in loaded}


def _is_stray(path: str, work: Path) -> bool:
    """Whether it is NVIDIA's and from outside of the copy, as the driver is: pruned it was not."""
    return Path(path).name.startswith(("libcu", "libnv", "libnccl")) and not Path(path).is_relative_to(work)


def _told(outcomes: Mapping[tuple[str, str], Outcome]) -> list[dict[str, Any]]:
    """Every raw outcome, but of the other arms only the cases that are not what the original's are."""
    told = []
    for (name, arm), outcome in outcomes.items():
        usual = outcomes[name, "original"]["cases"] if arm != "original" else {}
        cases = {case: result for case, result in outcome["cases"].items() if usual.get(case) != result}
        parts = {key: outcome[key] for key in ("unavailable", "seconds")}
        told.append({"workload": name, "arm": arm, "ran": len(outcome["cases"])} | parts | {"cases": cases})
    return told


def _driver() -> str:
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.split("\n")[0].strip()


class Report:
    """The tables that a reader sees."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._console = Console(highlight=False, width=120)

    def print(self) -> None:
        """All of them, and one line that says how it ended."""
        self._libraries()
        self._totals()
        if self._document["samples"]:
            self._measurements()
        self._workloads()
        self._particular()
        kinds = Counter(verdict["kind"] for verdict in self._document["verdicts"])
        self._console.print(", ".join(f"{count} {kind}" for kind, count in kinds.items()))
        if Kind.IDENTICAL not in kinds:
            self._console.print("Nothing could be compared.")
        if not self._document["measured_results_same"]:
            self._console.print("The measured processes did not all calculate the same.")

    def _libraries(self) -> None:
        table = _table("library", "before", "after", "saved", "code", "symbols", title="the largest libraries")
        table.add_column("loaded")
        for library in sorted(self._document["libraries"], key=lambda one: -one["before"])[:_SHOWN]:
            table.add_row(library["path"], *_sizes([library]), "yes" if library["loaded"] else "no")
        self._console.print(table)
        stay = [one for one in self._document["libraries"] if one["untouched"]]
        for library in sorted(stay, key=lambda one: -one["before"])[:_SHOWN]:
            self._console.print(f"stays: {library['path']} ({format_size(library['before'])}): {library['untouched']}")

    def _totals(self) -> None:
        table = _table("libraries", "before", "after", "saved", "code", "symbols", title="together")
        groups = {"loaded": True, "never loaded": False}
        for name, loaded in groups.items():
            part = [one for one in self._document["libraries"] if one["loaded"] is loaded]
            table.add_row(f"{len(part)} {name}", *_sizes(part))
        table.add_row(f"{len(self._document['libraries'])} in all", *_sizes(self._document["libraries"]))
        self._console.print(table)

    def _measurements(self) -> None:
        table = _table("medians", "original", "pruned", "pruned / original", title="fresh processes")
        samples = self._document["samples"]
        for mode in dict.fromkeys((sample["loading"], sample["cache"]) for sample in samples):
            table.add_section()
            table.add_row(f"{mode[0]} loading, {mode[1]} page cache")
            chosen = [one for one in samples if _mode(one) == mode and not one["error"]]
            arms = [[_flat(one) for one in chosen if one["arm"] == arm] for arm in ("original", "pruned")]
            for name in arms[0][0] if all(arms) else ():
                pair = [median(one[name] for one in arm) for arm in arms]
                shown = [f"{value:.3f} s" if name.endswith("time") else format_size(int(value)) for value in pair]
                table.add_row(f"  {name}", *shown, f"{pair[1] / pair[0]:.2f}" if pair[0] else "")
        self._console.print(table)

    def _workloads(self) -> None:
        table = _table("workload", *(kind.value for kind in Kind), "outputs", "refused", title="cases")
        for name in dict.fromkeys(verdict["workload"] for verdict in self._document["verdicts"]):
            cases = [verdict for verdict in self._document["verdicts"] if verdict["workload"] == name]
            counts = [str(sum(case["kind"] == kind for case in cases) or "") for kind in Kind]
            sums = [str(sum(case[key] for case in cases) or "") for key in ("outputs", "refused")]
            table.add_row(name, *counts, *sums)
        self._console.print(table)

    def _particular(self) -> None:
        """What was skipped, each reason once, and every case that is not as it should be."""
        skipped: dict[tuple[str, str], list[str]] = {}
        for verdict in self._document["verdicts"]:
            if verdict["kind"] == Kind.SKIPPED:
                skipped.setdefault((verdict["workload"], verdict["detail"]), []).append(verdict["case"])
        for (workload, reason), cases in skipped.items():
            self._console.print(f"skipped: {workload}, {len(cases)} like {cases[0]}: {reason}", markup=False)
        for verdict in self._document["verdicts"]:
            if not Kind(verdict["kind"]).good:
                text = f"{verdict['kind']}: {verdict['workload']}, {verdict['case']}: {verdict['detail']}"
                self._console.print(text, markup=False)
        for sample in self._document["samples"]:
            if sample["error"]:
                text = f"failed: measuring, {sample['loading']}, {sample['cache']}, {sample['arm']}: {sample['error']}"
                self._console.print(text, markup=False)


def _table(first: str, *columns: str, title: str) -> Table:
    table = Table(first, title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _sizes(libraries: Sequence[Mapping[str, Any]]) -> list[str]:
    before, after, code, symbols = (
        sum(one[key] for one in libraries) for key in ("before", "after", "code", "symbols")
    )
    saved = f"{100 * (before - after) / before:.1f} %" if before else ""
    return [format_size(before), format_size(after), saved, format_size(code), format_size(symbols)]


def _mode(sample: Mapping[str, Any]) -> tuple[str, str]:
    return sample["loading"], sample["cache"]


def _flat(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's figures by what the table calls them."""
    groups = {"seconds": "{}, time", "memory": "host memory, {}", "gpu_used": "GPU memory, {}"}
    flat = {form.format(step): value for key, form in groups.items() for step, value in sample[key].items()}
    total = sum(sample["seconds"].values())
    return {"all steps, time": total} | flat | {"read from disk": sample["read"], "mapped": sample["mapped"]}


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
