"""Folders of models: TensorFlow Serving's layout, a folder per model and in it one per version, by number."""

import json
from pathlib import Path
from typing import Any

from imagepipe.base.errors import ModelError
from imagepipe.base.names import SUMMARY
from imagepipe.deploy.saved_model import GRAPH

PROMOTED = ".promoted"
"""End of the name of a file beside a version's folder: it goes live on servers that hold it back, in shadow."""


def list_version_folders(serving_dir: str | Path) -> list[Path]:
    """Returns the version folders of a model, oldest first; none if ``serving_dir`` doesn't exist."""
    root = Path(serving_dir)
    if not root.is_dir():
        return []
    folders = (entry for entry in root.iterdir() if entry.name.isdigit() and entry.is_dir())
    return sorted(folders, key=lambda folder: int(folder.name))


def find_model(path: Path) -> Path:
    """Finds the SavedModel that a path stands for.

    Args:
        path: a SavedModel, a folder of versions (its newest is meant) or the folder of a run (its model is meant,
            blessed or not).

    Returns:
        The SavedModel's folder.

    Raises:
        ModelError: if ``path`` is none of these.
    """
    if (path / GRAPH).is_file():
        return path
    if versions := list_version_folders(path):
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


def find_shadow_folder(path: Path, version: str) -> Path:
    """Finds a version that is to answer in the shadow of another one.

    Args:
        path: the folder of versions.
        version: its number.

    Returns:
        The SavedModel's folder.

    Raises:
        ModelError: if there is no such version, or no other one that could be live.
    """
    folders = list_version_folders(path)
    if not folders:
        raise ModelError(f"{path} is no folder of versions (serving/NAME), which --shadow needs")
    names = [folder.name for folder in folders]
    if version not in names:
        raise ModelError(f"{path}: there is no version {version}; it has {', '.join(names)}")
    if len(names) == 1:
        raise ModelError(f"{path}: version {version} is the only one: in shadow it needs another one that is live")
    return find_model(folders[names.index(version)])


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
