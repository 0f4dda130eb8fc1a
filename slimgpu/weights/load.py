"""``load`` and ``stream``: tensors of a weights artifact, on whatever device."""

from __future__ import annotations

import atexit
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from slimgpu.weights.index import TensorEntry


def load(  # noqa: PLR0913 - each is one choice of the caller's
    ref: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    only: str | None = None,
    *,
    files: str | Sequence[str] | None = None,
    rank: int = 0,
    world: int = 1,
    index: str | None = None,
) -> dict[str, Any]:
    """All tensors of the artifact that ``ref`` names, by name; see `stream`."""
    return dict(stream(ref, device, dtype, only, files=files, rank=rank, world=world, index=index))


def stream(  # noqa: PLR0913 - as in load
    ref: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    only: str | None = None,
    *,
    files: str | Sequence[str] | None = None,
    rank: int = 0,
    world: int = 1,
    index: str | None = None,
) -> Iterator[tuple[str, Any]]:
    """Names and tensors in the order in which a model needs them, each as soon as it is there.

    ``ref`` is written as everywhere (``docker://host/repo:tag``, ``oci:dir:tag``, ``oci-archive:file``). ``device``
    is torch's; on the CPU tensors share memory with every process that loads the same artifact, and what is written
    to one is seen here alone. ``dtype`` converts floating-point tensors. ``only`` and ``files`` are patterns as in
    the shell, for names of tensors and paths of files (one pattern, or several). With ``world`` above 1 the model is
    split into pipeline stages, of which ``rank`` is one. Without torch installed, tensors come as memoryviews of
    their bytes.

    ``index`` is the digest of the artifact's index, as a pointer has it, where no other weights will do.

    What another process (``slimgpu prefetch``, ``slimgpu run``) has fetched or is fetching is not fetched again.
    Raises `slimgpu.errors.SlimgpuError`.
    """
    from slimgpu.oci.reference import parse_reference  # noqa: PLC0415 - what no one loads, no one waits for
    from slimgpu.store.context import Context  # noqa: PLC0415
    from slimgpu.weights.attach import attached  # noqa: PLC0415
    from slimgpu.weights.deliver import delivery_to  # noqa: PLC0415
    from slimgpu.weights.select import chunks_of, select  # noqa: PLC0415

    with _closed_at_exit() as stack:
        chosen: list[TensorEntry] = []

        def choose(found: Any) -> list[int]:
            chosen.extend(select(found, only, files, rank, world))
            return chunks_of(found, chosen)

        filling = stack.enter_context(attached(parse_reference(ref), Context(), choose, keep=False, pinned=index))
        delivery = delivery_to(device, dtype, filling.region)
        stack.enter_context(filling.running(planes=delivery.merges))
        for tensor in chosen:
            filling.wait([part.chunk for part in filling.region.index.parts(tensor)])
            yield tensor.name, delivery.deliver(tensor)


@contextmanager
def _closed_at_exit() -> Iterator[ExitStack]:
    """A stack that doesn't outlive the program, whose end a generator that is never gone on with may not see.

    When Python clears its modules it is too late: the threads that would have to end are dead by then.
    """
    stack, owner = ExitStack(), os.getpid()

    def close() -> None:
        if os.getpid() == owner:  # a fork has none of our threads, and its parent lives on
            stack.close()

    atexit.register(close)
    try:
        with stack:
            yield stack
    finally:
        atexit.unregister(close)
