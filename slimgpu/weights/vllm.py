"""vLLM's ``--load-format slimgpu``: a model's tensors come from its weights artifact, in order, as they arrive.

vLLM finds `register` through the entry point group ``vllm.general_plugins``. Which artifact belongs to the model says,
in this order, ``--model-loader-extra-config '{"ref": "..."}'``, the variable ``SLIMGPU_WEIGHTS`` (which ``slimgpu run``
sets), or the pointer that ``slimgpu build --weights split`` left in the model's directory. Next to ``ref``, ``files``
is a pattern for the artifact's files, where some are another form of the same model. The loader is vLLM's own default
loader with another source of tensors: how they are cut for a rank, quantized and checked stays vLLM's. vLLM 0.25.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slimgpu.errors import NotFoundError, UsageError
from slimgpu.weights import stream
from slimgpu.weights.pointer import POINTER_FILE, parse_pointer

if TYPE_CHECKING:
    from collections.abc import Iterator

LOAD_FORMAT: Final = "slimgpu"
VARIABLE: Final = "SLIMGPU_WEIGHTS"


def pointer_of(model: str, revision: str | None, cache: str | None) -> Path | None:
    """The pointer file of a model, which is a directory or in Hugging Face's cache; nothing is fetched."""
    if Path(model).exists():
        path = Path(model, POINTER_FILE)
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - comes with vLLM

    found = try_to_load_from_cache(model, POINTER_FILE, cache_dir=cache, revision=revision)
    return Path(found) if isinstance(found, str) else None


def find_artifact(model: str, given: str | None, pointer: Path | None, *, main: bool) -> tuple[str | None, str | None]:
    """Reference and, from a pointer, index digest; no reference for what is not the ``main`` model and has none.

    The variable names the main model's artifact: it says nothing about a draft model beside it.
    """
    reference = given or (os.environ.get(VARIABLE) if main else None)
    if reference:
        return reference, None
    if pointer is not None:
        found = parse_pointer(pointer.read_bytes(), str(pointer))
        return found.ref, found.index
    if not main:
        return None, None
    ways = f'--model-loader-extra-config \'{{"ref": "..."}}\', {VARIABLE}, or a {POINTER_FILE} in its directory'
    raise NotFoundError(f"no weights artifact is named for {model}; name it by {ways}")


@functools.cache
def register() -> None:
    """Make the load format known to vLLM, which calls this in each of its processes."""
    import torch  # noqa: PLC0415 - this and the rest are only there, and only loaded, inside of vLLM
    from vllm.config import get_current_vllm_config_or_none  # noqa: PLC0415
    from vllm.model_executor.model_loader import DefaultModelLoader, register_model_loader  # noqa: PLC0415
    from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight  # noqa: PLC0415
    from vllm.platforms import current_platform  # noqa: PLC0415

    class SlimgpuModelLoader(DefaultModelLoader):  # type: ignore[misc] # a base of which mypy sees nothing
        """Loads a model from its weights artifact; what is in none, from its files as vLLM does by default."""

        counter_before_loading_weights: float

        def __init__(self, load_config: Any) -> None:
            extra = dict(load_config.model_loader_extra_config)
            self._given = load_config
            self._choice: tuple[str | None, str | None] = (extra.pop("ref", None), extra.pop("files", None))
            # A copy: the configuration is vLLM's, which makes other loaders from it.
            plain = {"load_format": "auto", "model_loader_extra_config": extra}
            super().__init__(dataclasses.replace(load_config, **plain))

        def download_model(self, model_config: Any) -> None:
            """Nothing: the tensors are fetched while they are loaded."""

        def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, torch.Tensor]]:
            (reference, index), files = self._choose(source)
            if reference is None:
                weights: Iterator[tuple[str, torch.Tensor]] = super()._get_weights_iterator(source)
                return weights
            if self.load_config.safetensors_load_strategy == "torchao":
                raise UsageError("torchao's own tensors are not in an artifact; write files with slimgpu weights pull")
            self.counter_before_loading_weights = self.counter_before_loading_weights or time.perf_counter()
            on_gpu = current_platform.is_cuda_alike() and self.load_config.device != "cpu"
            device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
            return (
                (source.prefix + name, tensor)
                for name, tensor in stream(reference, device=device, files=files, index=index)
                if not should_skip_weight(name, self.local_expert_ids)
            )

        def _choose(self, source: Any) -> tuple[tuple[str | None, str | None], str | None]:
            """The artifact of one source of tensors and which of its files; no artifact when files are to be read."""
            if source.subfolder or source.allow_patterns_overrides:
                return (None, None), None  # the model wants certain files and no others
            config = get_current_vllm_config_or_none()
            main = config is None or source.model_or_path == config.model_config.model
            given, files = self._choice if main or config.load_config is not self._given else (None, None)
            pointer = pointer_of(source.model_or_path, source.revision, self.load_config.download_dir)
            return find_artifact(source.model_or_path, given, pointer, main=main), files

    register_model_loader(LOAD_FORMAT)(SlimgpuModelLoader)
