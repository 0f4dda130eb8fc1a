"""The image configuration, kept as the document it is so that nothing unknown to us is lost.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.0/config.md
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slimgpu.errors import ImageError
from slimgpu.oci.digest import is_digest
from slimgpu.oci.manifest import Platform

if TYPE_CHECKING:
    from collections.abc import Sequence


_WORD = re.compile(r"[\w./+@%][\w./+@%-]*")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """A read-only view of a configuration document."""

    document: Mapping[str, Any]

    @classmethod
    def parse(cls, data: bytes, what: str) -> ImageConfig:
        """The configuration in ``data``; `ImageError` naming ``what`` when it is none."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ImageError(f"the configuration of {what} is not JSON: {error}") from error
        config = cls(document if isinstance(document, dict) else {})
        if not all(isinstance(d, str) and is_digest(d) for d in config._raw_diff_ids()):
            raise ImageError(f"the configuration of {what} has no valid list rootfs.diff_ids")
        return config

    def _raw_diff_ids(self) -> Sequence[Any]:
        rootfs = self.document.get("rootfs")
        ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        return ids if isinstance(ids, list) else [None]

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Digests of the uncompressed layers, lowest first."""
        return tuple(self._raw_diff_ids())

    @property
    def platform(self) -> Platform:
        """What the image says it runs on; linux/amd64 where it is silent."""
        get = self.document.get
        variant = str(get("variant") or "")
        return Platform(str(get("architecture") or "amd64"), str(get("os") or "linux"), variant or None)

    @property
    def runtime(self) -> Mapping[str, Any]:
        """Entrypoint, Cmd, Env, User, WorkingDir, Labels and the like."""
        section = self.document.get("config")
        return section if isinstance(section, dict) else {}

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables of ``Env``, the last setting of each."""
        settings = self.runtime.get("Env")
        pairs = (str(item).partition("=") for item in settings) if isinstance(settings, list) else ()
        return {name: value for name, _, value in pairs}

    @property
    def command_words(self) -> frozenset[str]:
        """Everything in Entrypoint, Cmd and Healthcheck that could name a program or a file, in shell text too."""
        check = self.runtime.get("Healthcheck")
        commands = [self.runtime.get("Entrypoint"), self.runtime.get("Cmd")]
        commands += [check.get("Test")] if isinstance(check, dict) else []
        words = [str(word) for command in commands if isinstance(command, list) for word in command]
        return frozenset([*words, *(part for word in words for part in _WORD.findall(word))])

    @property
    def history(self) -> tuple[Mapping[str, Any], ...]:
        """One entry a build step; those with ``empty_layer`` have no layer."""
        entries = self.document.get("history")
        if not isinstance(entries, list):
            return ()
        return tuple(entry for entry in entries if isinstance(entry, dict))

    def steps(self) -> tuple[str, ...]:
        """For each layer the command that made it, '' where the history does not say."""
        made = [str(e.get("created_by") or "") for e in self.history if not e.get("empty_layer")]
        count = len(self.diff_ids)
        return tuple(made) if len(made) == count else ("",) * count

    def with_layers(self, diff_ids: Sequence[str], steps: Sequence[str], labels: Mapping[str, str]) -> ImageConfig:
        """The same configuration over other layers.

        The old history stays, marked as having no layers, and each new layer adds its own entry; the labels
        are merged over the present ones.
        """
        document = copy.deepcopy(dict(self.document))
        document["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
        kept = [{**entry, "empty_layer": True} for entry in self.history]
        created = {"created": self.document["created"]} if self.document.get("created") else {}
        document["history"] = kept + [{**created, "created_by": step} for step in steps]
        runtime = dict(self.runtime)
        present = runtime.get("Labels")
        runtime["Labels"] = {**(present if isinstance(present, dict) else {}), **labels}
        document["config"] = runtime
        return ImageConfig(document)

    def dump(self) -> bytes:
        """The document as JSON, always the same bytes for the same value."""
        return json.dumps(self.document, separators=(",", ":"), ensure_ascii=False).encode()
