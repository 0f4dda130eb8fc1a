"""A pickle read as data: an interpreter of its instructions that can build values of `inert` and nothing else.

`pickle.Unpickler` with a restricted ``find_class`` would still allocate what a length claims, fill a memo of
2**32 places, and hash structures that are exponential in the file's length; here each instruction adds one value.

Source: https://docs.python.org/3/library/pickletools.html and the comments of Lib/pickletools.py.
"""

from __future__ import annotations

import pickletools
from typing import TYPE_CHECKING, Final

from slimgpu.weights.formats.broken import BrokenError
from slimgpu.weights.formats.inert import UNKNOWN, Global, Items, Storage, Unknown, View
from slimgpu.weights.formats.rebuild import called, stored
from slimgpu.weights.formats.torchnames import ALLOWED

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES: Final = 64 * 1024 * 1024
MAX_STEPS: Final = 2_000_000
"""Instructions; a tensor takes about fifty."""
_MAX_REFUSED: Final = 100
_MAX_NAME: Final = 200

_NUMBERS: Final = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_BYTES: Final = ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_TEXTS: Final = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_VALUES: Final = frozenset((*_NUMBERS, *_BYTES, *_TEXTS))
"""Instructions that push their own argument."""
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_SHORT_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS: Final = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS: Final = frozenset(("GET", "BINGET", "LONG_BINGET"))
_EXTENSIONS: Final = frozenset(("EXT1", "EXT2", "EXT4"))
_NOTHING: Final = frozenset(("PROTO", "FRAME", "STOP"))
_MARK: Final = object()


class TooLongError(Exception):
    """A pickle that would take more time or memory than a checkpoint's may."""


class Machine:
    """Runs one pickle; ``refused`` then has the names off the short list, in order of their appearance."""

    def __init__(self) -> None:
        self._refused: dict[str, None] = {}
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._simple: dict[str, Callable[[], object]] = {
            "EMPTY_LIST": list,
            "EMPTY_SET": list,
            "EMPTY_DICT": Items,
            "LIST": self._to_mark,
            "FROZENSET": self._to_mark,
            "TUPLE": lambda: tuple(self._to_mark()),
            "DICT": lambda: Items(_pairs(self._to_mark())),
            "REDUCE": self._reduce,
            "NEWOBJ": self._reduce,
            "NEWOBJ_EX": self._reduce_with_names,
            "OBJ": self._object,
            "STACK_GLOBAL": self._stack_global,
            "BINPERSID": self._persistent,
        }
        self._others: dict[str, Callable[[], object]] = {
            "MARK": lambda: self._stack.append(_MARK),
            "POP": self._pop_any,
            "POP_MARK": self._to_mark,
            "DUP": lambda: self._stack.append(self._top()),
            "MEMOIZE": lambda: self._memo.update({len(self._memo): self._top()}),
            "APPEND": lambda: self._extend([self._pop()]),
            "APPENDS": lambda: self._extend(self._to_mark()),
            "ADDITEMS": lambda: self._extend(self._to_mark()),
            "SETITEM": self._set_item,
            "SETITEMS": lambda: self._update(_pairs(self._to_mark())),
            "BUILD": self._build,
        }

    @property
    def refused(self) -> tuple[str, ...]:
        """Names of globals, and "extension N" for those that a registry would name."""
        return tuple(self._refused)

    def run(self, data: bytes) -> object:
        """The value of the pickle.

        Raises `BrokenError` when it is damaged, and `TooLongError` beyond `MAX_BYTES` and `MAX_STEPS`.
        """
        if len(data) > MAX_BYTES:
            raise TooLongError
        try:
            for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
                if step >= MAX_STEPS:
                    raise TooLongError
                self._step(opcode.name, argument)
        except BrokenError:
            raise
        except (ValueError, OverflowError) as error:  # what pickletools raises for bytes that are no instructions
            raise BrokenError("its pickle is damaged") from error
        return self._pop()

    def _step(self, name: str, argument: object) -> None:
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _PUTS and isinstance(argument, int):
            self._memo[argument] = self._top()
        elif name in _GETS and argument in self._memo and isinstance(argument, int):
            self._stack.append(self._memo[argument])
        elif name in _SHORT_TUPLES:
            parts = [self._pop() for _ in range(_SHORT_TUPLES[name])]
            self._stack.append(tuple(reversed(parts)))
        elif name in self._simple:
            self._stack.append(self._simple[name]())
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in self._others:
            self._others[name]()
        elif name not in _NOTHING:
            self._rare(name, argument)

    def _rare(self, name: str, argument: object) -> None:
        if name == "GLOBAL":
            self._stack.append(self._global(str(argument).replace(" ", ".", 1)))
        elif name == "INST":
            self._stack.append(self._call(self._global(str(argument).replace(" ", ".", 1)), tuple(self._to_mark())))
        elif name in _EXTENSIONS:
            self._stack.append(self._global(f"extension {argument}"))
        else:  # protocol 0's PERSID, buffers outside the pickle, a memo's empty place
            raise BrokenError(f"its pickle has the instruction {name}, which no checkpoint has")

    def _global(self, name: str) -> Global:
        allowed = name in ALLOWED
        if not allowed and len(self._refused) < _MAX_REFUSED:
            self._refused[name[:_MAX_NAME]] = None
        return Global(name[:_MAX_NAME], allowed)

    def _stack_global(self) -> Global:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise BrokenError("its pickle asks for a global without a name")
        return self._global(f"{module}.{name}")

    def _persistent(self) -> object:
        persistent = self._pop()
        return UNKNOWN if self._refused else stored(persistent)

    def _call(self, function: object, arguments: object) -> object:
        # With a name refused, storages are all that is told of the file, and any call may involve that name.
        return UNKNOWN if self._refused else called(function, arguments)

    def _reduce(self) -> object:
        arguments = self._pop()
        return self._call(self._pop(), arguments)

    def _reduce_with_names(self) -> object:
        self._pop()
        return self._reduce()

    def _object(self) -> object:
        parts = self._to_mark()
        return self._call(parts[0] if parts else None, tuple(parts[1:]))

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._update([(key, value)])

    def _update(self, pairs: list[tuple[object, object]]) -> None:
        target = self._top()
        if isinstance(target, Items):
            target.pairs.extend(pairs)
        elif not isinstance(target, Unknown):
            raise BrokenError("its pickle puts keys into what is no dictionary")

    def _extend(self, values: list[object]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Unknown):
            raise BrokenError("its pickle puts values into what is no list")

    def _build(self) -> None:
        """Attributes tell nothing about where tensors lie: they are dropped, and nothing is ever set."""
        self._pop()
        if not isinstance(self._top(), (Items, Storage, Unknown, View)):
            raise BrokenError("its pickle gives attributes to what has none")

    def _top(self) -> object:
        value = self._stack[-1] if self._stack else _MARK
        if value is _MARK:
            raise BrokenError("its pickle takes a value where there is none")
        return value

    def _pop(self) -> object:
        value = self._top()
        self._stack.pop()
        return value

    def _pop_any(self) -> None:
        if not self._stack:
            raise BrokenError("its pickle takes a value where there is none")
        self._stack.pop()

    def _to_mark(self) -> list[object]:
        """The values above the last mark, which go with it."""
        at = len(self._stack) - 1
        while at >= 0 and self._stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise BrokenError("its pickle takes values where there is no mark")
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values


def _pairs(values: list[object]) -> list[tuple[object, object]]:
    if len(values) % 2:
        raise BrokenError("its pickle has a key without a value")
    return list(zip(values[::2], values[1::2], strict=True))
