"""``slimgpu``: the group of commands, and how their errors end."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from pathlib import Path
from typing import Final

import click

from slimgpu import __version__
from slimgpu.cli.configuration import FILE, read_configuration
from slimgpu.cli.lazy import LazyGroup
from slimgpu.errors import SlimgpuError, UsageError
from slimgpu.units import printable

COMMANDS: Final = {
    "analyze": "Where the bytes of an image are, and what could go.",
    "build": "Build a slim image from an image.",
    "weights": "Pack, move, check and load model weights as an artifact of their own.",
    "prefetch": "Fetch weights into this machine's memory before a program asks for them.",
    "run": "Run a command while its weights are being fetched.",
    "bench": "Measure cold starts before and after, stage by stage.",
}
"""Commands and their one line of help; each is imported from ``slimgpu.cli.<name>`` only when it is used."""

INTERRUPTED: Final = 130


@click.group(
    cls=LazyGroup,
    summaries=COMMANDS,
    context_settings={"auto_envvar_prefix": "SLIMGPU", "help_option_names": ["-h", "--help"]},
    epilog="Images are named docker://host/repo:tag (or just host/repo:tag), docker-daemon:repo:tag, oci:dir[:tag], "
    "oci-archive:file[:tag] or docker-archive:file.tar. Options can also be set as SLIMGPU_<COMMAND>_<OPTION> "
    "variables (SLIMGPU_WEIGHTS_PACK_TO in a group) and in slimgpu.yaml. Exit codes: 0 done, 1 failed, 2 usage or "
    "configuration, 3 a check said no, 4 registry or credentials, 5 something needed is missing, 130 interrupted.",
)
@click.version_option(__version__, prog_name="slimgpu")
@click.option("-v", "--verbose", count=True, help="Say more; twice, show the traceback of an error.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary, only results and errors.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Read options from this YAML file instead of ./{FILE}.",
)
@click.pass_context
def cli(ctx: click.Context, config: Path | None, *, verbose: int, quiet: bool) -> None:
    """Make GPU serving images small and their cold starts short."""
    ctx.obj = {"verbose": verbose, "quiet": quiet}
    path = config or Path(FILE)
    if path.exists():
        assert isinstance(ctx.command, LazyGroup)
        ctx.default_map = read_configuration(path, ctx.command, ctx)


def run() -> None:
    """The entry point: run the command line and exit with its code. SIGTERM ends it as tidily as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run the command line; gives the exit code, with any error said in one sentence on stderr."""
    try:
        code = cli.main(arguments, prog_name="slimgpu", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return UsageError.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # who read our output has gone: nobody is left to tell
        return 1
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last resort is still one sentence
        failure, message = _outcome(error)
        if _wants_traceback(arguments):
            traceback.print_exception(error)
        click.echo(f"slimgpu: {printable(message)}", err=True)
        return failure
    return code if isinstance(code, int) else 0


def _outcome(error: BaseException) -> tuple[int, str]:
    """The exit code and the sentence for an error."""
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        said = str(error.__cause__ or "") if isinstance(error, click.Abort) else str(error)
        return INTERRUPTED, said or "interrupted; nothing was left half-written"
    if isinstance(error, SlimgpuError):
        return error.exit_code, str(error)
    if isinstance(error, OSError):
        return 1, _explain(error)
    return 1, f"internal error: {error!r}; run again with -v -v and report the traceback"


def _explain(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}no space is left on the disk; free some, or set SLIMGPU_CACHE_DIR and --to to a larger disk"
    return f"{where}{error.strerror or error}"


def _wants_traceback(arguments: list[str]) -> bool:
    return "-vv" in arguments or arguments.count("-v") + arguments.count("--verbose") > 1
