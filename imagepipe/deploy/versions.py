"""Folders of models: TensorFlow Serving's layout, a folder per model and in it one per version, by number.

A version is complete if it has a graph, which comes last: what lacks one is being copied, or its copy was killed, and
is passed over. Who is given a folder of versions takes the newest complete one, by ``find_model``; servers and shadows
follow it by ``list_servable_folders``, and ``storage.list_complete_versions`` does the same on any file system.
``list_version_folders`` is all that there is.
"""

import json
import logging
from pathlib import Path
from typing import Any

from imagepipe.base.errors import ModelError
from imagepipe.base.names import SUMMARY
from imagepipe.deploy.saved_model import GRAPH

SHADOW = "shadow"
"""Folder for versions that only ``imagepipe serve --shadow`` asks; model servers ignore it, as it is no number."""

ROLLED_BACK = "rolled_back"
"""Folder for versions that were rolled back; model servers ignore it as well."""

NEWEST = "newest"
"""In place of a version: whichever is the newest one in shadow, now and later."""

_MAX_VERSION = 2**63 - 1  # int64, as TensorFlow Serving and its messages have it
_passed_over: set[Path] = set()  # of which a log has been told
_MAX_DIGITS = len(str(_MAX_VERSION))  # int() refuses to read 5,000


def is_version(name: str) -> bool:
    """Returns whether a name is a version's number; of digits in other letters and of longer numbers none is."""
    return name.isascii() and name.isdecimal() and len(name) <= _MAX_DIGITS and int(name) <= _MAX_VERSION


def is_same_version(one: str, other: str) -> bool:
    """Returns whether two names are the same version's number: a folder may be called 007."""
    return is_version(one) and is_version(other) and int(one) == int(other)


def list_version_folders(serving_dir: str | Path) -> list[Path]:
    """Returns the version folders of a model, oldest first; none if ``serving_dir`` doesn't exist."""
    root = Path(serving_dir)
    if not root.is_dir():
        return []
    folders = (entry for entry in root.iterdir() if is_version(entry.name) and entry.is_dir())
    return sorted(folders, key=lambda folder: int(folder.name))


def find_model(path: Path) -> Path:
    """Finds the SavedModel that a path stands for.

    Args:
        path: a SavedModel, a folder of versions (its newest complete one is meant) or the folder of a run (its model is
            meant, blessed or not).

    Returns:
        The SavedModel's folder.

    Raises:
        ModelError: if ``path`` is none of these.
    """
    if (path / GRAPH).is_file():
        return path
    if versions := list_servable_folders(path) or list_version_folders(path):
        return find_model(versions[-1])
    if (path / SUMMARY).is_file():
        model = read_run(path).get("model_dir")
        if model is None:
            raise ModelError(f"{path}: this run did not get as far as a model")
        if not Path(model).exists():
            raise ModelError(f"{path}: the model of this run is gone; `imagepipe clean` removes those of old runs")
        return find_model(Path(model))
    raise ModelError(
        f"{path} is neither a SavedModel, nor a folder of its versions (serving/NAME), nor a run (runs/RUN)"
    )


def list_servable_folders(path: Path, log: logging.Logger | None = None) -> list[Path]:
    """Returns the version folders of a model that have a graph, oldest first: what lacks one is being copied.

    Args:
        path: the folder of versions.
        log: is told of each that lacks one, once.
    """
    folders = list_version_folders(path)
    servable = [folder for folder in folders if (folder / GRAPH).is_file()]
    if log:
        for empty in set(folders) - {*servable, *_passed_over}:
            _passed_over.add(empty)
            log.warning("%s has no graph yet, and is passed over until it has", empty)
    return servable


def describe_files(folder: Path) -> object:
    """Returns names, sizes and times of all files of a version, to tell whether any has changed."""
    try:
        files = [(str(file), file.lstat()) for file in sorted(folder.rglob("*"))]
    except FileNotFoundError:  # one was removed or renamed at this moment
        return object()  # which equals no other
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)


def find_shadow_folder(path: Path, version: str) -> Path | None:
    """Finds the version that is to answer in the shadow of the live one.

    Args:
        path: the folder of versions.
        version: its number, or NEWEST.

    Returns:
        The SavedModel's folder; None if there is none that has a graph, or it is the live one.
    """
    others, shadows = list_servable_folders(path), list_servable_folders(path / SHADOW)
    live = others.pop() if others else None
    if version == NEWEST:  # what is older than the live one has been passed over
        wanted = [folder for folder in shadows if live is None or int(folder.name) > int(live.name)]
    else:
        wanted = [folder for folder in (*others, *shadows) if is_same_version(folder.name, version)]
    return wanted[-1] if wanted else None


def check_shadow(path: Path, version: str) -> None:
    """Checks that a version can answer in shadow, see ``find_shadow_folder``.

    Raises:
        ModelError: if not.
    """
    folders = list_servable_folders(path)
    if not folders:
        raise ModelError(f"{path} is no folder of versions (serving/NAME), which --shadow needs")
    if version == NEWEST or find_shadow_folder(path, version):
        return
    if is_same_version(version, folders[-1].name):
        raise ModelError(
            f"{path}: version {version} is live. `imagepipe deploy MODEL --traffic 0` puts one in shadow instead"
        )
    names = ", ".join(folder.name for folder in (*folders, *list_servable_folders(path / SHADOW)))
    raise ModelError(f"{path}: there is no version {version}; it has {names}. --shadow {NEWEST} waits for one")


def find_model_name(path: Path) -> str:
    """Returns the name of the model that a path stands for, see ``find_model``."""
    if (path / SUMMARY).is_file():
        return str(read_run(path)["name"])
    path = path.resolve()
    if list_version_folders(path):
        return path.name
    return path.parent.name if path in list_version_folders(path.parent) else "model"


def read_run(path: Path) -> dict[str, Any]:
    """Returns the summary of a run, ``runs/<run>``, as JSON values; it has a ``name`` at least.

    Raises:
        ModelError: if it can't be read.
    """
    try:
        content = json.loads((path / SUMMARY).read_bytes())
        if not isinstance(content["name"], str):
            raise TypeError(f"name is {content['name']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path / SUMMARY} is missing or damaged ({type(error).__name__}: {error}): restore it, or give another "
            "run; `imagepipe runs` lists them"
        ) from error
    return dict(content)
