"""``slimgpu``: the group of commands, and how their errors end."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from slimgpu import __version__
from slimgpu.errors import SlimgpuError, UsageError
from slimgpu.units import printable

COMMANDS: Final = {
    "analyze": "Where the bytes of an image are, and what could go.",
    "build": "Build a slim image from an image.",
}
"""Commands and their one line of help; each is imported from ``slimgpu.cli.<name>`` only when it is used."""

INTERRUPTED: Final = 130
_CONFIGURATION: Final = "slimgpu.yaml"


def options_of(command: click.Command) -> dict[str, click.Option]:
    """The options of a command by what follows ``--``, with '_' for '-'."""
    found = {}
    for option in command.params:
        if isinstance(option, click.Option):
            long = next(name for name in option.opts if name.startswith("--"))
            found[long.removeprefix("--").replace("-", "_")] = option
    return found


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for, so that help answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, without importing any command."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"slimgpu.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        for name, option in options_of(command).items():
            # click would name the variable after the function's argument, not after the option.
            option.envvar = f"SLIMGPU_{cmd_name}_{name}".upper()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, without importing any command."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"auto_envvar_prefix": "SLIMGPU", "help_option_names": ["-h", "--help"]},
    epilog="Images are named docker://host/repo:tag (or just host/repo:tag), docker-daemon:repo:tag, oci:dir[:tag], "
    "oci-archive:file[:tag] or docker-archive:file.tar. Options can also be set as SLIMGPU_<COMMAND>_<OPTION> "
    "variables and in slimgpu.yaml. Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 a check said no, "
    "4 registry or credentials, 5 something needed is missing, 130 interrupted.",
)
@click.version_option(__version__, prog_name="slimgpu")
@click.option("-v", "--verbose", count=True, help="Say more; twice, show the traceback of an error.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary, only results and errors.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Read options from this YAML file instead of ./{_CONFIGURATION}.",
)
@click.pass_context
def cli(ctx: click.Context, config: Path | None, *, verbose: int, quiet: bool) -> None:
    """Make GPU serving images small and their cold starts short."""
    ctx.obj = {"verbose": verbose, "quiet": quiet}
    path = config or Path(_CONFIGURATION)
    if path.exists():
        ctx.default_map = {
            name: _defaults(path, name, section, ctx) for name, section in _read_configuration(path).items()
        }


def _read_configuration(path: Path) -> dict[str, dict[Any, Any]]:
    """Options by command: ``{"build": {"format": "gzip"}}``."""
    import yaml  # noqa: PLC0415 - only when there is a file

    try:
        document = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not all(isinstance(section, dict) for section in document.values()):
        raise UsageError(f"{path} must map commands to options, like 'build: {{format: gzip}}'")
    unknown = next((name for name in document if name not in COMMANDS), None)
    if unknown is not None:
        raise UsageError(f"{path} names the unknown command {unknown!r}; commands are {', '.join(COMMANDS)}")
    return document


def _defaults(path: Path, name: str, section: dict[Any, Any], ctx: click.Context) -> dict[str, Any]:
    """One command's options as click takes them: by the name of the function's argument."""
    assert isinstance(ctx.command, click.Group)
    command = ctx.command.get_command(ctx, name)
    assert command is not None
    options = options_of(command)
    defaults = {}
    for key, value in section.items():
        option = options.get(str(key).replace("-", "_"))
        if option is None or option.name is None:
            known = ", ".join(option.replace("_", "-") for option in options)
            raise UsageError(f"{path} has the unknown option {key!r} for {name}; options are {known}")
        defaults[option.name] = [value] if option.multiple and isinstance(value, str) else value
    return defaults


def run() -> None:
    """The entry point: run the command line and exit with its code. SIGTERM ends it as tidily as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run the command line; gives the exit code, with any error said in one sentence on stderr."""
    try:
        cli.main(arguments, prog_name="slimgpu", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        error.show()
        return UsageError.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # who read our output has gone: nobody is left to tell
        return 1
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last resort is still one sentence
        code, message = _outcome(error)
        if _wants_traceback(arguments):
            traceback.print_exception(error)
        click.echo(f"slimgpu: {printable(message)}", err=True)
        return code
    return 0


def _outcome(error: BaseException) -> tuple[int, str]:
    """The exit code and the sentence for an error."""
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return INTERRUPTED, "interrupted; nothing was left half-written"
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
