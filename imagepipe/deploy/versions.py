"""Where models are: TensorFlow Serving's layout, a folder for a model and in it one for each version, by number.

Reads names and small files only, so that it is quick to import.
"""

import json
from pathlib import Path

from imagepipe.base.errors import ModelError

_SAVED_MODEL = "saved_model.pb"
FINGERPRINT = "fingerprint.pb"
"""TensorFlow writes it beside each SavedModel: hashes of the graph and of the weights."""

_SUMMARY = "summary.json"


def version_folders(serving_dir: str | Path) -> list[Path]:
    """The version folders of a model, oldest first; none if ``serving_dir`` doesn't exist."""
    root = Path(serving_dir)
    if not root.is_dir():
        return []
    return sorted((entry for entry in root.iterdir() if entry.name.isdigit() and entry.is_dir()), key=_number)


def _number(folder: Path) -> int:
    return int(folder.name)


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
    if (path / _SAVED_MODEL).is_file():
        return path
    if versions := version_folders(path):
        return find_model(versions[-1])
    if (path / _SUMMARY).is_file():
        model = json.loads((path / _SUMMARY).read_text()).get("model_dir")
        if model is None:
            raise ModelError(f"{path}: this run did not get as far as a model")
        return find_model(Path(model))
    raise ModelError(
        f"{path} is neither a SavedModel, nor a folder of its versions (serving/NAME), nor a run (runs/RUN)"
    )


def model_name(path: Path) -> str:
    """The name of the model that a path stands for, see ``find_model``: its run's, or that of its versions' folder."""
    if (path / _SUMMARY).is_file():
        return str(json.loads((path / _SUMMARY).read_text())["name"])
    path = path.resolve()
    if version_folders(path):
        return path.name
    return path.parent.name if path in version_folders(path.parent) else "model"


def labels(model: Path) -> list[str]:
    """The names of a SavedModel's outputs, in the order of ``classes``; of a regression the target's."""
    return (model / "assets" / "labels").read_text().splitlines()


def model_task(model: Path) -> str:
    """What a SavedModel does: classification, multilabel or regression."""
    file = model / "assets" / "task"
    return file.read_text().strip() if file.is_file() else "classification"  # as all did before they said it
