"""One cold start on one node, in a process of its own: fetch, unpack, start, wait for the first output, start again.

``python -m slimgpu.bench.node`` reads an `Order` from its standard input, says that it is ready, begins with the next
line, and prints a `Report`. It ends, and leaves nothing, when its standard input does.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter

from slimgpu.bench.order import Order, Report
from slimgpu.bench.output import Watch
from slimgpu.bench.pages import evict, resident, warm
from slimgpu.bench.probe.read import FOLDER, probe_environment, read_events
from slimgpu.bench.results import Span
from slimgpu.bench.stages import spans_of
from slimgpu.bench.weights import Handover, fetching
from slimgpu.coldstart.pull import PulledImage, pulled
from slimgpu.errors import SlimgpuError
from slimgpu.events import Recorder
from slimgpu.oci.manifest import Platform
from slimgpu.oci.reference import RegistryReference, parse_reference
from slimgpu.rootfs.command import Mount, command_of
from slimgpu.rootfs.driver import find_driver, with_driver
from slimgpu.rootfs.run import running
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slimgpu.bench.weights import Fetch
    from slimgpu.oci.config import ImageConfig
    from slimgpu.rootfs.command import Command

READY: Final = "ready"
ORDERS: Final = TypeAdapter(Order)
REPORTS: Final = TypeAdapter(Report)
_PROBE: Final = "/run/slimgpu-probe"
"""Where the container finds the probe."""
_TOLD: Final = "/run/slimgpu-told"
"""And where it leaves its events."""


@dataclass(frozen=True, slots=True)
class _Start:
    """What one start of the command came to."""

    seconds: float
    answer: float | None
    output: str
    spans: tuple[Span, ...]


class Node:
    """A node that has nothing yet."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._starts = 0

    def run(self) -> Report:
        """Do what was ordered; a failure is a part of the report."""
        before = _processor_seconds()
        try:
            with self._pulled() as (image, fetch, began, recorder):
                share = self._settle()
                first = self._start(image, fetch, began if share is None else time.monotonic(), recorder)
                second = self._start(image, fetch, time.monotonic(), Recorder())
        except (SlimgpuError, OSError) as error:
            return Report(None, None, None, (), (), _processor_seconds() - before, None, "", str(error))
        spent = _processor_seconds() - before
        return Report(
            first.seconds, second.seconds, first.answer, first.spans, second.spans, spent, share, first.output, ""
        )

    @contextmanager
    def _pulled(self) -> Iterator[tuple[PulledImage, Fetch | None, float, Recorder]]:
        """The image here, with its weights on their way."""
        order, recorder = self._order, Recorder()
        reference = parse_reference(order.image)
        assert isinstance(reference, RegistryReference)
        began = time.monotonic()
        with ExitStack() as stack:
            fetch = None
            if order.weights is not None:
                fetch = stack.enter_context(fetching(order.weights, order.folder, recorder))
            context = Context(Cache(order.folder / "cache"))
            platform = Platform.parse(order.platform)
            image = pulled(reference, order.folder / "image", context, recorder, platform=platform)
            yield stack.enter_context(image), fetch, began, recorder

    def _settle(self) -> float | None:
        """For a start from what is on this machine: the share of it that is in the page cache."""
        if self._order.begins == "registry":
            return None
        folders = [self._order.folder]
        (warm if self._order.begins == "memory" else evict)(folders)
        return resident(folders)

    def _start(self, image: PulledImage, fetch: Fetch | None, began: float, recorder: Recorder) -> _Start:
        given = fetch.handover() if fetch is not None else Handover()
        told = self._new_file()
        with running(image.root, self._command(image.config, given, told), recorder) as program:
            watch = Watch(program, self._order.wanted)
            output = watch.first()
            answer = watch.again()
        events = [*recorder.events, *read_events(told, began).events]
        spans = spans_of(events, began, output.moment)
        return _Start(output.moment - began, answer, output.text, spans)

    def _new_file(self) -> Path:
        """Where the probe of one start leaves its events; any user of the container may write there."""
        self._starts += 1
        file = self._order.folder / f"told-{self._starts}"
        file.touch()
        file.chmod(0o666)
        return file

    def _command(self, config: ImageConfig, given: Handover, told: Path) -> Command:
        order = self._order
        probe = probe_environment(_PROBE, _TOLD, {**config.environment, **order.environment})
        mounts = (Mount(FOLDER, _PROBE), Mount(told, _TOLD, writable=True), *given.mounts)
        command = command_of(
            config,
            entrypoint=order.command or None,
            environment={**given.environment, **order.environment, **probe},
            mounts=mounts,
            network=bool(order.weights and order.weights.attach),  # for the registry, which says what a name means
        )
        driver = find_driver()
        return command if driver is None else with_driver(command, driver)


def _processor_seconds() -> float:
    """Of this process and of all that ended below it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _end_with_input(over: threading.Event) -> None:
    """Whoever ordered is gone: end as after Ctrl-C, so that nothing is left."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not by way of `sys.stdin`, whose lock it would hold for ever
            pass
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Take an order, wait for the start, report."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    order = ORDERS.validate_json(sys.stdin.buffer.readline())
    over = threading.Event()
    _say(READY.encode())
    if not sys.stdin.buffer.readline():
        return
    with suppress(KeyboardInterrupt):
        try:
            order.folder.mkdir(parents=True)
            _end_with_input(over)
            report = Node(order).run()
        finally:
            shutil.rmtree(order.folder, ignore_errors=True)
        over.set()
        _say(REPORTS.dump_json(report))


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
