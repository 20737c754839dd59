"""Artifacts that more than one component reads or writes."""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

from tfx import types
from tfx.types import artifact_utils

from imagepipe.base import filesystem

_STATISTICS_FILE = "FeatureStats.pb"  # TFX's name


def read_statistics(artifact: types.Artifact, split: str) -> bytes:
    """Returns a split's statistics, serialized, of StatisticsGen's artifact."""
    return filesystem.read_bytes(f"{artifact_utils.get_split_uri([artifact], split)}/{_STATISTICS_FILE}")


@contextlib.contextmanager
def local_outputs(output_dict: dict[str, list[Any]]) -> Iterator[None]:
    """Gives output artifacts on an object store a local folder, for code that can only write to this machine.

    When the block ends without an error, the folders are copied to the object store, and replace what is there.

    Args:
        output_dict: artifacts by key, as executors get them. Their URIs are local inside the block.
    """
    remote = [artifact for artifacts in output_dict.values() for artifact in artifacts if "://" in artifact.uri]
    uris = [artifact.uri for artifact in remote]
    with contextlib.ExitStack() as folders:
        for artifact in remote:
            artifact.uri = folders.enter_context(tempfile.TemporaryDirectory(prefix="imagepipe-"))
        try:
            yield
            for artifact, uri in zip(remote, uris, strict=True):
                filesystem.delete_folder(uri)
                filesystem.copy_folder(artifact.uri, uri)
        finally:
            for artifact, uri in zip(remote, uris, strict=True):
                artifact.uri = uri
