"""What every longer operation works with."""

from __future__ import annotations

from dataclasses import dataclass, field

from slimgpu.parallel import default_jobs
from slimgpu.progress import SILENT, Progress
from slimgpu.store.cache import Cache


@dataclass(frozen=True, slots=True)
class Context:
    """The cache, the number of workers, and where progress goes."""

    cache: Cache = field(default_factory=Cache)
    jobs: int = field(default_factory=default_jobs)
    progress: Progress = SILENT
