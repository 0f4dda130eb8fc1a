"""The probe in real interpreters: what it tells, and that programs run as they do without it."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slimgpu.bench.probe.read import EXEC_VARIABLE, FOLDER
from slimgpu.events import Stage
from tests.support.probe import INTERPRETERS, Probe, new_probe, run_plainly

every_interpreter = pytest.mark.parametrize("python", INTERPRETERS)

# What a program can see of the interpreter around it; a list, for the probe's own variables to be left out.
_LOOK = """
import os, sys, threading
names = [n for n in sorted(os.environ) if n not in ("PYTHONPATH", "SLIMGPU_PROBE", "PYTHONDONTWRITEBYTECODE", "_")]
finders = [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path if type(f).__module__ != "sitecustomize"]
first = os.open("/dev/null", os.O_RDONLY)
print(sys.flags, sys.path, sorted(sys.modules), finders, sorted(sys.path_importer_cache), names, sys.argv, first)
print(getattr(sys.modules.get("sitecustomize"), "__file__", None), threading.active_count(), sys.exc_info())
try:
    import sitecustomize
    print(sitecustomize.__file__)
except ImportError as error:
    print(error, error.name, error.path)
"""


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    return new_probe(tmp_path)


@every_interpreter
@pytest.mark.parametrize("options", [(), ("-s",), ("-O",), ("-X", "dev"), ("-W", "error")])
def test_a_program_sees_what_it_sees_without(python: str, options: tuple[str, ...], probe: Probe) -> None:
    assert probe.out(_LOOK, *options, python=python) == run_plainly(_LOOK, *options, python=python).stdout
    assert len(probe.told("interpreter")) == 1


@every_interpreter
def test_a_script_sees_what_it_sees_without(python: str, probe: Probe, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_LOOK)
    assert probe.out(script, python=python) == run_plainly(script, python=python).stdout


@every_interpreter
@pytest.mark.parametrize("option", ["-E", "-I"])
def test_interpreters_that_heed_no_environment_are_left_alone(python: str, option: str, probe: Probe) -> None:
    assert probe.out(_LOOK, option, python=python) == run_plainly(_LOOK, option, python=python).stdout
    assert probe.events() == []


@every_interpreter
def test_interpreters_without_site_run_and_tell_nothing(python: str, probe: Probe) -> None:
    assert probe.out("import json; print(json.loads('1'))", "-S", python=python) == "1\n"
    assert probe.events() == []


@every_interpreter
def test_the_interpreter_began_when_the_first_program_was_executed(python: str, probe: Probe) -> None:
    begin = time.monotonic()
    probe.out("", python=python, **{EXEC_VARIABLE: f"{begin:.6f}"})
    [event] = probe.events()
    assert event.stage is Stage.INTERPRETER
    assert event.begin == pytest.approx(begin, abs=1e-6)
    assert begin < event.end < time.monotonic()
    assert event.what.startswith("Python 3.")


@every_interpreter
def test_children_have_beginnings_of_their_own(python: str, probe: Probe) -> None:
    program = "import subprocess, sys; subprocess.check_call([sys.executable, '-c', 'pass'])"
    begin = time.monotonic()
    probe.out(program, python=python, **{EXEC_VARIABLE: f"{begin:.6f}"})
    first, second = probe.events()
    assert first.begin == pytest.approx(begin, abs=1e-6)
    assert first.end - 0.01 <= second.begin <= second.end
    assert len({line["pid"] for line in probe.lines()}) == 2


@pytest.mark.parametrize("value", ["", "soon", "nan", "-1", "1e400"])
def test_a_moment_that_is_none_costs_its_event_alone(value: str, probe: Probe) -> None:
    assert probe.out("import numpy; print(1)", **{EXEC_VARIABLE: value}) == "1\n"
    assert [(line["stage"], line["what"]) for line in probe.lines()] == [("import", "numpy")]


@every_interpreter
def test_the_images_own_customization_runs(python: str, probe: Probe, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import sys\nprint('own', __name__, 'sitecustomize' in sys.modules)\nx = 5\n")
    (own / "usercustomize.py").write_text("print('user', __name__)\n")
    program = "import sys, sitecustomize; print(sitecustomize.x, sitecustomize.__file__, sys.path[1:3])"
    said = probe.out(program, python=python, PYTHONPATH=str(own))
    assert said == run_plainly(program, python=python, PYTHONPATH=str(own)).stdout
    assert said.startswith("own sitecustomize True\n")
    assert len(probe.told("interpreter")) == 1


@every_interpreter
@pytest.mark.parametrize("error", ["raise ValueError('mine')", "import no_such_module", "raise SystemExit(3)", "1 +"])
def test_a_customization_that_fails_fails_as_without(python: str, error: str, probe: Probe, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text(error)
    program = "import sys; print('sitecustomize' in sys.modules)"
    result = probe.run(program, python=python, PYTHONPATH=str(own))
    plain = run_plainly(program, python=python, PYTHONPATH=str(own))
    assert (result.returncode, result.stdout) == (plain.returncode, plain.stdout)
    assert result.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1] != ""


@pytest.mark.parametrize("way", ["missing folder", "folder", "read-only device", "pipe", "unset"])
def test_a_file_that_cannot_be_written_is_not_heard_of(way: str, probe: Probe, tmp_path: Path) -> None:
    file = {"missing folder": tmp_path / "no/such", "folder": tmp_path, "read-only device": Path("/proc/version")}
    path = str(file.get(way, tmp_path / "pipe")) if way != "unset" else ""
    if way == "pipe":
        os.mkfifo(path)
    environment = probe.environment() | {"SLIMGPU_PROBE": path}
    command = [sys.executable, "-c", "import numpy, sys; print(sys.path[:1])"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert (said.stdout, said.stderr) == ("['']\n", "")


def test_the_second_file_missing_is_not_heard_of(probe: Probe) -> None:
    (probe.folder / "_slimgpu_hooks.py").unlink()
    assert probe.out("import numpy, safetensors; print(1)") == "1\n"
    assert [event.stage for event in probe.events()] == [Stage.INTERPRETER]


def test_imports_are_told_with_those_that_they_make(probe: Probe) -> None:
    probe.out("import json, safetensors.numpy")
    told = {event.what: event for event in probe.events() if event.stage is Stage.IMPORT}
    assert list(told) == ["safetensors", "numpy", "safetensors.numpy"]
    assert told["safetensors.numpy"].begin < told["numpy"].begin < told["numpy"].end < told["safetensors.numpy"].end


def test_a_module_is_left_as_without(probe: Probe) -> None:
    program = """
