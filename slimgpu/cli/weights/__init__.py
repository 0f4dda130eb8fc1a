"""``slimgpu weights``: the group of commands on weights artifacts."""

from __future__ import annotations

from typing import Final

import click

from slimgpu.cli.lazy import LazyGroup

COMMANDS: Final = {
    "pack": "Pack files of weights to an artifact.",
    "push": "Copy an artifact from any store to any other.",
    "pull": "Write an artifact's files to a directory, the same in every byte.",
    "export": "Write an artifact in another form.",
    "list": "What an artifact holds.",
    "verify": "Check an artifact, or the files written from it, against every digest.",
    "load": "Load an artifact's tensors, to see how long it takes.",
    "serve": "Hand artifacts out to this machine's neighbours.",
}
"""As `slimgpu.cli.main.COMMANDS`, in ``slimgpu.cli.weights.<name>``."""


@click.group(
    "weights",
    cls=LazyGroup,
    package="slimgpu.cli.weights",
    prefix="SLIMGPU_WEIGHTS",
    summaries=COMMANDS,
    epilog="Artifacts are named docker://host/repo:tag (or just host/repo:tag), oci:dir[:tag] or "
    "oci-archive:file[:tag]. Docker's credentials are used; nothing in an artifact is ever run.",
)
def command() -> None:
    """Pack, move, check and load model weights as an artifact of their own.

    Weights are cut to chunks that compress by a third for bf16 and are fetched in parallel; each is checked, and what
    comes out is what went in, bit for bit.
    """
