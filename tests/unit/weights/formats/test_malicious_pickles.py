from __future__ import annotations

import builtins
import os
import pickle
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from slimgpu.weights.formats.pickles import TorchCheckpoint, read_checkpoint
from slimgpu.weights.formats.unpickle import Machine
from tests.support.weight_files import Bytes, call, checkpoint, named, pickled, push, storage, view

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DATA = bytes(range(96))
_GOOD = push({"w": view(storage("0", 24), (24,))})


def read(code: bytes) -> TorchCheckpoint:
    found = read_checkpoint("m.pt", Bytes(checkpoint(code, {"0": DATA})))
    assert found is not None
    return found


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def payloads(target: str) -> dict[str, Any]:
    code = f"open({target!r}, 'w').close()"
    return {
        "posix.system": Reduced(os.system, f"touch {target}"),
        "builtins.eval": Reduced(eval, code),
        "builtins.exec": Reduced(exec, code),
        "io.open": Reduced(open, target, "w"),
        "subprocess.Popen": Reduced(subprocess.Popen, ["touch", target]),
        "builtins.getattr": Reduced(
            Reduced(getattr, os, "system") and getattr, Reduced(builtins.__import__, "os"), "system"
        ),
    }


_OLD_NAMES = {
    "builtins.eval": ["__builtin__.eval"],
    "builtins.exec": ["__builtin__.exec"],
    "builtins.getattr": ["__builtin__.getattr"],
    "io.open": ["_io.open", "__builtin__.open"],
    "subprocess.Popen": ["commands.Popen"],
}
"""What Python's pickle writes for Python 2, or for what was renamed."""


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", payloads(""))
def test_calls_are_told_and_never_made(tmp_path: Path, name: str, protocol: int) -> None:
    target = tmp_path / "ran"
    payload = payloads(str(target))[name]
    found = read(pickle.dumps({"w": [payload]}, protocol))
    assert {name, *_OLD_NAMES.get(name, ())} & set(found.refused)
    assert [(one.name, one.dtype, one.shape, one.size) for one in found.tensors] == [("data/0", "U8", (96,), 96)]
    assert not target.exists()


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        (b"cos\nsystem\n(X\x01\x00\x00\x00xtR.", ["os.system"]),
        (b"(X\x01\x00\x00\x00xios\nsystem\n.", ["os.system"]),
        (b"(cos\nsystem\nX\x01\x00\x00\x00xo.", ["os.system"]),
        (b"cos\nsystem\n)\x81.", ["os.system"]),
        (b"\x80\x04cos\nsystem\n)}\x92.", ["os.system"]),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", ["os.system"]),
        (b"\x80\x04\x8c\x08builtins\x8c\x0d__import__.os\x93.", ["builtins.__import__.os"]),
        (b"ctorch._utils\n__builtins__\n.", ["torch._utils.__builtins__"]),
        (b"ctorch\nload\n.", ["torch.load"]),
        (b"ctorch.serialization\nload\n.", ["torch.serialization.load"]),
        (b"ccollections\nOrderedDict.__class__\n.", ["collections.OrderedDict.__class__"]),
        (b"ccollections\nOrderedDict \n.", ["collections.OrderedDict "]),
        (b"c collections\nOrderedDict\n.", [".collections OrderedDict"]),
        (b"\x82\x01.", ["extension 1"]),
        (b"\x83\x01\x01.", ["extension 257"]),
        (b"\x84\x01\x00\x00\x01.", ["extension 16777217"]),
        (b"cos\nsystem\n0cos\nsystem\n0cbuiltins\neval\n.", ["os.system", "builtins.eval"]),
        (b"cos\nsystem\nbroken", ["os.system"]),
        (b"cos\nsystem\n)R}X\x01\x00\x00\x00xNsb.", ["os.system"]),
        (b"cos\nsystem\n)RNNs.", ["os.system"]),
        (b"cos\nsystem\n)R(NNe.", ["os.system"]),
    ],
)
def test_every_way_to_a_global(code: bytes, refused: list[str]) -> None:
    found = read(b"\x80\x02" + _GOOD + b"0" + code)
    assert list(found.refused) == refused
    assert [one.name for one in found.tensors] == ["data/0"]


def test_nothing_is_imported() -> None:
    before = set(sys.modules)
    read(b"\x80\x02" + b"".join(push(named(f"{module}.x")) for module in ("antigravity", "this", "turtledemo")) + b".")
    assert not {"antigravity", "this", "turtledemo"} & (set(sys.modules) - before)


def test_what_is_on_the_list_is_not_called_either() -> None:
    found = read(pickled({"a": call("builtins.bytearray", 2**40), "b": call("_codecs.encode", "x", "rot13")}))
    assert found.refused == ()


def test_attributes_are_never_set() -> None:
    code = push(call("collections.OrderedDict")) + push({"__class__": 1, "pairs": 2, "__setstate__": 3}) + b"b"
    value = Machine().run(b"\x80\x02" + code + b".")
    assert value.pairs == []  # type: ignore[attr-defined]


def test_many_names_and_long_ones() -> None:
    code = b"".join(b"cm\n%d\n0" % number for number in range(1000)) + b"cm\n" + b"x" * 10_000 + b"\n."
    refused = read(b"\x80\x02" + code).refused
    assert len(refused) == 100
    assert len(read(b"\x80\x02cm\n" + b"x" * 10_000 + b"\n.").refused[0]) == 200


def doubled(times: int) -> bytes:
    return b")" + b"2\x86" * times


_BOMBS = {
    "a memo's last place": b"Nr\xff\xff\xff\xff.",
    "hash of 2**400 tuples": b"}" + doubled(400) + b"Ns.",
    "set of 2**400 tuples": b"\x8f(" + doubled(400) + b"\x90.",
    "2**400 lists": b"]" + b"q\x00](h\x00h\x00e" * 400 + b".",
    "deep tuples": b")" + b"\x85" * 100_000 + b".",
    "deep lists": b"](" * 50_000 + b"e" * 50_000 + b".",
    "deep dictionaries": b"}(N" * 40_000 + b"N" + b"u" * 40_000 + b".",
    "a list in itself": b"]q\x00h\x00ah\x00a.",
    "a dictionary in itself": b"}q\x00Nh\x00s.",
    "a long key that is copied": b"X\x00\x00\x01\x00"
    + b"k" * 65536
    + b"q\x000"
    + b"}(h\x00" * 20_000
    + b"N"
    + b"u" * 20_000
    + b".",
}


@pytest.mark.parametrize("name", _BOMBS)
@pytest.mark.timeout(60)
def test_bombs(name: str) -> None:
    tracemalloc.start()
    try:
        found = read(b"\x80\x02" + _BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < 200 * 10**6
    finally:
        tracemalloc.stop()
    assert [one.name for one in found.tensors] == ["data/0"]


def test_calls_that_wrap_calls() -> None:
    innermost = push((named("torch.Size"), None, ((),), None))
    deep = b"(h\x00N" * 50_000 + innermost + b"Nt" * 50_000
    found = read(b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\nq\x00" + deep + b"R.")
    assert found.refused == ()
