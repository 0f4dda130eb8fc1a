"""Model weights as an artifact of their own: packing, fetching, and loading tensors.

``load`` and ``stream`` are the interface for programs; importing them loads neither numpy nor torch.
"""

from slimgpu.weights.load import load, stream

__all__ = ["load", "stream"]
