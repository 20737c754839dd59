"""Models that are somewhere else."""

import atexit
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from imagepipe.base.errors import ModelError
from imagepipe.deploy.versions import FINGERPRINT, labels


def version_names(folder: str) -> list[str]:
    """The names of the version folders in a folder on whatever TensorFlow reads, oldest first."""
    if not tf.io.gfile.isdir(folder):
        return []
    return sorted((name.rstrip("/") for name in tf.io.gfile.listdir(folder) if name.rstrip("/").isdigit()), key=int)


def same_model(one: str, other: str) -> bool:
    """Whether two folders hold copies of one SavedModel; False where one has no fingerprint."""
    files = [f"{folder}/{FINGERPRINT}" for folder in (one, other)]
    return all(map(tf.io.gfile.exists, files)) and len({tf.io.gfile.GFile(file, "rb").read() for file in files}) == 1


def add_version(model: str, folder: str, inner: str = "", least: int = 0) -> str:
    """Copies a SavedModel into a new version folder.

    On this machine the folder appears at once and whole: the copy is made under another name. An object store has no
    such thing; there the file without which a folder is no SavedModel comes last.

    Args:
        model: the SavedModel's folder.
        folder: that of the version folders, on whatever TensorFlow writes; made if missing.
        inner: where in the version folder the SavedModel goes, if not right into it; ``{version}`` is its name.
        least: that the version has to be, as a number.

    Returns:
        The version: seconds since 1970, or ``least`` or one more than the last version if that is later. If the newest
        version is this very model already, nothing is copied, and it is that one.

    Raises:
        ModelError: if it can't be written there.
    """
    try:
        tf.io.gfile.makedirs(folder)
        versions = version_names(folder)
        if versions and same_model(model, _join(folder, versions[-1], inner.format(version=versions[-1]))):
            return versions[-1]
        version = str(max(int(time.time()), least, int(versions[-1]) + 1 if versions else 0))
        if "://" in folder:
            _copy(model, _join(folder, version, inner.format(version=version)))
        else:
            partial = f"{folder}/.partial-{version}"
            _copy(model, _join(partial, inner.format(version=version)))
            tf.io.gfile.rename(partial, f"{folder}/{version}")
    except tf.errors.OpError as error:
        raise ModelError(f"{folder} can't be written: {error.message}") from error
    return version


def move(model: str, target: str) -> None:
    """Moves a SavedModel's folder, so that nobody finds a part of it.

    An object store renames file by file, if it renames at all: there the graph comes last and goes first.

    Args:
        model: the SavedModel's folder.
        target: where it is to be, in a folder that is there; what is there already is replaced.
    """
    if "://" not in model:
        tf.io.gfile.rename(model, target, overwrite=True)
        return
    _copy(model, target)
    tf.io.gfile.remove(f"{model}/saved_model.pb")
    tf.io.gfile.rmtree(model)


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _copy(source: str, target: str) -> None:
    """Copies a SavedModel's folder, the graph last."""
    graph = f"{source}/saved_model.pb"
    for folder, _, files in tf.io.gfile.walk(source):
        there = target + folder.rstrip("/").removeprefix(source.rstrip("/"))
        tf.io.gfile.makedirs(there)
        for name in files:
            if f"{folder.rstrip('/')}/{name}" != graph:
                tf.io.gfile.copy(f"{folder}/{name}", f"{there}/{name}", overwrite=True)
    tf.io.gfile.copy(graph, f"{target}/saved_model.pb", overwrite=True)


def assets(model: str) -> Path:
    """A folder on this machine with a SavedModel's ``assets/``, for ``deploy.versions`` to read: itself, or a copy.

    Raises:
        ModelError: if they can't be read.
    """
    if "://" not in model:
        return Path(model)
    copy = _temporary()
    _fetch(f"{model}/assets", copy / "assets")
    return copy


def common_labels(models: Sequence[str]) -> list[str]:
    """The names of the outputs of SavedModels on whatever TensorFlow reads; none if they don't all have the same.

    Raises:
        ModelError: if they can't be read.
    """
    named = [labels(assets(model)) for model in models]
    return named[0] if all(names == named[0] for names in named) else []


def inputs(model: str) -> list[str]:
    """What a SavedModel takes of a request, side features included.

    Raises:
        ModelError: if it can't be read.
    """
    try:
        with tf.io.gfile.GFile(f"{model}/saved_model.pb", "rb") as file:
            graph = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs[0]
        return sorted(graph.signature_def["serving_default"].inputs)
    except (tf.errors.OpError, DecodeError, IndexError) as error:
        raise ModelError(f"{model} can't be read as a SavedModel: {error}") from error


def fetched(model: str) -> Path:
    """A SavedModel, or a folder of its versions, on this machine: itself, or a copy that lives as long as the process.

    Raises:
        ModelError: if it can't be read.
    """
    if "://" not in model:
        return Path(model)
    copy = _temporary() / PurePosixPath(model).name
    _fetch(model.rstrip("/"), copy)
    return copy


def _temporary() -> Path:
    """A folder that lives as long as the process."""
    folder = tempfile.mkdtemp(prefix="imagepipe-model-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _fetch(root: str, copy: Path) -> None:
    try:
        for folder, _, files in tf.io.gfile.walk(root, onerror=_raise):
            target = copy / folder.removeprefix(root).strip("/")
            target.mkdir(parents=True, exist_ok=True)
            for name in files:
                tf.io.gfile.copy(f"{folder}/{name}", str(target / PurePosixPath(name).name))
    except (tf.errors.OpError, OSError) as error:
        raise ModelError(f"{root} can't be fetched: {error}") from error
    if not copy.exists():
        raise ModelError(f"{root}: there is nothing")


def _raise(error: Exception) -> None:
    raise error
