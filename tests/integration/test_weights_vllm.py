"""``--load-format slimgpu`` in the real vLLM loads what vLLM's own loader loads, byte for byte."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import ImageError, NotFoundError
from slimgpu.oci.reference import PathReference, parse_reference
from slimgpu.weights.pointer import POINTER_FILE, Pointer
from slimgpu.weights.vllm import VARIABLE, find_artifact, pointer_of
from tests.support.command import slimgpu
from tests.support.probe import new_probe
from tests.support.vllm_environment import VllmEnvironment, finish, vllm_environment

if TYPE_CHECKING:
    from pathlib import Path

# A Llama of two layers in two safetensors files with an index, as large models come. It has grouped attention and
# parameters of its own for the head, so that vLLM merges and cuts tensors.
_MAKE = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file

torch.manual_seed(int(sys.argv[2]))
layer = {
    "input_layernorm": [64], "post_attention_layernorm": [64], "self_attn.q_proj": [64, 64],
    "self_attn.k_proj": [32, 64], "self_attn.v_proj": [32, 64], "self_attn.o_proj": [64, 64],
    "mlp.gate_proj": [128, 64], "mlp.up_proj": [128, 64], "mlp.down_proj": [64, 128],
}
shards = [
    {"model.embed_tokens": [256, 64]} | {f"model.layers.0.{name}": shape for name, shape in layer.items()},
    {f"model.layers.1.{name}": shape for name, shape in layer.items()} | {"model.norm": [64], "lm_head": [256, 64]},
]
model = Path(sys.argv[1])
places = {}
for number, shapes in enumerate(shards, 1):
    file = f"model-{number:05}-of-00002.safetensors"
    tensors = {f"{name}.weight": torch.randn(shape).mul(0.02).bfloat16() for name, shape in shapes.items()}
    for name in sys.argv[3:]:
        tensors.pop(name, None)
    save_file(tensors, model / file, metadata={"format": "pt"})
    places |= dict.fromkeys(tensors, file)
(model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "dtype": "bfloat16",
}
(model / "config.json").write_text(json.dumps(config))
"""

# vLLM's wheel is built for CUDA; where there is no GPU it has to be told that its platform is the CPU. Everything from
# the command line to the loaded model is then vLLM's own code. It ends before the first compiled kernel.
_VLLM = """
import copy, json, os, sys
import vllm.platforms
from vllm.platforms.cpu import CpuPlatform

vllm.platforms.current_platform = CpuPlatform()

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model, get_model_loader
from vllm.utils.argparse_utils import FlexibleArgumentParser

WORLD, RANK = int(os.environ.get("WORLD", "1")), int(os.environ.get("RANK", "0"))


def configured(model, load_format, extra=None):
    line = ["--model", model, "--load-format", load_format, "--skip-tokenizer-init", "--enforce-eager",
            "--max-model-len", "64", "--tensor-parallel-size", str(WORLD)]
    line += ["--model-loader-extra-config", json.dumps(extra)] if extra else []
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    return EngineArgs.from_cli_args(parser.parse_args(line)).create_engine_config()


def loaded(*arguments):
    config = configured(*arguments)
    with set_current_vllm_config(config):
        meeting = "file://" + os.environ["MEETING"]
        init_distributed_environment(WORLD, RANK, meeting, RANK, "gloo")
        ensure_model_parallel_initialized(WORLD, 1)
        return get_model(vllm_config=config)


def raw(tensors):
    return {name: (tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            for name, tensor in tensors}


def report(**values):
    print("REPORT " + json.dumps(values), flush=True)
"""

_COMPARE = """
plain, fresh, extra = sys.argv[1:]
wanted, found = loaded(plain, "safetensors"), loaded(fresh, "slimgpu", json.loads(extra))
wanted, found = raw(wanted.state_dict().items()), raw(found.state_dict().items())
report(equal=wanted == found, names=sorted(found), bytes=sum(len(value[2]) for value in found.values()))
"""

