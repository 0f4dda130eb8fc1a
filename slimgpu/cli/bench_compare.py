"""``slimgpu bench compare``."""

from __future__ import annotations

from pathlib import Path

import click

from slimgpu.cli.console import show, stdout
from slimgpu.cli.options import json_option
from slimgpu.report.document import to_json

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("compare")
@click.argument("before", metavar="A.json", type=_FILE)
@click.argument("after", metavar="B.json", type=_FILE)
@click.option("--all", "show_all", is_flag=True, help="Show every stage, also those that did not change.")
@json_option
def command(before: Path, after: Path, *, as_json: bool, show_all: bool) -> None:
    """Compare two results that `slimgpu bench --out` or --json wrote, arm by arm.

    What became slower beyond what chance explains is marked. Times of different machines are not comparable, and the
    comparison says so.
    """
    from slimgpu.bench.compare import compare, read_result  # noqa: PLC0415 - numpy: not for help
    from slimgpu.report.compare_tables import compare_tables  # noqa: PLC0415

    comparison = compare(read_result(before), read_result(after), (str(before), str(after)))
    if as_json:
        click.echo(to_json(comparison))
    else:
        show(stdout(), compare_tables(comparison, show_all=show_all))
