"""``python -m slimgpu``."""

from slimgpu.cli.main import run

run()
