"""A benchmark's result as a run on a GPU host would give it: five arms, ten rounds, noise from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slimgpu.bench.results import SCHEMA, Arm, BenchResult, Category, LinkFacts, Machine, Sample, Span
from slimgpu.bench.statistics import figures, floors, ratios
from slimgpu.events import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Jitter = Callable[[float], float]

RUNS = 10
GB = 10**9
_RATE = 2e9 / 8
"""Bytes a second of the link."""
_IN_FLIGHT = 3

LINK = LinkFacts(
    "tbf on a veth pair, latency by a relay", bandwidth=2e9, reached=1.91e9, latency=0.0005, connection=None
)
MACHINE = Machine(
    cpu="AMD EPYC 9354 32-Core Processor",
    cores=16,
    memory=135_000_000_000,
    kernel="6.1.0-25-amd64",
    disk="/dev/nvme0n1p2 ext4 rw,relatime",
    gpu="NVIDIA H100 80GB HBM3",
    driver="570.86.15",
    versions={"slimgpu": "0.5.0", "python": "3.11.2", "docker-registry": "2.8.2", "torch": "2.11.0", "vllm": "0.25.1"},
)


@dataclass(frozen=True)
class _Way:
    """One arm, and how its cold start goes."""

    arm: Arm
    inflate: float
    """Unpacked bytes a second."""
    importing: float
    beside: bool = False
    """Weights come while layers do."""


def _arm(name: str, what: str, stored: float, layers: int, sizes: Sequence[float], apart: tuple[str, float]) -> Arm:
    """Sizes in GB; ``apart``: where weights come from, and GB to fetch of them."""
    names = (
        "model weights", "CUDA libraries", "GPU code for other GPUs", "Python distributions", "debug sections",
        "toolchain", "apt packages", "caches", "headers", "other files",
    )  # fmt: skip
    categories = tuple(Category(n, int(s * GB), int(900 * s) + 1) for n, s in zip(names, sizes, strict=True) if s)
    unpacked = sum(category.bytes for category in categories)
    digest = f"sha256:{random.Random(name).randbytes(32).hex()}"  # noqa: S311
    image = f"docker://registry.test/serve:{name.replace(', ', '-').replace(' ', '-')}"
    return Arm(
        name, what, image, digest, int(stored * GB), unpacked, layers, apart[0], int(apart[1] * GB), categories
    )  # fmt: skip


_FAT = (2.471, 3.622, 3.254, 2.218, 0.684, 1.102, 0.311, 0.42, 0.262, 0.187)
_SLIM = (2.471, 2.944, 0, 1.968, 0, 0, 0.287, 0, 0, 0.166)
_BARE = (0, *_SLIM[1:])
_IN = ("image", 0.0)
_FILES = _arm("after, weights as files", "slimmed, safetensors beside it", 2.02, 19, _BARE, ("files", 2.471))
_APART = _arm("after, weights apart", "slimmed, weights as an artifact", 2.02, 19, _BARE, ("artifact", 1.64))

_WAYS = (
    _Way(_arm("before", "the image as it is, gzip layers", 7.42, 9, _FAT, _IN), 0.42 * GB, 11.5),
    _Way(_arm("before, zstd", "the same files in zstd layers", 6.31, 9, _FAT, _IN), 1.35 * GB, 11.4),
    _Way(_arm("after", "slimmed for the H100", 4.11, 21, _SLIM, _IN), 1.3 * GB, 8.2),
    _Way(_FILES, 1.3 * GB, 8.1, beside=True),
    _Way(_APART, 1.3 * GB, 8.1, beside=True),
)


def make_result(arms: int = len(_WAYS), runs: int = RUNS, nodes: int = 1, *, fails: bool = True) -> BenchResult:
    """The first ``arms`` ways; ``fails``: one cold start of the second one ends without an output."""
    noise = random.Random(7)  # noqa: S311 - the same noise each time
    samples = [
        _sample(way, number, node, noise) for number in range(runs) for way in _WAYS[:arms] for node in range(nodes)
    ]
    if fails and arms > 1:
        samples[1] = as_failed(samples[1], "The program ended with 137 before its first output; see its log.")
    link = LINK
    return BenchResult(
        SCHEMA,
        began="2026-03-02T09:14:07Z",
        command=("python3", "-m", "serve", "--prompt", "hello world"),
        engine="none",
        device="NVIDIA H100 80GB HBM3",
        begins="registry",
        runs=runs,
        nodes=nodes,
        node_caches=False,
        link=link,
        machine=MACHINE,
        arms=tuple(way.arm for way in _WAYS[:arms]),
        samples=tuple(samples),
        figures=figures(samples),
        ratios=ratios(samples, _WAYS[0].arm.name),
        floors=floors(samples, link, nodes),
        notes=("The link carried 1.91 Gbit/s of the 2 Gbit/s that were asked for.",),
    )


def with_samples(result: BenchResult, samples: Sequence[Sample]) -> BenchResult:
    """The same benchmark with other samples, and what they come to."""
    return replace(
        result,
        samples=tuple(samples),
        figures=figures(samples),
        ratios=ratios(samples, result.arms[0].name),
        floors=floors(samples, result.link, result.nodes),
    )


def as_failed(sample: Sample, why: str) -> Sample:
    return replace(sample, total=None, warm=None, answer=None, output="", failure=why, warm_spans=())


def scaled(sample: Sample, factor: float) -> Sample:
    """The same cold start, everything but the warm one ``factor`` times as long."""
    spans = tuple(replace(span, begin=span.begin * factor, end=span.end * factor) for span in sample.spans)
    return replace(sample, total=None if sample.total is None else sample.total * factor, spans=spans)


def _sample(way: _Way, number: int, node: int, noise: random.Random) -> Sample:
    pace = max(0.95, noise.gauss(1, 0.02)) * (1.13 if noise.random() < 0.1 else 1)  # of this cold start as a whole

    def jitter(seconds: float) -> float:
        return seconds * pace * max(0.9, noise.gauss(1, 0.025))

    arm = way.arm
    resolve = Span(Stage.RESOLVE, 0, jitter(0.08))
    layers = list(_layers(way, resolve.end, jitter))
    ready = max(span.end for span in layers)
    fetched = (
        [Span(Stage.FETCH, resolve.end, resolve.end + jitter(1.9 * arm.weights_stored / _RATE))] if way.beside else []
    )
    spans = [resolve, *layers, *fetched, *_program(way, ready, fetched[0].end if fetched else 0, jitter)]
    total = max(span.end for span in spans)
    warm = jitter(way.importing * 0.62 + 4.4)
    wire = int((arm.stored + arm.weights_stored) * 1.004)
    return Sample(
        arm.name, number, node, round(total, 6), round(warm, 6), round(jitter(0.21), 6), tuple(spans), (), wire, 0, 3,
        round(total * 1.7, 2), None, 0.3, " Hello! How can I help you today?",
    )  # fmt: skip


def _layers(way: _Way, begin: float, jitter: Jitter) -> Iterator[Span]:
    """Three layers come at the same time; each is unpacked as it comes, or later when unpacking is slower."""
    arm = way.arm
    weight = [1 + (number * 7 % 5) for number in range(arm.layers)]
    free, disk = [begin] * _IN_FLIGHT, begin
    share = arm.stored / (arm.stored + arm.weights_stored)
    for number, each in enumerate(weight):
        line = free.index(min(free))
        pulled = free[line] + jitter(_IN_FLIGHT * arm.stored * each / sum(weight) / _RATE / share)
        what = f"sha256:{random.Random(f'{arm.name}{number}').randbytes(32).hex()}"  # noqa: S311
        yield Span(Stage.PULL, free[line], pulled, what)
        start = max(disk, free[line] + 0.05)
        disk = max(pulled + 0.04, start + jitter(arm.unpacked * each / sum(weight) / way.inflate))
        yield Span(Stage.UNPACK, start, disk, what)
        free[line] = pulled


def _program(way: _Way, ready: float, fetched: float, jitter: Jitter) -> Iterator[Span]:
    start = ready + jitter(0.31)
    line = start + jitter(0.12)
    imported = line + jitter(way.importing)
    torch = line + (imported - line) * 0.45
    context = torch + jitter(2.9)
    bytes_in = max(context, fetched)
    loaded = bytes_in + jitter(0.4 if way.beside else 4.1)
    yield Span(Stage.START, ready, start)
    yield Span(Stage.INTERPRETER, start, line)
    yield Span(Stage.IMPORT, line, imported)
    yield Span(Stage.IMPORT, line + 0.02, torch, "torch")
    yield Span(Stage.IMPORT, torch, torch + (imported - torch) * 0.4, "transformers")
    yield Span(Stage.IMPORT, torch + (imported - torch) * 0.4, imported, "vllm")
    yield Span(Stage.CONTEXT, torch, context)
    yield Span(Stage.LOAD, context, loaded)
    last = max(imported, loaded)
    yield Span(Stage.OUTPUT, last, last + jitter(1.2))


HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}[/red]\x1b[2J\x1b]0;x\x07\u202e\udcff"
    + "W" * 300
)


def make_hostile() -> BenchResult:
    """A result in which everything that an image, a program or a machine may say is meant to do harm."""
    result = make_result(2)
    names = {arm.name: f"{number}{HOSTILE}" for number, arm in enumerate(result.arms)}
    arms = tuple(
        replace(
            arm, name=names[arm.name], what=HOSTILE, image=HOSTILE, digest=HOSTILE,
            categories=tuple(replace(category, name=f"{category.name}{HOSTILE}") for category in arm.categories),
        )
        for arm in result.arms
    )  # fmt: skip
    samples = [
        replace(
            sample, arm=names[sample.arm], output=HOSTILE, failure=sample.failure and HOSTILE,
            spans=tuple(replace(span, what=span.what and HOSTILE) for span in sample.spans),
        )
        for sample in result.samples
    ]  # fmt: skip
    machine = replace(result.machine, cpu=HOSTILE, disk=HOSTILE, gpu=HOSTILE, versions={HOSTILE: HOSTILE})
    told = replace(result, arms=arms, command=(HOSTILE,), notes=(HOSTILE,), machine=machine, engine=HOSTILE)
    return with_samples(told, samples)
