"""What compilers left behind at run time (Triton, Inductor, vLLM's compile cache) as an artifact, found by a key.

The key says for what the code was compiled: the image's digest, the GPU's architecture, the program's configuration,
and whatever versions its owner names beside these.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

from slimgpu.errors import NotFoundError
from slimgpu.oci.reference import DaemonReference, RegistryReference
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.digests import sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.oci.reference import Reference
    from slimgpu.store.context import Context
    from slimgpu.weights.artifact import Weights

_PREFIX: Final = "vnd.slimgpu.cache."
_TAG: Final = "cache-"
_DIGITS: Final = 12
_NO_TAG: Final = "latest"
"""What a registry's repository without a tag means."""


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What compiled code depends on."""

    image: str
    """Digest of the image whose programs compiled it."""
    gpu: str
    """Its architecture, as in ``sm_90``."""
    configuration: str
    """The program's own, in any form that is the same for the same behaviour."""
    versions: tuple[str, ...] = ()
    """Of anything else, such as ``driver=570.1``; their order doesn't matter."""

    @property
    def digest(self) -> str:
        """One value for all of it."""
        parts = {**asdict(self), "versions": sorted(self.versions)}
        return sha256(json.dumps(parts, sort_keys=True).encode())

    @property
    def tag(self) -> str:
        """The tag under which a cache lies when none is chosen."""
        return _TAG + self.digest.partition(":")[2][:_DIGITS]

    @property
    def annotations(self) -> dict[str, str]:
        """For the artifact's manifest."""
        found = {"key": self.digest, "image": self.image, "gpu": self.gpu, "configuration": self.configuration}
        if self.versions:
            found["versions"] = ",".join(sorted(self.versions))
        return {_PREFIX + name: value for name, value in found.items()}

    def __str__(self) -> str:
        more = f" and {', '.join(sorted(self.versions))}" if self.versions else ""
        return f"the image {self.image}, {self.gpu}, the configuration {self.configuration!r}{more}"

    def place(self, reference: Reference) -> Reference:
        """The reference itself, or with the key's tag when it names none (``latest`` is none)."""
        if isinstance(reference, DaemonReference) or reference.digest:
            return reference
        untagged = _NO_TAG if isinstance(reference, RegistryReference) else None
        return replace(reference, tag=self.tag) if reference.tag == untagged else reference


@contextmanager
def open_cache(reference: Reference, key: CacheKey, context: Context) -> Iterator[Weights]:
    """The cache for ``key`` at ``reference``; `NotFoundError` when there is none, or only one for another key."""
    place = key.place(reference)
    missing = (
        f"{_asked(reference, place)} has no cache for {key}; pack one with slimgpu weights pack --cache, or give the "
        "--image, --gpu, --configuration and --versions that it was packed with"
    )
    with ExitStack() as stack:
        try:
            cache = stack.enter_context(open_weights(place, context))
        except NotFoundError as error:
            raise NotFoundError(missing) from error
        if (cache.artifact.manifest.annotations or {}).get(f"{_PREFIX}key") != key.digest:
            raise NotFoundError(missing)
        yield cache


def _asked(reference: Reference, place: Reference) -> str:
    """The reference as it was written: a name without a tag gets ``latest`` when it is parsed."""
    if isinstance(reference, RegistryReference) and place != reference:
        return str(replace(reference, tag=None))
    return str(reference)
