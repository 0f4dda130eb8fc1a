"""``slimgpu bench``, and ``slimgpu bench compare``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from slimgpu.cli.bench_compare import command as compare
from slimgpu.cli.code_options import GpuType
from slimgpu.cli.console import show, stdout
from slimgpu.cli.options import ArtifactType, ReferenceType, context_of, jobs_option, json_option, platform_option
from slimgpu.report.document import to_json
from slimgpu.store.files import atomic_file
from slimgpu.units import parse_bits, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from slimgpu.bench.bench import Control
    from slimgpu.bench.prepare import Wish
    from slimgpu.bench.results import BenchResult
    from slimgpu.bench.rounds import Conditions
    from slimgpu.oci.reference import Reference

_COMMAND: Final = "slimgpu.cli.bench.command"
_UNLIMITED: Final = "none"


class _Measured(click.ParamType[float]):
    """A number with a unit."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse it; what is wrong with it is a usage error."""
        if not isinstance(value, str):
            return float(value)
        try:
            return math.inf if value == _UNLIMITED else self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_RATE: Final = _Measured("rate", parse_bits)
_SECONDS: Final = _Measured("time", parse_duration)


class _BenchCommand(click.Command):
    """Takes what follows ``--`` as the command, and hands ``compare`` on to a command of its own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """See `click.Command.make_context`."""
        if args[:1] == ["compare"]:
            return compare.make_context(f"{info_name} compare", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command.parse_args`."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[_COMMAND] = tuple(args[at + 1 :])
        return super().parse_args(ctx, args[:at])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """See `click.Command.collect_usage_pieces`."""
        return [*super().collect_usage_pieces(ctx), "[-- CMD...]"]


@click.command("bench", cls=_BenchCommand)
@click.argument("before", type=ReferenceType())
@click.argument("after", type=ReferenceType(), required=False)
@click.option(
    "--weights", type=ArtifactType(), help="The artifact of AFTER's weights; the one it points to by default."
)
@click.option("--gpu", "gpus", multiple=True, type=GpuType(), help="Without AFTER, what GPU it is built for.")
@click.option("--arms", metavar="NAMES", help="Only these arms: patterns separated by ; signs, like 'before;after*'.")
@click.option("--runs", type=click.IntRange(1), default=10, show_default=True, help="Rounds of all arms.")
@click.option(
    "--bandwidth", type=_RATE, default="10Gbit", show_default=True, help="Of the registry, for all nodes; or none."
)
@click.option("--latency", type=_SECONDS, default="0ms", show_default=True, help="One way, between node and registry.")
@click.option("--connection-bandwidth", type=_RATE, help="Of a single connection to the registry.")
@click.option("--nodes", type=click.IntRange(1, 64), default=1, show_default=True, help="That start at the same time.")
@click.option("--node-bandwidth", type=_RATE, help="Of each node's own line, or none.  [default: the registry's]")
@click.option(
    "--from",
    "begins",
    type=click.Choice(["registry", "disk", "memory"]),
    default="registry",
    show_default=True,
    help="What is on the node: nothing; the unpacked image, with a cold page cache; or with a warm one.",
)
@click.option("--expect", default="", metavar="REGEX", help="What the first output holds; only that part is compared.")
@click.option("--url", default="", help="Ask a server in the image, instead of waiting for a line that it prints.")
@click.option("--data", default="", help="With --url, what to POST as JSON.")
@click.option("--timeout", type=_SECONDS, default="10min", show_default=True, help="Until the first output.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable of the command; may be repeated.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the JSON document here.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with timelines here.")
@platform_option
@jobs_option
@json_option
@click.pass_context
def command(ctx: click.Context, /, before: Reference, after: Reference | None, **options: Any) -> None:
    """Measure cold starts of BEFORE and AFTER, stage by stage.

    Each cold start begins with nothing on the node and ends with the first line that CMD prints (by default the
    image's own command), or the first answer of its server. All outputs have to be the same. Without AFTER it is
    built from BEFORE. Images are served by a registry on this machine over a link of the set bandwidth.

    No engine is needed: slimgpu pulls, unpacks and starts by itself. The images' programs are run, without a network
    (but for the registry's, where they load weights through slimgpu).

    `slimgpu bench compare A.json B.json` compares two results.
    """
    from slimgpu.bench.bench import bench  # noqa: PLC0415 - not for help

    environment = _variables(options["env"])
    wish, conditions, control = _ordered(before, after, ctx.meta[_COMMAND], environment, options)
    result = bench(wish, conditions, control, context_of(ctx, options["jobs"]))
    _write(result, options["out"], options["html"])
    if options["as_json"]:
        click.echo(to_json(result))
    else:
        from slimgpu.report.bench_tables import bench_tables  # noqa: PLC0415 - not for help

        show(stdout(), bench_tables(result))
    if all(sample.failure for sample in result.samples):
        ctx.exit(1)


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    for each in given:
        if not re.match(r"[^=\0]+=", each):
            raise click.UsageError(f"--env {each} sets no variable; write it as NAME=VALUE")
    return dict(each.split("=", 1) for each in given)


def _ordered(
    before: Reference,
    after: Reference | None,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    options: dict[str, Any],
) -> tuple[Wish, Conditions, Control]:
    from slimgpu.bench.bench import Control  # noqa: PLC0415 - not for help
    from slimgpu.bench.output import Wanted  # noqa: PLC0415
    from slimgpu.bench.prepare import Wish  # noqa: PLC0415
    from slimgpu.bench.rounds import Conditions  # noqa: PLC0415

    if after is not None and options["gpus"]:
        raise click.UsageError("--gpu says what AFTER is built for; leave out --gpu, or AFTER")
    if options["data"] and not options["url"]:
        raise click.UsageError("--data is what a server is sent; name it with --url")
    wish = Wish(
        before=before,
        after=after,
        weights=options["weights"],
        build=tuple(word for gpu in options["gpus"] for word in ("--gpu", str(gpu))),
        arms=tuple(name.strip() for name in (options["arms"] or "").split(";") if name.strip()),
        platform=options["platform"],
    )
    wanted = Wanted(options["expect"], options["url"], options["data"], options["timeout"])
    conditions = Conditions(
        platform=str(options["platform"]),
        command=arguments,
        environment=environment,
        wanted=wanted,
        begins=options["begins"],
        nodes=options["nodes"],
    )
    control = Control(
        runs=options["runs"],
        bandwidth=_limit(options["bandwidth"]),
        node_bandwidth=options["node_bandwidth"],
        connection=_limit(options["connection_bandwidth"]),
        latency=options["latency"],
    )
    return wish, conditions, control


def _limit(rate: float | None) -> float | None:
    return None if rate == math.inf else rate


def _write(result: BenchResult, out: Path | None, page: Path | None) -> None:
    if out is not None:
        with atomic_file(out) as file:
            file.write(to_json(result).encode() + b"\n")
    if page is not None:
        from slimgpu.report.bench_page import bench_page  # noqa: PLC0415 - not for help

        with atomic_file(page) as file:
            file.write(bench_page(result).encode())
