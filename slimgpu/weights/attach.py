"""Attaching to an artifact's region: fill it, or wait for the process that does, and go on where one died."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

from slimgpu.errors import SlimgpuError, UsageError
from slimgpu.oci.reference import RegistryReference, is_host
from slimgpu.weights import region as regions
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.manifests import FOLDER, ManifestKeeper
from slimgpu.weights.tiers import claim_folder, disk_tier, remove_unused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from slimgpu.oci.image import Artifact
    from slimgpu.oci.reference import Reference
    from slimgpu.store.context import Context
    from slimgpu.store.ranges import RangeSource
    from slimgpu.weights.crew import Crew
    from slimgpu.weights.index import Index
    from slimgpu.weights.keep import BlobKeeper
    from slimgpu.weights.region import Region

_PEERS: Final = "SLIMGPU_PEERS"
"""Hosts that have the artifact, too (`slimgpu weights serve`), separated by commas."""
_POLL: Final = 0.001
"""Seconds between looks at what another process brings."""
_TAKE_OVER: Final = 0.1
"""Seconds between looks whether that process still lives."""


_STALLED: Final = 120.0
"""Seconds in which that process brings nothing, after which it is taken to be stuck."""
_MANY: Final = 256 * 1024 * 1024
"""Bytes for which it is worth to start processes."""


class Filling:
    """A region on its way to being complete; `wait` returns as soon as what is asked for is there."""

    def __init__(
        self,
        region: Region,
        sources: Sequence[RangeSource],
        wanted: Sequence[int],
        keeper: BlobKeeper | None,
        context: Context,
    ) -> None:
        """``keeper`` keeps what comes over a network."""
        self.region = region
        self.wanted = wanted
        self._sources = sources
        self._keeper = keeper
        self._context = context
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._delivered = threading.Event()
        """The region is complete, or no longer filled by us."""
        self._over = threading.Event()
        """And the disk has what it is to keep."""

    @contextmanager
    def running(self, *, planes: bool) -> Iterator[None]:
        """Fill the region in a thread as long as the block lasts; ``planes`` as `Fetcher` takes it."""
        thread = threading.Thread(target=self._run, args=(planes,), daemon=True, name="fill")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            if thread.is_alive():  # which it isn't in a fork of the process
                self._delivered.wait()  # not for the disk, which goes on as long as the process does

    def _run(self, planes: bool) -> None:  # noqa: FBT001 - a thread's arguments are positional
        try:
            watch = _Watch(self.region)
            while not self._stop.is_set() and not all(map(self.region.has, self.wanted)):
                with regions.filling(self.region.folder) as ours:
                    if ours:
                        self._fill(planes=planes)
                if not ours:
                    watch.look()
                    self._stop.wait(_TAKE_OVER)
        except BaseException as error:  # noqa: BLE001 - raised to whoever waits
            self._error = error
        finally:
            self._delivered.set()
            self._over.set()

    def _fill(self, *, planes: bool) -> None:
        from slimgpu.weights.fetch import Fetcher  # noqa: PLC0415 - numpy: not before the first answer

        index, keeper = self.region.index, self._keeper
        missing = [number for number in self.wanted if not self.region.has(number)]
        total = sum(index.chunks[number].stored for number in missing)
        with self._context.progress.task("fetching weights", total) as task, self._crew(total) as crew:
            fetcher = Fetcher(
                index,
                self._sources,
                self.region,
                keeper=keeper,
                planes=planes,
                jobs=self._context.jobs,
                crew=crew,
                stop=self._stop,
            )
            fetcher.run(missing, task, self._delivered)
        if keeper is not None:
            keeper.make_room()

    def _crew(self, size: int) -> AbstractContextManager[Crew | None]:
        """Processes to unpack so many bytes, unless those are there before the processes."""
        from slimgpu.weights.crew import Crew  # noqa: PLC0415 - as above
        from slimgpu.weights.schedule import RANGE  # noqa: PLC0415
        from slimgpu.weights.slots import SLOTS  # noqa: PLC0415

        return Crew(self.region, self._context.jobs, SLOTS, RANGE) if size >= _MANY else nullcontext()

    def wait(self, chunks: Sequence[int]) -> None:
        """Return when all of ``chunks`` are there; raises the error that ended the filling."""
        for number in chunks:
            while not self.region.has(number):
                if self._error is not None:
                    raise self._error
                time.sleep(_POLL)

    def finish(self) -> None:
        """Return when everything is there, and kept as far as it is to be kept; raises as `wait` does."""
        self.wait(self.wanted)
        self._over.wait()


class _Watch:
    """Whether the process that fills a region gets anywhere."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._seen = b""
        self._since = 0.0

    def look(self) -> None:
        """Raise `SlimgpuError` when nothing has come for long."""
        there, now = bytes(self._region.state), time.monotonic()
        if there != self._seen:
            self._seen, self._since = there, now
        elif now - self._since > _STALLED:
            raise SlimgpuError(
                f"process {regions.filler(self._region.folder)} fetches these weights, but has brought nothing for "
                f"{_STALLED:.0f} s; end it, and start this again"
            )


