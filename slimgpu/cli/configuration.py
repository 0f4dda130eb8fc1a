"""``slimgpu.yaml``: options by command, and by command within a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from slimgpu.cli.lazy import LazyGroup, options_of
from slimgpu.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import click

FILE: Final = "slimgpu.yaml"


def read_configuration(path: Path, group: LazyGroup, ctx: click.Context) -> dict[str, Any]:
    """The file's options as click takes them; `UsageError` that names what is wrong with it."""
    import yaml  # noqa: PLC0415 - only when there is a file

    try:
        document = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return _of_group(path, group, ctx, document, "")


def _of_group(path: Path, group: LazyGroup, ctx: click.Context, section: Any, within: str) -> dict[str, Any]:
    """Sections by command: ``{"build": {"format": "gzip"}, "weights": {"pack": {"jobs": 2}}}``."""
    if not isinstance(section, dict) or not all(isinstance(inner, dict) for inner in section.values()):
        example = "'pack: {jobs: 2}'" if within else "'build: {format: gzip}'"
        raise UsageError(f"{path} must map commands to options{within and f' under {within}'}, like {example}")
    unknown = next((name for name in section if name not in group.summaries), None)
    if unknown is not None:
        known = ", ".join(group.summaries)
        raise UsageError(f"{path} names the unknown command {f'{within} {unknown}'.strip()!r}; commands are {known}")
    return {name: _of_command(path, group, ctx, inner, f"{within} {name}".strip()) for name, inner in section.items()}


def _of_command(path: Path, group: LazyGroup, ctx: click.Context, section: Any, name: str) -> dict[str, Any]:
    command = group.get_command(ctx, name.rpartition(" ")[2])
    assert command is not None
    if isinstance(command, LazyGroup):
        return _of_group(path, command, ctx, section, name)
    return _defaults(path, name, section, options_of(command))


def _defaults(path: Path, name: str, section: dict[Any, Any], options: dict[str, click.Option]) -> dict[str, Any]:
    """One command's options by the name of the function's argument."""
    defaults = {}
    for key, value in section.items():
        option = options.get(str(key).replace("-", "_"))
        if option is None or option.name is None:
            known = ", ".join(option.replace("_", "-") for option in options)
            raise UsageError(f"{path} has the unknown option {key!r} for {name}; options are {known}")
        defaults[option.name] = [value] if option.multiple and isinstance(value, str) else value
    return defaults
