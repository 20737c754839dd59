"""Models that are somewhere else."""

import atexit
import shutil
import tempfile
from pathlib import Path, PurePosixPath

import tensorflow as tf

from serving.versions import ModelError


def fetched(uri: str) -> Path | None:
    """Copies a model to this machine.

    Args:
        uri: a folder on whatever TensorFlow reads (``gs://…``), or ``''``.

    Returns:
        The copy, in a temporary folder that lives as long as the process; None for none.

    Raises:
        ModelError: if it can't be read.
    """
    if not uri:
        return None
    root = uri.rstrip("/")
    temporary = tempfile.mkdtemp(prefix="imagepipe-model-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    copy = Path(temporary) / PurePosixPath(root).name
    try:
        for folder, _, files in tf.io.gfile.walk(root, onerror=_raise):
            target = copy / folder.removeprefix(root).strip("/")
            target.mkdir(parents=True, exist_ok=True)
            for name in files:
                tf.io.gfile.copy(f"{folder}/{name}", str(target / PurePosixPath(name).name))
    except (tf.errors.OpError, OSError) as error:
        raise ModelError(f"{uri} can't be fetched: {error}") from error
    if not copy.exists():
        raise ModelError(f"{uri}: there is nothing")
    return copy


def _raise(error: Exception) -> None:
    raise error
