"""Which tensors a program gets: by pattern, and by its rank among several."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from slimgpu.errors import NotFoundError, UsageError
from slimgpu.weights.order import stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slimgpu.weights.index import Index, TensorEntry


def select(
    index: Index, only: str | None, files: str | Sequence[str] | None, rank: int, world: int
) -> list[TensorEntry]:
    """Tensors in load order: names like ``only``, from files like any of ``files`` (as in the shell), of one stage.

    With ``world`` above 1 the model is split into that many pipeline stages, and ``rank`` chooses one. Raises
    `UsageError` when two files hold different tensors of one name, `NotFoundError` when nothing is left.
    """
    if not 0 <= rank < world:
        raise UsageError(f"rank {rank} is not one of {world}; ranks count from 0")
    patterns = ("*",) if files is None else (files,) if isinstance(files, str) else files
    wanted = {n for n, file in enumerate(index.files) if any(fnmatchcase(file.path, each) for each in patterns)}
    chosen = [tensor for tensor in index.tensors if tensor.file in wanted]
    chosen = _unique(chosen, index)
    if world > 1:
        stages = stage([tensor.name for tensor in chosen], world)
        chosen = [tensor for tensor in chosen if stages[tensor.name] == rank]
        if not chosen:
            raise UsageError(f"the model has too few layers for {world} stages; choose a smaller world")
    chosen = [tensor for tensor in chosen if only is None or fnmatchcase(tensor.name, only)]
    if not chosen:
        where = "" if files is None else f" in files like {', '.join(patterns)}"
        raise NotFoundError(f"no tensor is named like {only or '*'}{where}; slimgpu weights list shows all names")
    return chosen


def _unique(tensors: Sequence[TensorEntry], index: Index) -> list[TensorEntry]:
    """One tensor of each name; the same values in several files (``.safetensors`` and ``.bin``) are one tensor."""
    found: dict[str, TensorEntry] = {}
    for tensor in tensors:
        other = found.setdefault(tensor.name, tensor)
        if (other.dtype, other.shape, other.digest) != (tensor.dtype, tensor.shape, tensor.digest):
            raise UsageError(
                f"{tensor.name} is another tensor in {index.files[other.file].path} than in "
                f"{index.files[tensor.file].path}; choose one file with files="
            )
    return list(found.values())


def chunks_of(index: Index, tensors: Sequence[TensorEntry]) -> list[int]:
    """The chunks that hold ``tensors``, each once, in load order."""
    return sorted({part.chunk for tensor in tensors for part in index.parts(tensor)})
