"""Import vLLM and what serving needs, and print the versions as JSON; needs no GPU."""

import json

import torch
import vllm
import vllm.entrypoints.openai.api_server
from vllm import LLM, SamplingParams


def main() -> None:
    """Touch the classes that a server starts with."""
    parameters = SamplingParams(temperature=0, max_tokens=8)
    versions = {"vllm": vllm.__version__, "torch": torch.__version__, "cuda": torch.version.cuda}
    print(json.dumps({**versions, "engine": LLM.__name__, "max_tokens": parameters.max_tokens}))


if __name__ == "__main__":
    main()
