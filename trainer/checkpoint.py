"""The state of a training on disk, so that a killed one goes on where it was."""

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

_FILE = "state.npz"


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        phase: number of the current phase.
        epoch: finished epochs of the phase.
        step: finished steps of the epoch after those.
        history: a row for each finished epoch of all phases, see ``trainer.fit``.
    """

    phase: int
    epoch: int
    step: int
    history: list[dict[str, Any]]


Arrays = dict[str, list[np.ndarray]]


def values(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Copies of variables' values."""
    return [np.array(variable.numpy()) for variable in variables]


def assign(variables: Sequence[keras.Variable], arrays: Sequence[np.ndarray]) -> None:
    """Gives variables the values of copies."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def save(folder: Path, progress: Progress, arrays: Arrays) -> None:
    """Writes a state in place of the one before; whoever reads sees either whole.

    Args:
        folder: an existing one.
        progress: how far it is.
        arrays: groups of arrays by name.
    """
    flat = {f"{name}/{number}": array for name, group in arrays.items() for number, array in enumerate(group)}
    partial = folder / f"{_FILE}.partial"
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, progress=np.array(json.dumps(vars(progress))), **flat)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / _FILE)


def load(folder: Path) -> tuple[Progress, Arrays] | None:
    """Reads what ``save`` wrote; None where there is nothing, or nothing that can be read."""
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