_ITERATE = """
from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator

plain, fresh, draft, ref = sys.argv[1:]
config = configured(fresh, "slimgpu", {"ref": ref})
loader = get_model_loader(config.load_config)


def own(folder):
    return raw(safetensors_weights_iterator([os.path.join(folder, name) for name in os.listdir(folder)
                                             if name.endswith(".safetensors")], False))


def through_slimgpu(folder):
    other = copy.copy(config.model_config)
    other.model = folder
    with set_current_vllm_config(config):
        return raw(list(loader.get_all_weights(other, torch.nn.Module())))


loader.download_model(config.model_config)
report(loader=type(loader).__name__, main=through_slimgpu(fresh) == own(plain),
       draft=through_slimgpu(draft) == own(draft), kept=config.load_config.model_loader_extra_config == {"ref": ref})
"""

_FAIL = """
try:
    loaded(sys.argv[1], "slimgpu", json.loads(sys.argv[2]))
except Exception as error:
    report(type=type(error).__name__, message=str(error))
"""


def _reported(printed: str) -> dict[str, object]:
    line = next(line for line in printed.splitlines() if line.startswith("REPORT "))
    document = json.loads(line.removeprefix("REPORT "))
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> VllmEnvironment:
    return vllm_environment(tmp_path_factory.mktemp("project"))


@pytest.fixture
def model(vllm: VllmEnvironment, tmp_path: Path) -> Path:
    """A model's directory, weights and all."""
    return _made(vllm, tmp_path / "model", seed=1)


@pytest.fixture
def reference(model: Path, tmp_path: Path) -> str:
    """The artifact with that model."""
    return _packed(model, tmp_path / "layout")


@pytest.fixture
def fresh(model: Path, tmp_path: Path) -> Path:
    """The model's directory as it is in an image from which the weights were split."""
    folder = tmp_path / "fresh"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    return folder


def _made(vllm: VllmEnvironment, folder: Path, *without: str, seed: int) -> Path:
    folder.mkdir()
    vllm.run(_MAKE, folder, str(seed), *without)
    return folder


def _packed(model: Path, layout: Path) -> str:
    reference = f"oci:{layout}:weights"
    slimgpu("weights", "pack", str(model), "--to", reference)
    return reference


_OTHER = "sha256:" + "0" * 64


def _point(folder: Path, reference: str, index: str = _OTHER) -> None:
    (folder / POINTER_FILE).write_bytes(Pointer(reference, index).dump())


def _index_of(reference: str) -> str:
    """The digest of the index of the only artifact in a layout."""
    parsed = parse_reference(reference)
    assert isinstance(parsed, PathReference)
    [entry] = json.loads((parsed.path / "index.json").read_text())["manifests"]
    manifest = json.loads((parsed.path / "blobs" / entry["digest"].replace(":", "/")).read_text())
    return str(manifest["config"]["digest"])


@pytest.mark.parametrize("world", [1, 2])
def test_each_rank_has_the_parameters_that_vllm_loads(
    world: int, vllm: VllmEnvironment, model: Path, fresh: Path, reference: str, tmp_path: Path
) -> None:
    meeting, extra = str(tmp_path / "meeting"), json.dumps({"ref": reference})
    ranks = [
        vllm.start(_VLLM + _COMPARE, model, fresh, extra, WORLD=str(world), RANK=str(rank), MEETING=meeting)
        for rank in range(world)
    ]
    for printed in [finish(rank) for rank in ranks]:
        report = _reported(printed)
        assert report["equal"], printed
        assert {"lm_head.weight", "model.layers.1.self_attn.qkv_proj.weight"} <= set(report["names"])


@pytest.mark.parametrize("way", ["pointer", "variable"])
def test_the_artifact_is_found(
    way: str, vllm: VllmEnvironment, model: Path, fresh: Path, reference: str, tmp_path: Path
) -> None:
    variables = {"MEETING": str(tmp_path / "meeting")}
    if way == "pointer":
        _point(fresh, reference, _index_of(reference))
    else:
        _point(fresh, "oci:/nowhere:weights")
        variables[VARIABLE] = reference
    report = _reported(vllm.run(_VLLM + _COMPARE, model, fresh, "{}", **variables))
    assert report["equal"]


def test_a_probed_vllm_loads_the_same_and_tells_of_it(
    vllm: VllmEnvironment, model: Path, fresh: Path, reference: str, tmp_path: Path
) -> None:
    probe, extra = new_probe(tmp_path), json.dumps({"ref": reference})
    probed = probe.environment(PYTHONPATH=str(vllm.project))
    variables = {name: probed[name] for name in ("PYTHONPATH", "SLIMGPU_PROBE")}
    report = _reported(vllm.run(_VLLM + _COMPARE, model, fresh, extra, MEETING=str(tmp_path / "meeting"), **variables))
    assert report["equal"]
    assert probe.told("load weights") == [str(model), str(fresh)]
    assert {"vllm", "torch", "transformers", "numpy"} <= set(probe.told("import"))
    assert probe.told("GPU context") == []


