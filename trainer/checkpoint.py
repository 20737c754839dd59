"""The state of a training on disk, from which a killed training resumes where it was."""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainer.config import FnArgs

_FILE = "state.npz"


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        phase: index of the current phase.
        epoch: finished epochs of the phase.
        step: finished steps of the epoch after those.
        history: one row per finished epoch of all phases, see ``trainer.schedule``.
    """

    phase: int
    epoch: int
    step: int
    history: list[dict[str, Any]]


Arrays = dict[str, list[np.ndarray]]


def make_state_folder(fn_args: FnArgs) -> Path:
    """Returns the state folder of this very training or search, named by its data, preprocessing and configuration."""
    identity = [
        fn_args.train_files,
        fn_args.eval_files,
        fn_args.transform_graph_path,
        fn_args.hyperparameters,
        fn_args.custom_config,
    ]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(fn_args.custom_config["state_dir"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def copy_values(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Returns copies of variables' values."""
    return [np.array(variable.numpy()) for variable in variables]


def assign_values(variables: Sequence[keras.Variable], arrays: Sequence[np.ndarray]) -> None:
    """Assigns copied values to variables."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def save_state(folder: Path, progress: Progress, arrays: Arrays) -> None:
    """Writes a state in place of the previous one; a reader sees one of them complete.

    Args:
        folder: an existing folder.
        progress: how far the training is.
        arrays: groups of arrays by name.
    """
    flat = {f"{name}/{number}": array for name, group in arrays.items() for number, array in enumerate(group)}
    partial = folder / f"{_FILE}.partial"
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, progress=np.array(json.dumps(vars(progress))), **flat)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / _FILE)


def load_state(folder: Path) -> tuple[Progress, Arrays] | None:
    """Reads what ``save_state`` wrote; returns None if there is nothing, or nothing readable."""
    try:
        with np.load(folder / _FILE, allow_pickle=False) as stored:
            progress = Progress(**json.loads(str(stored["progress"])))
            arrays: Arrays = {}
            for key in stored.files:
                name, slash, _ = key.partition("/")
                if slash:
                    arrays.setdefault(name, []).append(stored[key])
    except (FileNotFoundError, zipfile.BadZipFile, ValueError, KeyError):
        return None
    return progress, arrays
