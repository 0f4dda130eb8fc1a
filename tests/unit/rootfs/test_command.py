from __future__ import annotations

from typing import Any

import pytest

from slimgpu.errors import ImageError, UsageError
from slimgpu.oci.config import ImageConfig
from slimgpu.rootfs.command import DEFAULT_PATH, command_of


def config(**runtime: Any) -> ImageConfig:
    return ImageConfig({"config": runtime})


@pytest.mark.parametrize(
    ("runtime", "given", "entrypoint", "arguments"),
    [
        ({"Cmd": ["a", "b"]}, (), None, ("a", "b")),
        ({"Cmd": ["a", "b"]}, ("c",), None, ("c",)),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, (), None, ("e", "a")),
        ({"Entrypoint": ["e", "f"], "Cmd": ["a"]}, ("c", "d"), None, ("e", "f", "c", "d")),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, (), ("x",), ("x",)),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, ("c",), ("x", "y"), ("x", "y", "c")),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, ("c",), (), ("c",)),
        ({"Entrypoint": "one word", "Cmd": None}, (), None, ("one word",)),
    ],
)
def test_entrypoint_and_cmd(
    runtime: dict[str, Any], given: tuple[str, ...], entrypoint: tuple[str, ...] | None, arguments: tuple[str, ...]
) -> None:
    assert command_of(config(**runtime), given, entrypoint=entrypoint).arguments == arguments


def test_what_an_image_says_and_what_it_leaves_out() -> None:
    plain = command_of(config(Cmd=["a"]))
    assert (plain.user, plain.directory, plain.environment) == (
        "",
        "/",
        {"PATH": DEFAULT_PATH, "HOSTNAME": "slimgpu"},
    )
    full = command_of(
        config(Cmd=["a"], Env=["PATH=/x", "A=1=2", "B", "=c"], User="app:video", WorkingDir="srv/../app/"),
        environment={"A": "3", "C": ""},
    )
    assert (full.user, full.directory) == ("app:video", "/app")
    assert full.environment == {"PATH": "/x", "HOSTNAME": "slimgpu", "A": "3", "B": "", "C": ""}


@pytest.mark.parametrize("given", [(), ("c",)])
def test_nothing_to_run(given: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="names no command to run; give one after --"):
        command_of(config(Cmd=["a"]), entrypoint=())
    assert command_of(config(Cmd=["a"]), given)


@pytest.mark.parametrize(
    "runtime",
    [
        {"Cmd": [1]},
        {"Cmd": {"a": "b"}},
        {"Entrypoint": 7},
        {"Cmd": ["a"], "User": ["root"]},
        {"Cmd": ["a"], "WorkingDir": 1},
        {"Cmd": ["a\0b"]},
        {"Cmd": ["a"], "Env": ["A=\0"]},
        {"Cmd": ["a"], "User": "\0"},
        {"Cmd": ["a"], "WorkingDir": "/\0"},
        {"Cmd": ["\ud800"]},
    ],
)
def test_configurations_that_break_their_format(runtime: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="of the image"):
        command_of(config(**runtime))
