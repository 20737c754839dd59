"""Artifacts on an object store, for code that needs folders on this machine."""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

from tfx.utils import io_utils


@contextlib.contextmanager
def local_outputs(output_dict: dict[str, list[Any]]) -> Iterator[None]:
    """Gives artifacts whose URI is one of an object store a folder here, and copies it there if all goes well."""
    remote = [artifact for artifacts in output_dict.values() for artifact in artifacts if "://" in artifact.uri]
    uris = [artifact.uri for artifact in remote]
    with contextlib.ExitStack() as folders:
        for artifact in remote:
            artifact.uri = folders.enter_context(tempfile.TemporaryDirectory(prefix="imagepipe-"))
        try:
            yield
            for artifact, uri in zip(remote, uris, strict=True):
                io_utils.copy_dir(artifact.uri, uri)
        finally:
            for artifact, uri in zip(remote, uris, strict=True):
                artifact.uri = uri
