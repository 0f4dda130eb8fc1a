"""Images in a Docker engine, read and written as Docker archives over its API.

The engine is found as the Docker SDK finds it: ``DOCKER_HOST``, ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH``, else
its socket. Source: https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Image
"""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from slimgpu.errors import DestinationError, MissingComponentError, NotFoundError, SlimgpuError, UsageError
from slimgpu.oci.digest import digest_bytes, is_digest
from slimgpu.oci.image import CHUNK
from slimgpu.parallel import readahead
from slimgpu.store.archive import read_docker_archive
from slimgpu.store.archive_writer import docker_members, tar_chunks
from slimgpu.store.tarindex import TarIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker import DockerClient

    from slimgpu.oci.image import Image
    from slimgpu.oci.manifest import Platform
    from slimgpu.oci.reference import DaemonReference
    from slimgpu.progress import Progress, Task
    from slimgpu.store.cache import Cache

_ANSWERS_WITHIN: Final = 10
_WORKS_WITHIN: Final = 3600
"""Seconds: the engine packs a whole image before the first byte, and unpacks one before its answer."""
_DEFAULT_HOST: Final = "unix:///var/run/docker.sock"


@contextmanager
def open_engine() -> Iterator[DockerClient]:
    """A client of the engine, known to answer; `MissingComponentError` when there is none."""
    import docker  # noqa: PLC0415 - only for those who name an engine
    from docker.constants import MINIMUM_DOCKER_API_VERSION  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    try:
        with closing(docker.from_env(version=MINIMUM_DOCKER_API_VERSION, timeout=_ANSWERS_WITHIN)) as probe:
            version = probe.api.version(api_version=False)["ApiVersion"]
        client = docker.from_env(version=version, timeout=_WORKS_WITHIN)
    except (docker.errors.DockerException, RequestException) as error:
        host = os.environ.get("DOCKER_HOST") or _DEFAULT_HOST
        raise MissingComponentError(
            f"no Docker engine answers at {host}; start it, set DOCKER_HOST, or name the image with docker:// or oci:"
        ) from error
    with closing(client):
        yield client


@contextmanager
def open_daemon_image(
    reference: DaemonReference, platform: Platform, cache: Cache, progress: Progress
) -> Iterator[Image]:
    """The engine's image, exported to a temporary file that is there until the block ends."""
    del platform  # an engine holds an image of one platform
    with (
        open_engine() as client,
        cache.temporary_directory("engine") as directory,
    ):
        path = directory / "image.tar"
        _export(client, reference, path, progress)
        yield read_docker_archive(TarIndex(path, str(reference)), None)


def _export(client: DockerClient, reference: DaemonReference, path: Path, progress: Progress) -> None:
    import docker  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    try:
        size = client.images.get(reference.name).attrs.get("Size")
        with progress.task(f"export {reference.name}", size) as task, path.open("wb") as file:
            for chunk in client.api.get_image(reference.name, chunk_size=CHUNK):
                file.write(chunk)
                task.advance(len(chunk))
    except docker.errors.NotFound as error:
        raise NotFoundError(
            f"{reference} does not exist in the engine; see 'docker images', or pull it with docker://"
        ) from error
    except (docker.errors.DockerException, RequestException) as error:
        raise SlimgpuError(f"the Docker engine could not export {reference} ({error}); see its log") from error


class DaemonWriter:
    """Loads an image into the engine under the reference's name."""

    stores: Literal["compressed", "plain"] = "plain"

    def __init__(self, reference: DaemonReference, cache: Cache) -> None:
        if is_digest(reference.name):
            raise UsageError(f"{reference} is an image id, not a name; write to docker-daemon:repo:tag")
        self._reference = reference
        self._cache = cache
        self.workspace = Path()

    @contextmanager
    def opened(self) -> Iterator[DaemonWriter]:
        """Show that the engine answers."""
        with (
            open_engine() as client,
            self._cache.temporary_directory("load") as workspace,
        ):
            self._client = client
            self.workspace = workspace
            yield self

    def write(self, image: Image, task: Task) -> str:
        """Load the image; gives the digest of its configuration, which is its id there."""
        import docker  # noqa: PLC0415
        from requests import RequestException  # noqa: PLC0415

        digest = digest_bytes(image.raw_config)
        members = docker_members(image, self._reference.name, self._cache, task)
        try:
            answers = self._client.api.load_image(readahead(tar_chunks(members)))  # type: ignore[no-untyped-call]
            for answer in answers:
                if "error" in answer:
                    raise DestinationError(f"the Docker engine did not load {self._reference}: {answer['error']}")
        except (docker.errors.DockerException, RequestException) as error:
            raise DestinationError(
                f"the Docker engine did not load {self._reference} ({error}); see its log"
            ) from error
        return digest
