"""What is timed inside of frameworks: their imports, the making of a GPU context, and the loading of weights.

`sitecustomize` reads it when the first framework is imported, in Python 3.6 and newer. `HOOKS` is all that is known of
frameworks. A function that is timed is replaced by one that says that it is the same, to pickle and inspect as well.
"""
# ruff: noqa: BLE001

import functools
import os
import sys
import time
from _thread import _local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

_CONTEXT = "GPU context"
_LOAD = "load weights"
_LOADERS = (_LOAD, "*Loader.load_model", "*Loader.load_weights")
HOOKS = {
    "diffusers.models.modeling_utils": (_LOAD, "ModelMixin.from_pretrained"),
    "diffusers.pipelines.pipeline_utils": (_LOAD, "DiffusionPipeline.from_pretrained"),
    "jax._src.xla_bridge": (_CONTEXT, "_init_backend"),
    "keras.src.saving.saving_api": (_LOAD, "load_model", "load_weights"),
    "llama_cpp.llama": (_LOAD, "Llama.__init__"),
    "onnxruntime.capi.onnxruntime_inference_collection": (_LOAD, "InferenceSession.__init__"),
    "safetensors": (_LOAD, "safe_open"),
    "safetensors.numpy": (_LOAD, "load_file"),
    "safetensors.torch": (_LOAD, "load_file"),
    "sglang.srt.model_loader.loader": _LOADERS,
    "slimgpu.weights.load": (_LOAD, "load", "stream"),
    "tensorflow.python.saved_model.load": (_LOAD, "load"),
    "torch.cuda": (_CONTEXT, "_lazy_init"),
    "torch.serialization": (_LOAD, "load"),
    "transformers.modeling_utils": (_LOAD, "PreTrainedModel.from_pretrained"),
    "vllm.model_executor.model_loader.*": _LOADERS,
}
"""Modules, and which of their functions are timed for which stage; a star stands for any module, or any class."""
_MADE = {
    "jax._src.xla_bridge": lambda _, platform: platform != "cpu",
    "torch.cuda": lambda module: module.is_initialized(),
}
"""Whether a call that went well has made a context on a GPU."""
_WORTH_TELLING = 0.001
"""Seconds; what takes less inside of a framework that has been imported is not told."""
_GENERATOR = 0x20
"""Of a function's code, see `inspect.CO_GENERATOR`."""


class _Depth(_local):
    """What the present thread is in the middle of."""

    importing = 0
    loading = False
    sought = ""


class Hooks:
    """Watches modules being imported, and functions of theirs being called."""

    def __init__(self, finder: object, tell: "Callable[[str, float, float, str], None]") -> None:
        self._finder = finder
        self._tell = tell
        self._depth = _Depth()

    def find(self, name: str, path: object, target: object) -> "Any":
        """The spec of a module, from the finders after ours; None when there is none, or nothing to watch.

        Modules inside of a framework count when they are imported after it; while it is imported they are part of it.
        """
        depth = self._depth
        if depth.sought == name or ("." in name and depth.importing and not _hook_of(name)):
            return None
        depth.sought = name  # finders may ask all finders in turn
        try:
            spec = self._others(name, path, target)
        finally:
            depth.sought = ""
        loader = getattr(spec, "loader", None)
        if getattr(loader, "name", None) == name and "exec_module" not in vars(loader):
            self._watch(name, loader)
        return spec

    def _others(self, name: str, path: object, target: object) -> "Any":
        for finder in sys.meta_path:
            if finder is not self._finder:
                spec = finder.find_spec(name, path, target)  # type: ignore[arg-type]
                if spec is not None:
                    return spec
        return None

    def _watch(self, name: str, loader: "Any") -> None:
        """Have the loader, which serves this module alone, tell once how long it takes to run it."""
        run = loader.exec_module
        depth = self._depth

        def exec_module(module: "Any") -> None:
            del loader.exec_module
            depth.importing += 1
            begin = time.monotonic()
            try:
                run(module)
            finally:
                end = time.monotonic()
                depth.importing -= 1
                if "." not in name or (not depth.importing and end - begin >= _WORTH_TELLING):
                    self._tell("import", begin, end, name)
            self._hook(name, module)

        loader.exec_module = exec_module

    def _hook(self, name: str, module: "Any") -> None:
        stage, *paths = _hook_of(name) or ("",)
        for path in paths:
            owner, _, attribute = path.rpartition(".")
            for holder in _holders(module, owner):
                self._replace(holder, attribute, stage, module)

    def _replace(self, holder: "Any", attribute: str, stage: str, module: "Any") -> None:
        try:
            found = vars(holder)[attribute]
            timed = self._timed(found, stage, module, holder)
            for other in [holder, *_takers(holder, attribute, found)]:
                setattr(other, attribute, timed)
        except Exception:
            return  # another version of the framework, which has it elsewhere

    def _timed(self, found: "Any", stage: str, module: "Any", holder: "Any") -> "Any":
        if isinstance(found, (classmethod, staticmethod)):
            return type(found)(self._timed(found.__func__, stage, module, holder))
        if stage == _CONTEXT:
            return self._first(found, module)
        if isinstance(found, type):
            return _opener(found, self._depth, self._tell)
        skipped = 1 if isinstance(holder, type) else 0
        if getattr(getattr(found, "__code__", None), "co_flags", 0) & _GENERATOR:
            return self._generator(found, skipped)
        return self._outermost(found, skipped)

    def _outermost(self, original: "Any", skipped: int) -> "Any":
        """Tells of each call that is not made by another one in the same thread."""
        depth = self._depth

        @functools.wraps(original)
        def call(*args: "Any", **kwargs: "Any") -> "Any":
            if depth.loading:
                return original(*args, **kwargs)
            depth.loading = True
            begin = time.monotonic()
            try:
                return original(*args, **kwargs)
            finally:
                depth.loading = False
                self._tell(_LOAD, begin, time.monotonic(), _named([*args[skipped:], *kwargs.values()]))

        return call

    def _generator(self, original: "Any", skipped: int) -> "Any":
        """Tells from the first to the last of what it gives."""
        depth = self._depth

        @functools.wraps(original)
        def call(*args: "Any", **kwargs: "Any") -> "Any":
            part = depth.loading
            begin = time.monotonic()
            try:
                return (yield from original(*args, **kwargs))
            finally:
                if not part:
                    self._tell(_LOAD, begin, time.monotonic(), _named([*args[skipped:], *kwargs.values()]))

        return call

    def _first(self, original: "Any", module: "Any") -> "Any":
        """Tells of the first call that makes a context; without a GPU there is none."""
        made = _MADE[module.__name__]
        done = []  # type: list[bool]

        @functools.wraps(original)
        def call(*args: "Any", **kwargs: "Any") -> "Any":
            begin = time.monotonic()
            result = original(*args, **kwargs)
            if not done and _is_true(made, module, args):
                done.append(True)
                self._tell(_CONTEXT, begin, time.monotonic(), module.__name__.partition(".")[0])
            return result

        return call


