"""Timestamps of a program's own stages, taken inside of it: what is injected, and what reads it."""
