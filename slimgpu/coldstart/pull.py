"""An image from a registry as a root file system, without any engine.

All layers come over many connections at once, and are checked, inflated and written by processes while they arrive:
each to a directory of its own, which overlayfs then lays over each other. Where it can't be mounted, they are written
to one directory, one after another.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slimgpu.coldstart.flow import Flow, Incoming, slot_count
from slimgpu.coldstart.join import EMPTY, copy_root, join, new_root
from slimgpu.coldstart.memory import SharedMemory
from slimgpu.coldstart.unpacker import RANGE, Crew, Job, Unpacked, Unpacker
from slimgpu.errors import DestinationError, ImageError, SlimgpuError
from slimgpu.events import Event, Stage, stage
from slimgpu.oci.digest import digest_bytes
from slimgpu.rootfs.attributes import LeftOut
from slimgpu.store.mounts import MAX_LAYERS, can_overlay, overlaid
from slimgpu.store.transport import open_image_ranges
from slimgpu.store.workspace import workspace
from slimgpu.weights.slots import Slot

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.events import Events
    from slimgpu.oci.config import ImageConfig  # noqa: TC004 - pydantic: not before the registry is asked
    from slimgpu.oci.image import Image
    from slimgpu.oci.manifest import Platform
    from slimgpu.oci.reference import Reference
    from slimgpu.rootfs.extract import Extracted
    from slimgpu.store.context import Context

CONNECTIONS: Final = 16
"""Unless told otherwise: registries and what lies before them bound each one."""
_MOST_PROCESSES: Final = 16
_TICK: Final = 0.1
"""Seconds between looks whether fetching has failed, while no process says anything."""
_ROOT: Final = "root"


@dataclass(frozen=True, slots=True)
class PulledImage:
    """An image whose files are here."""

    root: Path
    """Where they are; what is written there is no other start's."""
    config: ImageConfig
    digest: str
    """Of the manifest."""
    stored: int
    """Bytes of the layers as they came."""
    unpacked: int
    """Bytes of their tars."""
    files: int
    """Entries of all layers that were written: files, directories and links."""
    left_out: LeftOut
    """What this process may not make or set."""
    overlay: bool
    """Whether the root is a mount of the layers' directories; else it is one directory."""


@contextmanager
def pulled(
    reference: Reference,
    folder: Path,
    context: Context,
    events: Events,
    *,
    platform: Platform,
    connections: int = CONNECTIONS,
) -> Iterator[PulledImage]:
    """The image that ``reference`` names below ``folder``, as long as the block lasts; what killed ones left goes, too.

    Raises what opening an image raises, `RegistryError`, `ImageError` and `DigestError` for layers that cannot be had
    or are not what they should be, and `DestinationError` when the folder cannot be written.
    """
    with _place(folder) as place, ExitStack() as stack:
        is_overlay = can_overlay(place)
        processes = min(max(2, context.jobs), _MOST_PROCESSES) if is_overlay else 1
        with _memory(processes, connections) as memory, Crew(processes, memory) as crew, ExitStack() as opened:
            with stage(events, Stage.RESOLVE, str(reference)):
                image, source = opened.enter_context(
                    open_image_ranges(reference, platform, context.cache, context.progress)
                )
            total = sum(layer.descriptor.size for layer in image.layers)
            task = opened.enter_context(context.progress.task("pulling", total))
            is_overlay &= len(image.layers) <= MAX_LAYERS
            flow = Flow([source], memory, processes, connections, task)
            opened.callback(flow.stop)
            flow.start()
            pull = _Pull(image, place, flow, crew, events)
            layers = pull.side_by_side() if is_overlay else pull.one_by_one()
        root = stack.enter_context(_mounted(place, len(image.layers))) if is_overlay else place / _ROOT
        yield PulledImage(
            root,
            image.config,
            digest_bytes(image.raw_manifest),
            total,
            sum(layer.length for layer in layers),
            sum(layer.extracted.entries for layer in layers),
            sum((layer.extracted.left_out for layer in layers), LeftOut()),
            overlay=is_overlay,
        )


@contextmanager
def _place(folder: Path) -> Iterator[Path]:
    """A directory for one pull; `DestinationError` for what goes wrong in it."""
    try:
        with workspace(folder, "pull") as place:
            yield place
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(folder):
            raise
        raise DestinationError(f"{folder} cannot be written ({error.strerror}); choose another folder") from error


