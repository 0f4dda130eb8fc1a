"""The folder that comes first in a probed program's PYTHONPATH; `sitecustomize` in it runs in each interpreter.

It is read by interpreters from 3.6 on, which know nothing of the package around it. Mounted read-only, no byte code is
left in it.
"""