def test_another_form_of_the_model_beside_it_is_left_out(vllm: VllmEnvironment, model: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(model, both)
    _made(vllm, tmp_path / "other", seed=2)
    shutil.copy(tmp_path / "other" / "model-00001-of-00002.safetensors", both / "consolidated.safetensors")
    extra = json.dumps({"ref": _packed(both, tmp_path / "layout"), "files": "model-*.safetensors"})
    report = _reported(vllm.run(_VLLM + _COMPARE, both, both, extra, MEETING=str(tmp_path / "meeting")))
    assert report["equal"]


def test_the_tensors_are_those_of_the_files(
    vllm: VllmEnvironment, model: Path, fresh: Path, reference: str, tmp_path: Path
) -> None:
    draft = _made(vllm, tmp_path / "draft", seed=2)
    report = _reported(vllm.run(_VLLM + _ITERATE, model, fresh, draft, reference))
    assert report == {"loader": "SlimgpuModelLoader", "main": True, "draft": True, "kept": True}


def test_a_tensor_that_is_missing_is_an_error(vllm: VllmEnvironment, fresh: Path, tmp_path: Path) -> None:
    name = "model.layers.1.input_layernorm.weight"
    reference = _packed(_made(vllm, tmp_path / "incomplete", name, seed=1), tmp_path / "other")
    extra = json.dumps({"ref": reference})
    report = _reported(vllm.run(_VLLM + _FAIL, fresh, extra, MEETING=str(tmp_path / "meeting")))
    assert report["type"] == "ValueError"
    assert name in str(report["message"])


def test_a_model_without_an_artifact_is_an_error(vllm: VllmEnvironment, model: Path, tmp_path: Path) -> None:
    report = _reported(vllm.run(_VLLM + _FAIL, model, "{}", MEETING=str(tmp_path / "meeting")))
    assert report["type"] == "NotFoundError"
    assert VARIABLE in str(report["message"])


def test_the_configuration_comes_before_the_variable_and_that_before_the_pointer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _point(tmp_path, "oci:pointer:weights")
    pointer = pointer_of(str(tmp_path), None, None)
    monkeypatch.setenv(VARIABLE, "oci:variable:weights")
    assert find_artifact("model", "oci:given:weights", pointer, main=True) == ("oci:given:weights", None)
    assert find_artifact("model", None, pointer, main=True) == ("oci:variable:weights", None)
    assert find_artifact("draft", None, pointer, main=False) == ("oci:pointer:weights", _OTHER)
    assert find_artifact("draft", None, None, main=False) == (None, None)
    monkeypatch.setenv(VARIABLE, "")
    assert find_artifact("model", None, pointer, main=True) == ("oci:pointer:weights", _OTHER)
    (tmp_path / POINTER_FILE).unlink()
    with pytest.raises(NotFoundError, match="model"):
        find_artifact("model", None, pointer_of(str(tmp_path), None, None), main=True)


def test_weights_that_were_pushed_since_the_pointer_was_written_are_refused(
    vllm: VllmEnvironment, fresh: Path, reference: str, tmp_path: Path
) -> None:
    _point(fresh, reference, _OTHER)
    report = _reported(vllm.run(_VLLM + _FAIL, fresh, "{}", MEETING=str(tmp_path / "meeting")))
    assert report["type"] == "ImageError"
    assert "no longer holds the weights" in str(report["message"])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '"oci:a:b"',
        '{"schema": "slimgpu.pointer.v1"}',
        '{"schema": "slimgpu.pointer.v2", "ref": "oci:a:b"}',
        '{"schema": "slimgpu.pointer.v1", "ref": ""}',
        '{"schema": "slimgpu.pointer.v1", "ref": 1}',
    ],
)
def test_a_pointer_that_names_nothing_is_an_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / POINTER_FILE
    path.write_text(content)
    with pytest.raises(ImageError, match=POINTER_FILE):
        find_artifact("draft", None, path, main=False)
