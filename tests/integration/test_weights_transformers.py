"""transformers gets all-MiniLM-L6-v2 from an artifact, and computes the same embeddings as from the files."""

from __future__ import annotations

import filecmp
from typing import TYPE_CHECKING

import pytest

from tests.support.command import slimgpu
from tests.support.vllm_environment import VllmEnvironment, vllm_environment

if TYPE_CHECKING:
    from pathlib import Path

_FORWARD = """
import sys
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel
import slimgpu.weights

original, pulled, ref = sys.argv[1:]
torch.set_num_threads(1)
sentences = ["Cold starts are slow.", "A container image, of which most bytes are never read, is pulled first."]
inputs = AutoTokenizer.from_pretrained(pulled)(sentences, padding=True, return_tensors="pt")
weights = slimgpu.weights.load(ref)
models = {
    "files": AutoModel.from_pretrained(original),
    "pulled": AutoModel.from_pretrained(pulled),
    "loaded": BertModel.from_pretrained(None, config=AutoConfig.from_pretrained(pulled), state_dict=weights),
}
with torch.inference_mode():
    outputs = {name: model.eval()(**inputs).last_hidden_state for name, model in models.items()}
assert outputs["files"].shape[0] == len(sentences) and outputs["files"].abs().sum() > 0
for name, output in outputs.items():
    state = models[name].state_dict()
    assert state.keys() == models["files"].state_dict().keys(), name
    assert all(torch.equal(value, state[key]) for key, value in models["files"].state_dict().items()), name
    assert torch.equal(output, outputs["files"]), name
print("the same", len(weights))
"""


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> VllmEnvironment:
    return vllm_environment(tmp_path_factory.mktemp("project"))


def test_minilm_computes_the_same_from_an_artifact(vllm: VllmEnvironment, tmp_path: Path) -> None:
    reference = f"oci:{tmp_path / 'layout'}:weights"
    pulled = tmp_path / "pulled"
    slimgpu("weights", "pack", str(vllm.minilm), "--to", reference)
    slimgpu("weights", "pull", reference, str(pulled))

    files = sorted(path.relative_to(vllm.minilm) for path in vllm.minilm.rglob("*") if path.is_file())
    same, different, missing = filecmp.cmpfiles(vllm.minilm, pulled, [str(file) for file in files], shallow=False)
    assert (len(same), different, missing) == (len(files), [], [])
    assert "the same" in vllm.run(_FORWARD, vllm.minilm, pulled, reference)
