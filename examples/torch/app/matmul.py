"""Print a matrix product's checksum as JSON. The entries are small integers, so every device gives the same one."""

import json

import torch

SIZE = 512


def main() -> None:
    """Multiply on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randint(-8, 8, (SIZE, SIZE), generator=generator).float().to(device) for _ in range(2))
    product = left @ right
    weights = torch.arange(SIZE, device=device, dtype=torch.float64)
    checksum = int(weights @ product.double() @ weights)
    sums = {"trace": int(product.trace()), "checksum": checksum}
    print(json.dumps({"torch": torch.__version__, "device": device, **sums}))


if __name__ == "__main__":
    main()
