"""The probe in the real torch, safetensors and transformers: they compute the same, and their stages are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slimgpu.events import Stage
from tests.support.probe import Probe, new_probe, run_plainly
from tests.support.vllm_environment import VllmEnvironment, vllm_environment

if TYPE_CHECKING:
    from pathlib import Path

_TORCH = """
import inspect, os, pickle
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pickled, plain = os.environ["PICKLED"], os.environ["PLAIN"]
torch.save({"a": torch.ones(3)}, pickled)
save_file({"a": torch.ones(3)}, plain)
with open(pickled, "rb") as file:
    print(torch.load(file, weights_only=True), torch.load(pickled, mmap=True))
print(load_file(plain))
with safe_open(plain, framework="pt") as opened:
    print({name: opened.get_tensor(name) for name in opened.keys()})
print(pickle.loads(pickle.dumps(torch.load)) is torch.load, inspect.signature(torch.load))
print(inspect.getsource(torch.load) == inspect.getsource(torch.serialization.load), torch.load.__module__)
for fails in (lambda: torch.load("/no/such"), lambda: torch.zeros(1, device="cuda"), torch.cuda.init):
    try:
        fails()
    except Exception as error:
        print(type(error), error)
print(torch.cuda._lazy_init is torch.cuda.random._lazy_init is torch.cuda.memory._lazy_init)
print(torch.cuda.is_available(), torch.cuda.is_initialized())
child = os.fork()
if not child:
    torch.load(pickled)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""

_TRANSFORMERS = """
import os
import torch
from transformers import AutoModel, AutoTokenizer

torch.set_num_threads(1)
folder = os.environ["MODEL"]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
print(model(**tokenizer("Cold starts are slow.", return_tensors="pt")).last_hidden_state.sum().item(), type(model))
"""


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> VllmEnvironment:
    return vllm_environment(tmp_path_factory.mktemp("project"))


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    return new_probe(tmp_path)


def _same_output(probe: Probe, environment: VllmEnvironment, program: str, **variables: str) -> None:
    python = str(environment.python)
    probed, plain = probe.run(program, python=python, **variables), run_plainly(program, python=python, **variables)
    assert probed.returncode == 0, probed.stderr
    assert (probed.returncode, probed.stdout) == (plain.returncode, plain.stdout)


def test_torch_computes_the_same_and_tells_of_it(environment: VllmEnvironment, probe: Probe, tmp_path: Path) -> None:
    pickled, plain = str(tmp_path / "model.pt"), str(tmp_path / "model.safetensors")
    _same_output(probe, environment, _TORCH, PICKLED=pickled, PLAIN=plain)
    assert probe.told("load weights") == [pickled, pickled, plain, plain, "/no/such", pickled]
    told = {event.what: event for event in probe.events() if event.stage is Stage.IMPORT}
    assert told["torch"].begin < told["numpy"].begin < told["numpy"].end < told["torch"].end
    assert probe.told("GPU context") == []
    assert len({line["pid"] for line in probe.lines()}) == 2


def test_transformers_computes_the_same_and_tells_of_it(environment: VllmEnvironment, probe: Probe) -> None:
    _same_output(probe, environment, _TRANSFORMERS, MODEL=str(environment.minilm), HF_HUB_OFFLINE="1")
    assert probe.told("load weights") == [str(environment.minilm)]
    assert {"torch", "numpy", "safetensors", "transformers"} <= set(probe.told("import"))
