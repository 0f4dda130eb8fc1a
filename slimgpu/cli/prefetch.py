"""``slimgpu prefetch``."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import click

from slimgpu.cli.options import context_of, goes_on, json_option, ref_argument
from slimgpu.coldstart.prefetch import drop, has_gpu, prefetched
from slimgpu.units import format_size

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from slimgpu.coldstart.prefetch import Dropped, Prefetched
    from slimgpu.oci.reference import Reference

_NAP: Final = 0.5
_ON_DISK: Final = "on disk, since shared memory has no room for it (SLIMGPU_MEMORY_DIR, SLIMGPU_MEMORY_SIZE)"


@click.command("prefetch")
@ref_argument
@click.option(
    "--keep/--no-keep",
    default=True,
    show_default=True,
    help="Whether it stays when this ends, or this stays until it is told to end.",
)
@click.option(
    "--planes",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Leave the last step of decoding to a GPU; auto does when this machine has one.",
)
@click.option("--drop", "drops", is_flag=True, help="Fetch nothing; give back what an earlier prefetch of REF kept.")
@click.option("--until-eof", is_flag=True, hidden=True, help="End when standard input does.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, reference: Reference, planes: str, *, keep: bool, drops: bool, until_eof: bool, as_json: bool
) -> None:
    """Fetch the weights REF into this machine's memory, and print where they are.

    Programs that load REF then find them there, or what is there so far: nothing is fetched twice. What has no
    room in memory lies on the cache's disk. With --no-keep the memory is given back when this ends, which is when it is
    told to (SIGTERM, Ctrl-C), unless an earlier prefetch kept it; --drop gives that back. What came from a registry
    stays in the disk cache as far as the disk kept up, and the next start goes on from there.
    """
    if drops:
        _drop(ctx, reference, as_json=as_json)
        return
    begun = threading.Event()
    try:
        if until_eof:
            threading.Thread(target=_end_with_input, args=(begun,), daemon=True).start()
        with goes_on("fetched"):
            _prefetch(ctx, reference, planes, begun, keep=keep, as_json=as_json)
    except KeyboardInterrupt:
        if not until_eof:
            raise


def _prefetch(
    ctx: click.Context, reference: Reference, planes: str, begun: threading.Event, *, keep: bool, as_json: bool
) -> None:
    merges_later = has_gpu() if planes == "auto" else planes == "always"
    with prefetched(reference, context_of(ctx), begun, keep=keep, planes=merges_later) as found:
        if as_json:
            _print_document(_result(found, reference))
        else:
            if not ctx.obj["quiet"]:
                click.echo(_summary(found), err=True)
            click.echo(str(found.folder))
            sys.stdout.flush()
        while not keep:
            time.sleep(_NAP)  # not signal.pause(): a signal just before it would be slept through


def _summary(found: Prefetched) -> str:
    rate = format_size(int(found.fetched / found.seconds))
    where = _ON_DISK if found.on_disk else "in memory"
    return (
        f"{format_size(found.bytes)} {where}, {format_size(found.fetched)} fetched in {found.seconds:.2f} s ({rate}/s)"
    )


def _result(found: Prefetched, reference: Reference) -> DataclassInstance:
    from slimgpu.weights.results import PREFETCH_SCHEMA, PrefetchResult  # noqa: PLC0415 - for those who ask for it

    return PrefetchResult(
        schema=PREFETCH_SCHEMA,
        reference=str(reference),
        index=found.index,
        folder=str(found.folder),
        on_disk=found.on_disk,
        bytes=found.bytes,
        fetched=found.fetched,
        seconds=round(found.seconds, 3),
    )


def _print_document(result: DataclassInstance) -> None:
    """All of it at once, for whoever reads along while we stay."""
    from slimgpu.report.document import to_json  # noqa: PLC0415 - for those who ask for it

    click.echo(to_json(result))
    sys.stdout.flush()


def _drop(ctx: click.Context, reference: Reference, *, as_json: bool) -> None:
    found = drop(reference, context_of(ctx))
    if as_json:
        from slimgpu.weights.results import DROP_SCHEMA, DropResult  # noqa: PLC0415 - for those who ask for it

        _print_document(DropResult(DROP_SCHEMA, str(reference), found.bytes, found.used))
    elif not ctx.obj["quiet"]:
        click.echo(_said(found, reference), err=True)


def _said(found: Dropped, reference: Reference) -> str:
    if found.used:
        return f"{format_size(found.bytes)} no longer kept, but in use; they go when the programs that use them end"
    return f"{format_size(found.bytes)} freed" if found.bytes else f"nothing of {reference} was kept"


def _end_with_input(begun: threading.Event) -> None:
    """Before it has ``begun`` there is nothing to tidy up, and a signal might be lost in some library's start."""
    os.read(0, 1)
    if not begun.is_set():
        os._exit(0)
    os.kill(os.getpid(), signal.SIGTERM)
