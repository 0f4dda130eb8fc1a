"""Runs at the start of each Python process that is probed, and tells when its stages began and ended.

Each stage is one line in the file that SLIMGPU_PROBE names, appended by one write, so that all processes of a container
share the file, and one that is killed has told all it knew::

    {"stage":"import","begin":12.25,"end":14.5,"what":"torch","pid":7}

Times are seconds of CLOCK_MONOTONIC, ``stage`` is a value of `slimgpu.events.Stage`, ``what`` is a module, file or
model. A program tells of its own stages by appending such lines, with ``fetch weights``, ``import``, ``GPU context`` or
``load weights`` as the stage, when the variable is set.

SLIMGPU_PROBE_EXEC is the moment just before the container's first program was executed. The first interpreter that
starts tells of ``interpreter`` from there to here, every later one from its own start, which the kernel knows to 10 ms.

The program runs as it would without: what fails here is not heard of, the image's own sitecustomize runs, and modules,
``sys.path`` and the numbers of files that the program opens are what they would be. Python 3.6 has to understand this
file, and each start compiles it, so what frameworks need is in a second one, read when the first of them is imported.
"""
# ruff: noqa: BLE001, PTH118, PTH120, PTH123, S110, SIM105, UP031 - nothing is imported, nothing raised to the program

import os
import sys
import time

FRAMEWORKS = (
    "accelerate bitsandbytes ctranslate2 cupy deepspeed diffusers fastapi flash_attn flashinfer gradio jax jaxlib "
    "keras llama_cpp mlc_llm numpy onnxruntime peft ray safetensors sentence_transformers sglang slimgpu tensorflow "
    "tensorrt tensorrt_llm tokenizers torch torchaudio torchvision transformers triton vllm xformers"
)
"""The top-level modules whose imports are told."""
_WATCHED = frozenset(FRAMEWORKS.split())
_MOST_LINES = 5000
_HIGH = range(1000, 1020)


class Told:
    """The file of lines. It is opened before the program may change its root, user or directory."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._left = _MOST_LINES
        self._open()

    def tell(self, stage: str, begin: float, end: float, what: str) -> None:
        """Append one line; one that cannot be written is dropped."""
        try:
            if self._left <= 0:
                return
            self._left -= 1
            if not self._is_open():
                self._open()
            line = '{"stage":"%s","begin":%.6f,"end":%.6f,"what":"%s","pid":%d}\n'
            os.write(self._descriptor, (line % (stage, begin, end, _plain(what), os.getpid())).encode())
        except Exception:
            pass

    def is_empty(self) -> bool:
        """Whether no process has told anything yet."""
        return os.fstat(self._descriptor).st_size == 0

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = _out_of_the_way(os.open(self._path, flags, 0o666))
        self._identity = _identity(self._descriptor)

    def _is_open(self) -> bool:
        """Whether the program has not closed it, as daemons do, and opened something else by the same number."""
        try:
            return _identity(self._descriptor) == self._identity
        except OSError:
            return False


class Finder:
    """First among the finders of modules; it finds nothing itself, and watches how what others found is run."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._hooks = None  # type: Any

    def find_spec(self, name: str, path: object = None, target: object = None) -> "Any":
        """The spec that the other finders give, with a loader that tells; None for what is not watched."""
        if name.partition(".")[0] not in _WATCHED:
            return None
        try:
            if self._hooks is None:
                self._hooks = _hooks()(self, self._told.tell)
            return self._hooks.find(name, path, target)
        except Exception:  # the other finders are asked again, and raise it themselves
            return None


def _identity(descriptor: int) -> "tuple[int, int]":
    state = os.fstat(descriptor)
    return state.st_dev, state.st_ino


def _out_of_the_way(descriptor: int) -> int:
    """The same file by a high number: the low ones are the program's, which may count on the next."""
    for number in _HIGH:
        try:
            os.fstat(number)
        except OSError:
            try:
                os.dup2(descriptor, number, False)
            except OSError:  # so many files are not allowed
                break
            os.close(descriptor)
            return number
    return descriptor


def _hooks() -> "Any":
    """The class in the second file.

    Its code says that it is importlib's, whose frames Python leaves out of the tracebacks of imports, and passes over
    when a warning is attributed to a caller.
    """
    with open(os.path.join(_FOLDER, "_slimgpu_hooks.py"), "rb") as file:
        source = file.read()
    names = {"__name__": "_slimgpu_hooks"}  # type: dict[str, Any]
    exec(compile(source, "<frozen importlib._bootstrap_external>", "exec", 0, True), names)  # noqa: S102 - our own
    return names["Hooks"]


def _plain(text: str) -> str:
    """The end of a text as the inside of a JSON string."""
    return "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in text[-200:])


def _began(first: bool) -> float:  # noqa: FBT001
    """When this interpreter was started."""
    if first and "SLIMGPU_PROBE_EXEC" in os.environ:
        return float(os.environ["SLIMGPU_PROBE_EXEC"])
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    suspended = time.clock_gettime(7) - time.clock_gettime(time.CLOCK_MONOTONIC)  # 7: CLOCK_BOOTTIME, named since 3.7
    return ticks / os.sysconf("SC_CLK_TCK") - suspended


def _start(now: float) -> None:
    path = os.environ.get("SLIMGPU_PROBE")
    if path:
        told = Told(path)
        sys.meta_path.insert(0, Finder(told))
        begin = _began(told.is_empty())
        if 0 < begin <= now:
            told.tell("interpreter", begin, now, "Python %d.%d.%d" % sys.version_info[:3])


TYPE_CHECKING = False  # typing would take longer than all of this
if TYPE_CHECKING:
    from typing import Any

_FOLDER = os.path.dirname(__file__)
try:
    _start(time.monotonic())
except Exception:
    pass
# As if this folder were not there: the import finds the image's own sitecustomize, or none, and its module, error or
# absence is what the interpreter sees. What comes after is no part of this module any more.
sys.path[:] = [path for path in sys.path if path != _FOLDER]
sys.path_importer_cache.pop(_FOLDER, None)
sys.modules.pop("sitecustomize", None)
__import__("sitecustomize")