@contextmanager
def attached(
    reference: Reference,
    context: Context,
    choose: Callable[[Index], Sequence[int]],
    *,
    keep: bool,
    pinned: str | None = None,
) -> Iterator[Filling]:
    """The region of the weights that ``reference`` names, to be filled with the chunks that ``choose`` names.

    ``keep`` leaves it for other processes when the block ends; else it goes, unless one of them kept it or uses it.
    ``pinned`` is the digest of the only index that will do. Raises what `open_weights` raises.
    """
    with ExitStack() as stack:
        weights = stack.enter_context(open_weights(reference, context, pinned, local=True))
        artifact, index = weights.artifact, weights.index
        wanted = choose(index)
        config = artifact.manifest.config
        folder = claim_folder(context.cache, config.digest, _bytes(index, wanted))
        if not keep:
            stack.callback(_release, folder)
        region = stack.enter_context(regions.opened(folder, config.media_type, artifact.raw_config, index))
        if keep:
            regions.mark_kept(folder)
        keeper = (
            _disk_tier(weights.reference, artifact, context)
            if isinstance(weights.reference, RegistryReference)
            else None
        )
        yield Filling(region, [weights.source, *_peers(weights.reference, stack)], wanted, keeper, context)


def _bytes(index: Index, chunks: Sequence[int]) -> int:
    """What the chunks take in memory, each at all of its places."""
    return sum(index.chunks[number].size * len(index.places[number]) for number in chunks)


def _disk_tier(reference: RegistryReference, artifact: Artifact, context: Context) -> BlobKeeper | None:
    """The disk tier, which now has the artifact's documents, for neighbours to ask for; None on a read-only disk."""
    try:
        keeper = disk_tier(context.cache)
    except OSError:
        return None
    keeper.keep(artifact.manifest.config.digest, 0, memoryview(artifact.raw_config))
    ManifestKeeper(context.cache.root / FOLDER).keep(reference, artifact.raw_manifest)
    return keeper


def _release(folder: Path) -> None:
    if not regions.is_kept(folder):
        remove_unused(folder)


def _peers(reference: Reference, stack: ExitStack) -> list[RangeSource]:
    """Neighbours that may have parts of a registry's artifact."""
    names = [name.strip() for name in os.environ.get(_PEERS, "").split(",") if name.strip()]
    if not names or not isinstance(reference, RegistryReference):
        return []
    from slimgpu.store.peer import Peer  # noqa: PLC0415 - for those who have any

    wrong = next((name for name in names if not is_host(name)), None)
    if wrong is not None:
        raise UsageError(f"{_PEERS} names {wrong!r}, which is no host; write host:port, separated by commas")
    return [stack.enter_context(Peer(name, reference.repository).opened()) for name in names]
