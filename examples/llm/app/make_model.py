"""Write a model of Llama's shape with 1.1 billion parameters in bf16, made from a seed: no hub is asked.

Its weights are distributed like trained ones (normal, each row with a scale of its own), so they compress like those;
what it says means nothing.
"""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}


def main() -> None:
    """Write the model to the directory that is named."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            if "norm" in name:
                tensor.fill_(1.0)
                continue
            scale = torch.empty(tensor.shape[0], 1).uniform_(0.01, 0.03, generator=generator)
            tensor.normal_(generator=generator).mul_(scale)
    model.save_pretrained(sys.argv[1], max_shard_size="1GB")


if __name__ == "__main__":
    main()
