"""The file system of an image: tar entries in and out, layers stacked to one tree, patterns over paths."""