import importlib, inspect, pickle, numpy
loader = numpy.__spec__.loader
print(type(loader), vars(loader), loader is numpy.__loader__, inspect.getsource(numpy) == open(numpy.__file__).read())
print(pickle.loads(pickle.dumps(loader)).path == numpy.__file__, importlib.reload(importlib.import_module("sys")))
spec = importlib.util.find_spec("safetensors.torch")
print(type(spec.loader), spec.origin, importlib.util.find_spec("torch"), importlib.util.find_spec("numpy").origin)
"""
    assert probe.out("import importlib.util" + program) == run_plainly("import importlib.util" + program).stdout


@every_interpreter
def test_an_import_that_fails_is_told_and_fails_as_without(python: str, probe: Probe, tmp_path: Path) -> None:
    package = tmp_path / "lib" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import torch.inner\n")
    (package / "inner.py").write_text("def f():\n    raise RuntimeError('inside')\n\nf()\n")
    (tmp_path / "lib" / "jax.py").write_text("import no_such_module\n")
    (tmp_path / "lib" / "keras.py").write_text("1 +\n")
    (tmp_path / "script.py").write_text(
        "import traceback\nfor name in ('torch', 'jax', 'keras', 'cupy'):\n    try:\n        __import__(name)\n"
        "    except BaseException:\n        print(traceback.format_exc())\n"
    )
    path = str(tmp_path / "lib")
    said = probe.out(tmp_path / "script.py", python=python, PYTHONPATH=path)
    assert said == run_plainly(tmp_path / "script.py", python=python, PYTHONPATH=path).stdout
    assert said.count("Traceback") == 4
    assert probe.told("import") == ["torch", "jax", "keras"]


def test_workers_tell_of_themselves(probe: Probe, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os\n"
        "def work(name):\n    __import__(name)\n    os._exit(0)\n"
        "if __name__ == '__main__':\n"
        "    for way, name in (('fork', 'numpy'), ('spawn', 'safetensors')):\n"
        "        process = multiprocessing.get_context(way).Process(target=work, args=(name,))\n"
        "        process.start()\n        process.join()\n        assert process.exitcode == 0\n"
    )
    probe.out(script)
    assert probe.told("import") == ["numpy", "safetensors"]
    parent, *_ = [line["pid"] for line in probe.lines() if line["stage"] == "interpreter"]
    imported = [line["pid"] for line in probe.lines() if line["stage"] == "import"]
    assert len({parent, *imported}) == 3


def test_a_program_may_close_every_file_move_and_give_up_its_user(probe: Probe, tmp_path: Path) -> None:
    program = f"""
