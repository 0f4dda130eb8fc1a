"""What is timed inside of frameworks: the real ones that the tests have, and stand-ins where a GPU would be needed."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import pytest

from slimgpu.bench.probe.read import FOLDER
from slimgpu.events import Stage
from tests.support.command import slimgpu
from tests.support.models import write_model
from tests.support.probe import INTERPRETERS, Probe, new_probe, run_plainly

if TYPE_CHECKING:
    from pathlib import Path

every_interpreter = pytest.mark.parametrize("python", INTERPRETERS)

_SAVE = (
    "import numpy, safetensors.numpy, sys\nsafetensors.numpy.save_file({'a': numpy.ones(3), 'b': numpy.ones(9)}, FILE)"
)


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    return new_probe(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    assert run_plainly(_SAVE.replace("FILE", repr(str(path)))).returncode == 0
    return path


def _value(name: str, within: str) -> Any:
    """A module's constant that is a literal, without its import."""
    for node in ast.parse((FOLDER / within).read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return node.value
    raise AssertionError(f"{within} has no {name}")


def test_every_hook_is_in_a_framework_that_is_watched() -> None:
    frameworks = ast.literal_eval(_value("FRAMEWORKS", "sitecustomize.py")).split()
    modules = [ast.literal_eval(key) for key in _value("HOOKS", "_slimgpu_hooks.py").keys]
    assert len(modules) > 10
    assert {module.partition(".")[0] for module in modules} <= set(frameworks)
    assert frameworks == sorted(set(frameworks))


def test_stages_are_called_as_elsewhere() -> None:
    assert ast.literal_eval(_value("_LOAD", "_slimgpu_hooks.py")) == Stage.LOAD
    assert ast.literal_eval(_value("_CONTEXT", "_slimgpu_hooks.py")) == Stage.CONTEXT


@pytest.mark.parametrize(
    "program",
    [
        "safetensors.numpy.load_file(FILE)",
        "import pathlib; safetensors.numpy.load_file(filename=pathlib.Path(FILE))",
        "with safetensors.safe_open(FILE, 'np') as f: f.get_tensor('a'), f.get_slice('b')[:2], f.keys()",
        "with safetensors.safe_open(filename=FILE, framework='np') as f: f.get_tensors()",
        "f = safetensors.safe_open(FILE, 'np'); f.keys(), f.metadata(), f.get_tensor('a')",
    ],
)
def test_a_file_is_told_once(program: str, probe: Probe, model: Path) -> None:
    probe.out("import safetensors.numpy\n" + program.replace("FILE", repr(str(model))))
    assert probe.told("load weights") == [str(model)]


def test_without_a_block_each_read_is_told(probe: Probe, model: Path) -> None:
    program = "import numpy, safetensors; f = safetensors.safe_open(FILE, 'np'); f.get_tensor('a'); f.get_tensor('b')"
    probe.out(program.replace("FILE", repr(str(model))))
    assert probe.told("load weights") == [str(model)] * 2


def test_a_file_that_cannot_be_loaded_is_told_and_fails_as_without(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    program = f"""
import safetensors.numpy
for name in ({str(tmp_path / "none")!r}, {str(tmp_path / "empty")!r}):
    for load in (safetensors.numpy.load_file, lambda name: safetensors.safe_open(name, "np")):
        try:
            load(name)
        except Exception as error:
            print(type(error), error)
"""
    assert probe.out(program) == run_plainly(program).stdout
    assert probe.told("load weights") == [str(tmp_path / "none"), str(tmp_path / "empty")]


def test_what_is_replaced_looks_the_same(probe: Probe, model: Path) -> None:
    program = f"""
import inspect, pickle, safetensors.numpy, safetensors._safetensors_rust as rust
load = safetensors.numpy.load_file
print(inspect.isfunction(load), inspect.signature(load), inspect.getsource(load), load.__module__, load.__qualname__)
print(pickle.loads(pickle.dumps(load)) is load, load.__doc__, sorted(load({str(model)!r})))
one, real = safetensors.safe_open, rust.safe_open
print(one, isinstance(one, type), one.__name__, one.__module__, one.__doc__)
print(issubclass(one, one), issubclass(real, one), issubclass(int, one), isinstance(3, one))
opened = one({str(model)!r}, framework="np")
print(isinstance(opened, one), isinstance(opened, real), opened.__class__, repr(opened)[:20], len({{opened, opened}}))
print([name for name in dir(one) if name[0] != "_"], sorted(opened.keys()), opened.offset_keys(), opened.metadata())
with opened as within:
    print(within is opened, within.get_tensor("a"), within.get_slice("b").get_shape())
for act in (lambda: pickle.dumps(opened), lambda: opened.keys(), lambda: opened.no_such, lambda: one(), lambda: one(3)):
    try:
        act()
    except Exception as error:
        print(type(error), str(error).partition(" object at ")[0].replace("builtins.safe_open", "safe_open"))
"""
    assert probe.out(program) == run_plainly(program).stdout


def test_slimgpus_own_loading_is_told(probe: Probe, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    reference = f"oci:{tmp_path / 'layout'}:weights"
    slimgpu("weights", "pack", str(tmp_path / "model"), "--to", reference)
    program = f"""
import inspect
from slimgpu.weights import load, stream
assert inspect.isgeneratorfunction(stream) and not inspect.isgeneratorfunction(load)
loaded = load({reference!r})
streamed = {{name: bytes(data) for name, data in stream({reference!r})}}
print(len(loaded), streamed == {{name: bytes(data) for name, data in loaded.items()}})
"""
    memory = {"SLIMGPU_MEMORY_DIR": str(tmp_path / "memory"), "SLIMGPU_CACHE_DIR": str(tmp_path / "cache")}
    assert probe.out(program, **memory) == "10 True\n"
    assert probe.told("load weights") == [reference, reference]


def _stand_in(folder: Path, modules: dict[str, str]) -> str:
    """Modules at the names of a framework's; what to put in PYTHONPATH."""
    for name, text in modules.items():
        path = folder.joinpath(*name.split(".")).with_suffix(".py")
        for parent in path.relative_to(folder).parents[:-1]:
            (folder / parent).mkdir(parents=True, exist_ok=True)
            (folder / parent / "__init__.py").touch()
        path.write_text(text)
    return str(folder)


@every_interpreter
def test_the_first_call_that_makes_a_context_is_told(python: str, probe: Probe, tmp_path: Path) -> None:
    path = _stand_in(
        tmp_path / "lib",
        {
            "torch.cuda": "made = []\ndef is_initialized():\n    return len(made) > 1\n"
            "def _lazy_init():\n    made.append(1)\n    if len(made) == 1:\n        raise RuntimeError('not yet')\n",
            "jax._src.xla_bridge": "def _init_backend(platform):\n    return platform\n",
        },
    )
    program = """
import torch.cuda, jax._src.xla_bridge as bridge
try:
    torch.cuda._lazy_init()
except RuntimeError as error:
    print(error)
print(torch.cuda._lazy_init(), torch.cuda._lazy_init(), bridge._init_backend("cpu"), bridge._init_backend("cuda"))
"""
    assert probe.out(program, python=python, PYTHONPATH=path) == "not yet\nNone None cpu cuda\n"
    assert probe.told("GPU context") == ["torch", "jax"]


@every_interpreter
def test_methods_stay_what_they_are(python: str, probe: Probe, tmp_path: Path) -> None:
    path = _stand_in(
        tmp_path / "lib",
        {
            "transformers.modeling_utils": "class PreTrainedModel:\n    @classmethod\n"
            "    def from_pretrained(cls, name, **options):\n        return cls, name\n",
            "vllm.model_executor.model_loader.other": "import abc\nclass BaseLoader(abc.ABC):\n"
            "    @abc.abstractmethod\n    def load_weights(self, model, model_config):\n        pass\n"
            "    def load_model(self, vllm_config):\n        return self.load_weights(None, vllm_config)\n"
            "class OtherLoader(BaseLoader):\n    def load_weights(self, model, model_config):\n        return 5\n"
            "class Unlike:\n    def load_model(self):\n        return 6\n",
        },
    )
    program = """
import pickle
from transformers.modeling_utils import PreTrainedModel
from vllm.model_executor.model_loader.other import BaseLoader, OtherLoader, Unlike
class Own(PreTrainedModel):
    @classmethod
    def from_pretrained(cls, name):
        return super().from_pretrained(name, more=1)
class Configuration:
    model = "not of the instance"
    def __init__(self, model):
        self.model_config = self
        self.model = model
try:
    BaseLoader()
except TypeError:
    print("abstract")
print(Own.from_pretrained("a/model") == (Own, "a/model"), pickle.loads(pickle.dumps(Own.from_pretrained))("b")[1])
print(OtherLoader().load_model(Configuration("m")), OtherLoader().load_weights(object(), Configuration("n")))
print(Unlike().load_model())
"""
    assert probe.out(program, python=python, PYTHONPATH=path) == "abstract\nTrue b\n5 5\n6\n"
    assert probe.told("load weights") == ["a/model", "b", "m", "n"]


@every_interpreter
def test_warnings_are_attributed_to_who_calls(python: str, probe: Probe, tmp_path: Path) -> None:
    path = _stand_in(
        tmp_path / "lib",
        {
            "torch.serialization": "import warnings\ndef load(f):\n"
            "    warnings.warn('old', FutureWarning, stacklevel=2)\n",
        },
    )
    script = tmp_path / "script.py"
    script.write_text("import torch.serialization\ntorch.serialization.load('x')\n")
    result = probe.run(script, python=python, PYTHONPATH=path)
    assert result.stderr == run_plainly(script, python=python, PYTHONPATH=path).stderr
    assert result.stderr.startswith(f"{script}:2: FutureWarning: old")
    assert probe.told("load weights") == ["x"]


@every_interpreter
def test_modules_of_a_framework_count_when_they_are_imported_after_it(
    python: str, probe: Probe, tmp_path: Path
) -> None:
    slow = "import time\ntime.sleep(0.002)\n"
    path = _stand_in(
        tmp_path / "lib", {"torch.early": slow, "torch.late": slow + "import torch.inner", "torch.inner": slow}
    )
    (tmp_path / "lib/torch/__init__.py").write_text("import torch.early\n")
    (tmp_path / "lib/torch/quick.py").touch()
    probe.out("import torch, torch.quick, torch.late", python=python, PYTHONPATH=path)
    assert [what for what in probe.told("import") if what != "torch.quick"] == ["torch", "torch.late"]


@every_interpreter
def test_threads_that_load_at_once_are_told_each(python: str, probe: Probe, tmp_path: Path) -> None:
    path = _stand_in(
        tmp_path / "lib",
        {"torch.serialization": "def load(f):\n    both.wait()\n    return f and load(None)\n"},
    )
    program = """
import threading, torch.serialization
torch.serialization.both = threading.Barrier(2)
threads = [threading.Thread(target=torch.serialization.load, args=(name,)) for name in ("a", "b")]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    probe.out(program, python=python, PYTHONPATH=path)
    assert sorted(probe.told("load weights")) == ["a", "b"]


@every_interpreter
def test_a_version_without_what_is_timed_runs(python: str, probe: Probe, tmp_path: Path) -> None:
    path = _stand_in(
        tmp_path / "lib",
        {
            "torch.cuda": "",
            "torch.serialization": "load = None",
            "transformers.modeling_utils": "PreTrainedModel = 5",
            "safetensors": "class safe_open:\n    pass\n",
        },
    )
    program = "import torch.cuda, torch.serialization, transformers.modeling_utils as m; print(m.PreTrainedModel)"
    assert probe.out(program, python=python, PYTHONPATH=path) == "5\n"


@every_interpreter
def test_finders_of_the_program_go_on(python: str, probe: Probe) -> None:
    program = """
import importlib.abc, importlib.machinery, importlib.util, sys

class Loader(importlib.abc.Loader):
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        module.x = 5

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            return importlib.machinery.ModuleSpec(name, Loader())
        if name == "jax":
            raise ImportError("mine")

class Asking(importlib.abc.MetaPathFinder):
    asked = []
    def find_spec(self, name, path, target=None):
        if name not in self.asked:
            self.asked.append(name)
            return importlib.util.find_spec(name)

sys.meta_path[:0] = []
sys.meta_path.insert(1, Finder())
sys.meta_path.append(Asking())
import torch
print(torch.x)
for name in ("jax", "keras"):
    try:
        __import__(name)
    except ImportError as error:
        print(error)
"""
    assert probe.out(program, python=python) == run_plainly(program, python=python).stdout