def _hook_of(name: str) -> "tuple[str, ...] | None":
    return HOOKS.get(name) or HOOKS.get(name.rpartition(".")[0] + ".*")


def _holders(module: "Any", owner: str) -> "Iterable[Any]":
    """The module itself, a class of it, or the classes that it defines whose names end as the pattern does."""
    if not owner:
        return [module]
    if not owner.startswith("*"):
        return [value for value in [vars(module).get(owner)] if isinstance(value, type)]
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    return [c for c in classes if c.__module__ == module.__name__ and c.__name__.endswith(owner[1:])]


class _Opener(type):
    """The class of a class like safetensors' ``safe_open``, whose objects have a file open and cannot be changed.

    Objects of the class that it makes pass on all calls to one of the original class, and are instances of both.
    """

    _original: type
    _depth: _Depth

    def __call__(cls, *args: "Any", **kwargs: "Any") -> "Any":
        """An object of the original class where a caller of this one is being timed already."""
        if cls._depth.loading:
            return cls._original(*args, **kwargs)
        begin = time.monotonic()
        return type.__call__(cls, cls._original(*args, **kwargs), begin, _named([*args, *kwargs.values()]))

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, cls._original)

    def __subclasscheck__(cls, other: type) -> bool:
        return other is cls or issubclass(other, cls._original)

    def __repr__(cls) -> str:
        return repr(cls._original)


class _Opened:
    """Tells of a ``with`` block, in all of which tensors are read and moved; without one, of each call that reads."""

    __slots__ = ("_begin", "_block", "_opened", "_what")
    _original: type
    _tell: "Any"

    def __init__(self, opened: "Any", begin: float, what: str) -> None:
        self._opened = opened
        self._begin = begin
        self._what = what
        self._block = False

    def __enter__(self) -> "Any":
        self._opened.__enter__()
        self._block = True
        return self

    def __exit__(self, *exception: object) -> "Any":
        try:
            return self._opened.__exit__(*exception)
        finally:
            if self._block:
                self._block = False
                self._tell(_LOAD, self._begin, time.monotonic(), self._what)

    def __repr__(self) -> str:
        return repr(self._opened)

    def __reduce_ex__(self, protocol: "Any") -> "Any":
        return self._opened.__reduce_ex__(protocol)


def _takers(module: "Any", attribute: str, found: "Any") -> "list[Any]":
    """The modules inside of a package that took a function from it while it was imported, as torch.cuda.memory does."""
    inside = getattr(module, "__name__", "") + "."
    modules = [value for name, value in list(sys.modules.items()) if name.startswith(inside)]
    return [value for value in modules if getattr(value, "__dict__", {}).get(attribute) is found]


def _opener(original: type, depth: _Depth, tell: "Any") -> type:
    """The class that stands in for the original one."""
    own = {"_original": original, "_depth": depth, "_tell": staticmethod(tell), "__slots__": ()}  # type: dict[str, Any]
    named = {"__doc__": original.__doc__, "__module__": original.__module__, "__class__": property(lambda _: original)}
    methods = {name: _passed_on(name, method) for name, method in vars(original).items() if not name.startswith("__")}
    return _Opener(original.__name__, (_Opened,), {**methods, **own, **named})


def _passed_on(name: str, method: "Any") -> "Any":
    @functools.wraps(method)
    def call(self: "Any", *args: "Any", **kwargs: "Any") -> "Any":
        begin = time.monotonic()
        try:
            return getattr(self._opened, name)(*args, **kwargs)
        finally:
            if name.startswith("get_") and not self._block:
                self._tell(_LOAD, begin, time.monotonic(), self._what)

    return call


def _is_true(made: "Any", module: "Any", arguments: "Any") -> bool:
    try:
        return bool(made(module, *arguments))
    except Exception:
        return False


def _named(values: "list[Any]") -> str:
    """A file, a path or a model's name, when the first value is one; else the model of a vLLM configuration."""
    try:
        for value in values[:1]:
            if isinstance(value, str) or hasattr(type(value), "__fspath__"):
                return str(os.fspath(value))
            if hasattr(value, "read"):
                return str(getattr(value, "name", ""))
        for value in values:
            configuration = getattr(value, "__dict__", {}).get("model_config", value)
            model = getattr(configuration, "__dict__", {}).get("model")
            if isinstance(model, str):
                return model
    except Exception:
        return ""
    return ""
