"""Groups of commands that are imported only when they are asked for, so that help answers at once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping


def options_of(command: click.Command) -> dict[str, click.Option]:
    """The options of a command by what follows ``--``, with '_' for '-'."""
    found = {}
    for option in command.params:
        if isinstance(option, click.Option):
            long = next(name for name in option.opts if name.startswith("--"))
            found[long.removeprefix("--").replace("-", "_")] = option
    return found


class LazyGroup(click.Group):
    """A group whose commands are modules of ``package``, each with one object ``command``.

    A command's options can be set by variables: ``prefix``, the command's name and the option's.
    """

    def __init__(
        self,
        *arguments: Any,
        package: str = "slimgpu.cli",
        prefix: str = "SLIMGPU",
        summaries: Mapping[str, str],
        **named: Any,
    ) -> None:
        """``summaries`` are the commands' names and their one line of help."""
        super().__init__(*arguments, **named)
        self._package = package
        self._prefix = prefix
        self.summaries = summaries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, without importing any command."""
        del ctx
        return list(self.summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in self.summaries:
            return None
        command = import_module(f"{self._package}.{cmd_name}").command
        assert isinstance(command, click.Command)
        for name, option in options_of(command).items():
            # click would name the variable after the function's argument, not after the option.
            option.envvar = f"{self._prefix}_{cmd_name}_{name}".upper()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, without importing any command."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries.items()))
