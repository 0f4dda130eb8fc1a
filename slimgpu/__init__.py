"""slimgpu makes GPU serving images small and their cold starts short."""

__version__ = "0.1.0"