@contextmanager
def _memory(processes: int, connections: int) -> Iterator[SharedMemory]:
    memory = SharedMemory(RANGE * slot_count(processes, connections))
    try:
        yield memory
    finally:
        memory.close()


@contextmanager
def _mounted(place: Path, layers: int) -> Iterator[Path]:
    lower = [*(str(number) for number in reversed(range(layers)))] or [EMPTY]
    upper = place / f"{_ROOT}.upper"
    upper.mkdir()
    copy_root(place / lower[0], upper)
    with overlaid(place, lower, _ROOT, writable=True) as root:
        yield root


class _Pull:
    """The layers of one image on their way to the disk."""

    def __init__(self, image: Image, place: Path, flow: Flow, crew: Crew, events: Events) -> None:
        self._image = image
        self._place = place
        self._flow = flow
        self._crew = crew
        self._events = events

    def side_by_side(self) -> list[Unpacked]:
        """Each layer to a directory of its own, the largest first, so that none of them is alone in the end."""
        for number in range(len(self._image.layers)):
            (self._place / str(number)).mkdir()
        order = sorted(range(len(self._image.layers)), key=lambda number: -self._image.layers[number].descriptor.size)
        found = self._run([(number, self._job(number, self._place / str(number), alone=True)) for number in order])
        layers = [found[number] for number in range(len(order))]

        def again(number: int, root: Path) -> Extracted:
            return self._run([(number, self._job(number, root, alone=False))])[number].extracted

        joined = join(self._place, [layer.extracted for layer in layers], again)
        return [Unpacked(extracted, layer.length) for extracted, layer in zip(joined, layers, strict=True)]

    def one_by_one(self) -> list[Unpacked]:
        """All layers to one directory, the lowest first."""
        root = self._place / _ROOT
        new_root(root)
        jobs = [(number, self._job(number, root, alone=False)) for number in range(len(self._image.layers))]
        found = self._run(jobs, most=1)
        return [found[number] for number, _ in jobs]

    def _job(self, number: int, folder: Path, *, alone: bool) -> Job:
        layer = self._image.layers[number]
        return Job(str(folder), alone, layer.descriptor.digest, layer.descriptor.size, layer.diff_id)

    def _run(self, jobs: Sequence[tuple[int, Job]], most: int | None = None) -> dict[int, Unpacked]:
        """Have the processes, ``most`` of them at once, take layers in their order, and wait for all of them."""
        queue = [(number, Incoming(job)) for number, job in jobs]
        for _, blob in queue:
            self._flow.add(blob)
        done: dict[int, Unpacked] = {}
        busy: dict[Connection, tuple[Unpacker, int, Incoming]] = {}
        while queue or busy:
            while queue and self._crew.idle and len(busy) < (most or len(jobs)):
                unpacker, (number, blob) = self._crew.idle.pop(0), queue.pop(0)
                self._flow.give(blob, unpacker)
                busy[unpacker.connection] = unpacker, number, blob
            self._flow.advance()
            ready = wait(list(busy), _TICK)
            for connection, (unpacker, number, blob) in [each for each in busy.items() if each[0] in ready]:
                said = unpacker.hear()
                if isinstance(said, Slot):
                    self._flow.free(blob, said)
                    continue
                del busy[connection]
                if isinstance(said, SlimgpuError):
                    queue.insert(0, (number, self._once_more(blob, unpacker, said)))
                else:
                    self._tell(blob)
                    done[number] = said
                    self._crew.idle.append(unpacker)
        return done

    def _once_more(self, blob: Incoming, unpacker: Unpacker, error: SlimgpuError) -> Incoming:
        """The blob anew, where it may have been damaged on its way; else raises the error."""
        if blob.once_more or not blob.job.alone or not isinstance(error, ImageError):
            raise error
        self._flow.give_up(blob)
        for slot in self._crew.replace(unpacker):
            self._flow.free(blob, slot)
        folder = Path(blob.job.folder)
        shutil.rmtree(folder)
        folder.mkdir()
        again = Incoming(blob.job, once_more=True)
        self._flow.add(again)
        return again

    def _tell(self, blob: Incoming) -> None:
        self._events.tell(Event(Stage.PULL, blob.began, blob.arrived, blob.job.digest))
        self._events.tell(Event(Stage.UNPACK, blob.read, time.monotonic(), blob.job.digest))
