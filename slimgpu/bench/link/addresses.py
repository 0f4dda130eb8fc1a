"""Addresses on a link. All are of 127.0.0.0/8, as clients speak plain HTTP there unasked, Docker's engine too."""

from __future__ import annotations

from typing import Final

LOCAL: Final = "127.0.0.1"
"""Each namespace has its own."""
LOCAL_NETWORK: Final = "127.0.0.0/16"
REGISTRY: Final = "127.1.0.1"
NETWORK_BITS: Final = 16


def node_address(node: int) -> str:
    """Where a node, from 0, is found."""
    return f"127.1.1.{node + 1}"
