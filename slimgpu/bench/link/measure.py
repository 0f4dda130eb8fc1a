"""What a link reaches with nothing in the way but a server that only sends and a client that only receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.bench.link.helper import helper
from slimgpu.errors import MissingComponentError

if TYPE_CHECKING:
    from slimgpu.bench.link.values import Link, Shape

_SECONDS: Final = 2
_UNLIMITED: Final = 4 << 30
"""Bytes to take where nothing limits them."""
_TOLERATED: Final = 0.03


@dataclass(frozen=True, slots=True)
class Reached:
    """One trial."""

    expected: float | None
    """Bit/s of payload that the shape lets one node have over so many connections; None is no limit."""
    bandwidth: float
    """Bit/s of payload that it had."""
    answer: float
    """Median seconds from connecting to the first byte, on the idle link: two round trips and the server's own time."""

    @property
    def note(self) -> str | None:
        """A sentence for a report when the link is off its rate by more than 3 %."""
        if self.expected is None or abs(self.bandwidth / self.expected - 1) <= _TOLERATED:
            return None
        share = self.bandwidth / self.expected
        return (
            f"the link carried {self.bandwidth / 1e9:.3g} Gbit/s to one node with nothing else in the way, "
            f"{share:.0%} of what it is set to"
        )


def measure(on: Link, shape: Shape, connections: int = 1, length: int | None = None) -> Reached:
    """Take ``length`` bytes (by default what takes about two seconds) from the registry's side to node 0.

    Nothing may listen on the first of the shape's ports. Raises `MissingComponentError` when either end fails.
    """
    port = shape.ports[0]
    expected = expectation(shape, connections)
    each = (length or int((expected or 0) / 8 * _SECONDS) or _UNLIMITED) // connections
    host, at = on.address(port)
    with (
        helper("the trial's server", ["send", on.host(), str(port)], on.command([])),
        helper(
            "the trial's client", ["fetch", host, str(at), str(connections), str(each)], on.command([], 0)
        ) as client,
    ):
        said = client.said
    if said["bytes"] != each * connections:
        raise MissingComponentError(f"only {said['bytes']} of {each * connections} bytes came over the link")
    return Reached(expected, said["bytes"] * 8 / said["seconds"], said["answer"])


def expectation(shape: Shape, connections: int) -> float | None:
    """Bit/s that the shape lets one node have from the registry; None is no limit."""
    each = None if shape.connection is None else shape.connection * connections
    return min((rate for rate in (shape.bandwidth, shape.line, each) if rate is not None), default=None)
