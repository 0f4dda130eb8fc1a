"""Layers out of a file system: which files go together, as tar, compressed."""
