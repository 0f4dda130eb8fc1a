"""Measure what links of a set bandwidth and latency reach on this machine; links are `slimgpu.bench.link`'s."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from slimgpu.bench.link.link import free_ports, link
from slimgpu.bench.link.measure import measure as measure_link
from slimgpu.bench.link.proxied import proxied
from slimgpu.bench.link.values import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

_GIGA = 1e9


@click.group()
def main() -> None:
    """Links between a registry and its nodes."""


@main.command()
@click.option("--gigabits", multiple=True, type=float, default=(1, 10, 25), show_default=True, help="0 is no limit.")
@click.option("--latency", multiple=True, type=float, default=(0, 0.0005), show_default=True, help="Seconds, one way.")
@click.option("--connections", multiple=True, type=int, default=(1, 16), show_default=True)
@click.option("--connection-gigabits", type=float, help="Of each connection.")
@click.option("--proxies/--no-proxies", default=True, show_default=True, help="Whether to measure these, too.")
def measure(
    gigabits: Sequence[float],
    latency: Sequence[float],
    connections: Sequence[int],
    connection_gigabits: float | None,
    *,
    proxies: bool,
) -> None:
    """Print what each kind of link reaches here."""
    each = connection_gigabits and connection_gigabits * _GIGA
    for rate in gigabits:
        for seconds in latency:
            shape = Shape(rate * _GIGA or None, free_ports(1), seconds, each)
            for count in connections:
                for kind in (False, True) if proxies else (False,):
                    _try_out(shape, count, proxies=kind)


def _try_out(shape: Shape, connections: int, *, proxies: bool) -> None:
    """One line of figures for one link."""
    with proxied(shape, "it was asked for") if proxies else link(shape) as on:
        began, busy = perf_counter(), _busy()
        reached = measure_link(on, shape, connections)
        cores = (_busy() - busy) / (perf_counter() - began)
    share = f" ({reached.bandwidth / reached.expected:.1%})" if reached.expected else ""
    print(
        f"{on.how}: {(shape.bandwidth or 0) / _GIGA:g} Gbit/s, {shape.latency * 1e3:g} ms, {connections} connections: "
        f"{reached.bandwidth / _GIGA:.3f} Gbit/s{share}, answer after {reached.answer * 1e3:.2f} ms, "
        f"machine busy {cores:.1f} cores",
        flush=True,
    )


def _busy() -> float:
    """Seconds that all cores together have worked."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _, _, interrupt, soft = map(int, fields[1:8])
    return (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