import os
os.closerange(3, 4096)
ours = [os.open({str(tmp_path / "own")!r}, os.O_CREAT | os.O_RDWR, 0o666) for _ in range(1200)]
os.chdir("/")
import numpy
for descriptor in ours[100:]:
    os.close(descriptor)
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
import safetensors
print(os.fstat(ours[0]).st_size)
"""
    script = f"ulimit -n 4096; exec {sys.executable} -c '{program.replace(chr(39), chr(34))}'"
    said = subprocess.run(["sh", "-c", script], env=probe.environment(), capture_output=True, text=True, check=False)
    assert (said.stdout, said.stderr) == ("0\n", "")
    assert "numpy" in probe.told("import")


def test_a_program_that_may_open_few_files(probe: Probe) -> None:
    script = f"ulimit -n 64; exec {sys.executable} -c 'import numpy'"
    subprocess.run(["sh", "-c", script], env=probe.environment(), check=True)
    assert probe.told("import") == ["numpy"]


def test_what_was_told_outlives_a_crash(probe: Probe) -> None:
    result = probe.run("import numpy, os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert result.returncode == -signal.SIGKILL
    assert probe.told("import") == ["numpy"]
    result = probe.run("import safetensors; raise ValueError('over')")
    assert result.stderr == (
        'Traceback (most recent call last):\n  File "<string>", line 1, in <module>\nValueError: over\n'
    )


def test_a_program_that_executes_another_one(probe: Probe) -> None:
    probe.out("import numpy, os, sys; os.execv(sys.executable, [sys.executable, '-c', 'import safetensors'])")
    first, numpy, second, *_ = probe.events()
    assert (first.stage, numpy.what, second.stage) == (Stage.INTERPRETER, "numpy", Stage.INTERPRETER)
    assert numpy.end == second.begin <= second.end
    assert len({line["pid"] for line in probe.lines()}) == 1


def test_processes_that_tell_at_once_keep_their_lines(probe: Probe) -> None:
    program = "import os\nfor _ in range(30):\n    os.fork() if _ < 5 else None\nimport numpy, safetensors\n"
    probe.out(program + "while True:\n    try:\n        os.wait()\n    except ChildProcessError:\n        break\n")
    assert sorted(probe.told("import")) == ["numpy"] * 32 + ["safetensors"] * 32


def test_a_program_tells_its_own_stages(probe: Probe) -> None:
    program = """
import json, os, time
begin = time.monotonic()
line = {"stage": "fetch weights", "begin": begin, "end": time.monotonic(), "what": "model", "pid": os.getpid()}
with open(os.environ["SLIMGPU_PROBE"], "a") as file:
    file.write(json.dumps(line) + "\\n")
"""
    probe.out(program)
    assert [(event.stage, event.what) for event in probe.events()[1:]] == [(Stage.FETCH, "model")]


def test_a_program_that_loads_for_ever_fills_no_disk(probe: Probe, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    program = f"""
import numpy, safetensors.numpy
safetensors.numpy.save_file({{"a": numpy.ones(3)}}, {str(model)!r})
for _ in range(6000):
    safetensors.numpy.load_file({str(model)!r})
"""
    probe.out(program)
    assert len(probe.lines()) == 5000


@pytest.mark.parametrize("name", ["sitecustomize.py", "_slimgpu_hooks.py"])
def test_python_3_6_understands_it(name: str) -> None:
    tree = ast.parse((FOLDER / name).read_text(), feature_version=(3, 6))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
