"""Every error that slimgpu raises on purpose, one class per exit code and cause.

::

    SlimgpuError                 1  failed
    ├── UsageError               2  a wrong argument, reference or configuration
    ├── RefusedError             3  a gate or a check said no
    │   ├── BrokenClosureError   3  a build that would break what it keeps
    │   └── MissingGpuCodeError  3  kernels without code that a target can run
    ├── RegistryError            4  a registry's answer, or credentials
    ├── MissingComponentError    5  an engine, a GPU or a tool that is not there
    ├── NotFoundError            1  no such image, tag, blob or path
    ├── ImageError               1  an image that breaks its format
    │   ├── DigestError          1  bytes that do not match their digest
    │   └── UnusualFileError     1  a file of a shape that is left as it is
    └── DestinationError         1  a destination that cannot be written

A message is one sentence that names the input and the way out. Values of secrets never go into one.
"""

from __future__ import annotations


class SlimgpuError(Exception):
    """Base of all; ``exit_code`` is what the command line exits with."""

    exit_code = 1


class UsageError(SlimgpuError):
    """The caller asked for something that cannot be: mend the arguments or the configuration."""

    exit_code = 2


class RefusedError(SlimgpuError):
    """A gate or a check ran to its end and said no."""

    exit_code = 3


class RegistryError(SlimgpuError):
    """A registry refused, failed or could not be reached, or its credentials were not accepted."""

    exit_code = 4


class MissingComponentError(SlimgpuError):
    """Something outside slimgpu is needed and not there."""

    exit_code = 5


class NotFoundError(SlimgpuError):
    """The image, tag, blob or path that was named does not exist."""


class ImageError(SlimgpuError):
    """Image content that breaks its format; the message names the layer and the path."""


class DigestError(ImageError):
    """Bytes that do not hash to the digest that names them."""


class UnusualFileError(ImageError):
    """A file of a shape that is not rewritten; the message says what is unusual, for a report that names the file."""


class BrokenClosureError(RefusedError):
    """The slim image would lack a library or a file that something kept still needs."""


class MissingGpuCodeError(RefusedError):
    """Only native code is wanted, and kernels have none for a target."""


class DestinationError(SlimgpuError):
    """The destination exists with other content, is in use, or cannot be written."""
